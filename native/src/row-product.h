// Products of few rows, as decoding has them, with weights as they are stored: for types of which llama.cpp has no kernel that
// is as fast as memory (Q4_1, Q5_0, Q5_1). Activations are rounded per 32 inputs to 8 bits, as llama.cpp does. Each row is
// summed by itself: what else is decoded changes no bit.

#pragma once

#include "asl.h"

#include "ggml.h"

#include <cstdint>

struct llama_context;

// Activations of a row, ready for kernels: integers of groups of four blocks of 32, the first halves of each block before the
// second ones; scales d, and sums s of a block's integers times d. Blocks that fill up the last group are 0.
struct asl_rounded_row {
    const int8_t * q; // [n_groups][2][4][16]
    const float * d;  // [n_groups*4, to whole sixteens]
    const float * s;
};

struct asl_row_kernel {
    const char * name;

    // One output: the product of n_blocks stored blocks and a row.
    float (*multiply)(ggml_type type, const uint8_t * weights, int64_t n_blocks, const asl_rounded_row & row);
};

// "scalar", or "AVX-512 VNNI" where it runs; else NULL.
const asl_row_kernel * asl_find_row_kernel(const char * name);

// Whether rows of this type can be multiplied.
bool asl_has_row_product(ggml_type type);

// x: float [n_rows][n_in], y: float [n_rows][n_out]. Returns false if the type has no such product or rows are no whole blocks.
bool asl_compute_rows(const asl_row_kernel & kernel, ggml_type type, const uint8_t * weights, int64_t n_out, int64_t n_in,
        const float * x, int64_t n_rows, float * y);

// From now on this context computes such products so where the mode rounds activations to 8 bits here and the model runs on
// the CPU alone. ASL_DEQUANT_OFF: llama.cpp's kernels.
void asl_set_row_products(llama_context & ctx, asl_dequant mode);

// defined by row-product-avx512.cpp; NULL where it was not compiled, or the processor lacks something
const asl_row_kernel * asl_row_kernel_avx512();
