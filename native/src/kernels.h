// Which weight types run faster as F16 on this CPU: a table of measurements, and the means to measure again.

#pragma once

#include "ggml.h"

#include <cstdint>
#include <string>

// Whether weights of a type, in ordinary host memory, are worth expanding to F16 here. Only where it was measured.
bool asl_kernel_pays(ggml_type type);

// The same in words.
std::string asl_kernel_reason(ggml_type type);

// One line: which row of the table is in force.
const std::string & asl_kernel_rule_line();

// Whether weights of models have this type.
bool asl_is_weight_type(int32_t type);

// One product of matrices: n_out x n_in weights with n_tokens columns.
struct asl_product {
    ggml_type type     = GGML_TYPE_F16;
    bool      repacked = false; // in the form that llama.cpp brings such weights into, if it has one
    int64_t   n_out    = 0;
    int64_t   n_tokens = 0;
    int64_t   n_in     = 0;
    int32_t   n_threads = 1;
};

// 1e9 operations per second of the quickest of some runs, and the name of the buffer type that held the weights.
// 0 if llama.cpp does not repack this type here. Throws std::runtime_error if it cannot be computed at all.
double asl_measure_product(const asl_product & product, std::string & buffer_name);
