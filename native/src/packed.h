// Products with quantised weights that were packed for them: unsigned bytes in panels of 16 outputs, and a scale and a
// minimum per block of 32 inputs (16 for some types), so that a weight is d*q + m. The activations are rounded per 32
// inputs to 8 or 16 bits, and the products of a block are summed as integers.
//
// Every kernel gives the bits of the scalar one, whatever the number of tokens, threads and outputs.

#pragma once

#include "repacked.h"

#include "ggml.h"

#include <cstddef>
#include <cstdint>

// outputs of a panel
static const int64_t ASL_PANEL = 16;
// inputs that share a scale of the activations
static const int64_t ASL_ACT_BLOCK = 32;
// activations whose largest one is below this count as 0: the inverse of their scale might be infinite
static const float ASL_MIN_ABS = 1e-30f;

// How a type is packed.
struct asl_packed_form {
    int width = 0; // inputs of a block of weights, 32 or 16. 0: the type cannot be packed
    int bits = 0; // of a weight: 4, 5, 6 or 8
};

asl_packed_form asl_find_packed_form(ggml_type type);

// A weight matrix in packed form. For each panel and block: bytes [width/4][16 outputs][4 inputs], then f32 d[16], m[16].
// Outputs that fill up the last panel are 0.
struct asl_packed_matrix {
    asl_packed_form form;
    int64_t n_out = 0;
    int64_t n_in = 0;
    const uint8_t * data = nullptr; // aligned to 64 bytes

    int64_t n_panels() const { return (n_out + ASL_PANEL - 1) / ASL_PANEL; }
    size_t block_bytes() const { return (size_t) form.width * ASL_PANEL + 2 * ASL_PANEL * sizeof(float); }
    size_t panel_bytes() const { return n_in / form.width * block_bytes(); }
    size_t n_bytes() const { return n_panels() * panel_bytes(); }
};

// Packs panels begin..end-1 of a matrix of this type, rows of n_in weights one after another as stored, or repacked in this
// form, into dst, where the whole packed matrix lies.
void asl_pack(ggml_type type, const void * src, asl_repacked_form repacked, const asl_packed_matrix & matrix, int64_t begin,
        int64_t end, uint8_t * dst);

// Activations of one token: n_in integers of n_bits, then f32 d[n_in/32], then f32 s[n_in/width]: a value is d*q, and s
// is d times the sum of a block's integers. Of 16 bits, the integers of each four lie in the order 0, 2, 1, 3.
struct asl_act_form {
    int n_bits = 8; // 8 or 16
    int width = 32; // of the weights
    int64_t n_in = 0;

    size_t d_offset() const { return n_in * (n_bits / 8); }
    size_t s_offset() const { return d_offset() + n_in / ASL_ACT_BLOCK * sizeof(float); }
    size_t row_bytes() const { return s_offset() + n_in / width * sizeof(float); }
};

// The tokens of a product: where their activations lie, and where their outputs go.
struct asl_packed_tokens {
    const uint8_t * acts = nullptr; // rows of a form
    float * y = nullptr;
    int64_t ldy = 0; // from one row of y to the next
    int64_t n = 0;
    const int32_t * act_rows = nullptr; // of each token; NULL: they follow each other
    const int32_t * y_rows = nullptr;

    const uint8_t * get_acts(const asl_act_form & form, int64_t t) const { return acts + (act_rows ? act_rows[t] : t) * form.row_bytes(); }
    float * get_y(int64_t t) const { return y + (y_rows ? y_rows[t] : t) * ldy; }
};

struct asl_packed_kernel {
    const char * name;

    // one token
    void (*quantise)(const asl_act_form & form, const float * x, uint8_t * dst);

    // Outputs of panels begin..end-1 for all tokens
    void (*product)(const asl_packed_matrix & w, const asl_act_form & form, const asl_packed_tokens & tokens, int64_t begin,
            int64_t end);
};

// The kernel of this name, NULL if there is none or this machine cannot run it: "scalar", "AVX2", "AVX-512 VNNI".
const asl_packed_kernel * asl_find_packed_kernel(const char * name);

// The fastest one that runs here and gives the scalar one's bits on a small product, which is computed once.
const asl_packed_kernel & asl_packed_kernel_in_force();

// Weights of a matrix that are packed as they are multiplied.
struct asl_packed_source {
    ggml_type type = GGML_TYPE_F32;
    const uint8_t * data = nullptr;
    asl_repacked_form repacked;
};

// Packs panels begin..end-1 of a matrix, some at a time, which stay in the second-level cache, and multiplies them. What
// shape.data is does not matter.
void asl_pack_and_multiply(const asl_packed_kernel & kernel, const asl_packed_source & source, const asl_packed_matrix & shape,
        const asl_act_form & form, const asl_packed_tokens & tokens, int64_t begin, int64_t end);

// One product from weights as stored, or repacked in this form, to outputs y[n_tokens][n_out]. Returns false if the type
// cannot be packed, n_in is not a number of whole blocks, or n_out not one of whole groups.
bool asl_compute_packed(const asl_packed_kernel & kernel, ggml_type type, const void * weights, asl_repacked_form repacked,
        int64_t n_out, int64_t n_in, int act_bits, const float * x, int64_t n_tokens, float * y);

// Whether a matrix of this type and form, of these sizes, can be packed; and its shape.
bool asl_shape_packed(ggml_type type, asl_repacked_form repacked, int64_t n_out, int64_t n_in, asl_packed_matrix & shape);

// defined by packed-avx2.cpp and packed-avx512.cpp. NULL where they were not compiled, or the processor lacks something
const asl_packed_kernel * asl_packed_kernel_avx2();
const asl_packed_kernel * asl_packed_kernel_avx512();
bool asl_has_avx512_vnni();
