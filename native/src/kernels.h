// Which weight types run faster in another form on this CPU: a table of measurements, and the means to measure again.

#pragma once

#include "asl.h"

#include "ggml.h"

#include <cstdint>
#include <string>

// How a weight matrix is held while its layer runs.
enum class asl_held {
    stored,
    f16,
    int8,  // packed (packed.h), activations of 8 bits
    int16, // packed, activations of 16 bits
};

// What a mode does with weights of a type in ordinary host memory. can_pack: whether their product can be computed
// with packed weights.
asl_held asl_choose_held(asl_dequant mode, ggml_type type, bool can_pack);

// Bits that activations are rounded to for packed weights: 8 or 16.
int asl_act_bits(asl_dequant mode);

// What ASL_DEQUANT_AUTO does with weights of a type, and why.
std::string asl_kernel_reason(ggml_type type);

// One line: which row of the table is in force.
const std::string & asl_kernel_rule_line();

// Whether weights of models have this type.
bool asl_is_weight_type(int32_t type);

// One product of matrices: n_out x n_in weights with n_tokens columns.
struct asl_product {
    ggml_type type = GGML_TYPE_F16;
    int32_t held = 0; // 0 as stored, 1 as llama.cpp repacks such weights, 2 and 3 packed, activations of 8 and 16 bits
    int64_t n_out = 0;
    int64_t n_tokens = 0;
    int64_t n_in = 0;
    int32_t n_threads = 1;
};

// 1e9 operations per second of the quickest of some runs, and the name of the buffer type that held the weights.
// 0 if this type is not held so here. Throws std::runtime_error if it cannot be computed at all.
double asl_measure_product(const asl_product & product, std::string & buffer_name);
