// Which weight types run faster in another form on this CPU: a table of measurements, and the means to measure again.

#pragma once

#include "asl.h"
#include "repacked.h"

#include "ggml.h"

#include <cstdint>
#include <string>

// below this many tokens nothing is packed or expanded: it costs more than the faster product saves
const int64_t ASL_PACK_TOKENS_MIN = 32;
// the same for an expert's share of a chunk: its weights are packed for each chunk
const int64_t ASL_PACK_EXPERT_TOKENS_MIN = 4;

// How a weight matrix is held while its layer runs.
enum class asl_held {
    stored,
    f16,
    int8,  // packed (packed.h), activations of 8 bits
    int16, // packed, activations of 16 bits
};

// A product of weights in memory that the CPU reads.
struct asl_weight_use {
    ggml_type type = GGML_TYPE_F16;
    bool can_pack = false; // it can be computed with packed weights
    bool repacked = false; // llama.cpp has repacked them (repacked.h)
    int64_t n_tokens = 0;  // that run through the layer
    bool of_experts = false;
    int64_t n_tokens_expert = 0; // of a chunk, that an expert gets on average
};

asl_held asl_choose_held(asl_dequant mode, const asl_weight_use & use);

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

struct asl_measured {
    double gflops = 0; // 1e9 operations per second of the quickest of some runs. 0 if this type is not held so here
    double pack_ns = 0; // a weight, where packing is from this form. 0: it cannot be packed
    std::string buffer_name; // of the buffer type that held the weights
};

// Throws std::runtime_error if it cannot be computed at all.
asl_measured asl_measure_product(const asl_product & product);

// How llama.cpp repacks weights of this type here.
asl_repacked_form asl_repacked_here(ggml_type type);
