// asl-kernels.h: kernels of our own for CPUs, which there are and what they compute; a part of the C ABI (asl.h). What a
// prefill uses of them, asl_session_set_dequant says.

#pragma once

#include "asl-export.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// Which weight types ASL_DEQUANT_AUTO packs or expands on this machine, in one line.
ASL_API const char * asl_kernel_rule(void);

// Name of a ggml_type that model weights can have; NULL for any other number.
ASL_API const char * asl_kernel_type_name(int32_t type);

// Whether ASL_DEQUANT_AUTO packs or expands weights of this ggml_type, and one line that says why.
ASL_API bool asl_kernel_expands(int32_t type, char * reason, size_t n_reason);

// How fast a product of n_out x n_in weights with n_tokens columns of F32 is on this machine's CPU.
//   held      0: in host memory as stored. 1: in the form that llama.cpp brings such weights into when it loads a model.
//             2, 3: packed by us, activations of 8 or 16 bits
//   gflops    receives 1e9 operations per second
//   pack_ns   receives the nanoseconds a weight that packing takes from this form (held 0 and 1), 0 if it cannot be packed
//   buffer    receives the name of the buffer type that held the weights, or one line that says what is wrong
// Returns false if the type is not held so here, or the product cannot be computed.
ASL_API bool asl_kernel_measure(int32_t type, int32_t held, int32_t n_out, int32_t n_tokens, int32_t n_in, int32_t n_threads,
        float * gflops, float * pack_ns, char * buffer, size_t n_buffer);

// How llama.cpp repacks weights of this ggml_type on this machine when it loads a model: blocks of so many rows interleaved, so
// many bytes of a row together. Returns false if it does not, or in a way that packing does not know.
ASL_API bool asl_kernel_repacked(int32_t type, int32_t * rows, int32_t * chunk);

// What one core of this CPU can do at most, in 1e9 operations per CPU second: n_bits 32 for F32, 16 and 8 for integers.
// Measured at each call, some ms. 0 where that is not known.
ASL_API float asl_kernel_peak(int32_t n_bits);

// The kernel of products with packed weights that is in force here: "scalar", "AVX2" or "AVX-512 VNNI".
ASL_API const char * asl_packed_kernel_name(void);

// One product with packed weights, for tests.
//   kernel    a name as above
//   weights   n_out rows of n_in weights of this ggml_type, as stored (rows and chunk 0), or as llama.cpp repacks them:
//             the blocks of so many rows interleaved, so many bytes of a row together
//   act_bits  8 or 16
//   x         float [n_tokens, n_in]
//   y         float [n_tokens, n_out]
// Returns false if the type cannot be packed, or is not repacked so, sizes do not fit, or the kernel does not run here.
// Twins: packed_product and repacked in tests/twins.py
ASL_API bool asl_packed_product(const char * kernel, int32_t type, const void * weights, int32_t rows, int32_t chunk, int32_t n_out,
        int32_t n_in, int32_t act_bits, const float * x, int32_t n_tokens, float * y);

// The same for experts: each token is multiplied with the matrices of those that were chosen for it.
//   weights   n_expert matrices as above, one after another
//   ids       int32 [n_tokens, n_used]
//   x         float [n_tokens, n_acts, n_in]; n_acts is 1, or n_used: of each expert chosen
//   y         float [n_tokens, n_used, n_out]
//   n_threads parts that are computed one after another
// Twin: expert_product in tests/twins.py
ASL_API bool asl_packed_experts(const char * kernel, int32_t type, const void * weights, int32_t rows, int32_t chunk,
        int32_t n_expert, int32_t n_out, int32_t n_in, int32_t act_bits, const int32_t * ids, int32_t n_used, const float * x,
        int32_t n_acts, int32_t n_tokens, int32_t n_threads, float * y);

// One product of few rows as decoding has them, with weights as stored, for tests.
//   kernel    "scalar" or "AVX-512 VNNI"
//   x         float [n_rows, n_in], rounded to 8 bits
//   y         float [n_rows, n_out]
// Returns false if there is no such product for the type (of Q4_1, Q5_0, Q5_1 there is), sizes do not fit, or the kernel does
// not run here. Twin: packed_product in tests/twins.py
ASL_API bool asl_row_product(const char * kernel, int32_t type, const void * weights, int32_t n_out, int32_t n_in, const float * x,
        int32_t n_rows, float * y);

// The attention kernel that is in force here: "AVX2", "AVX-512" or "scalar", which is never used in a prefill: llama.cpp's
// attention is faster.
ASL_API const char * asl_attention_kernel_name(void);

// Causal attention of a chunk, for tests. Token t lies in cell n_past + t; there are n_past + n_tokens cells.
typedef struct asl_attention_case {
    int32_t n_tokens;
    int32_t n_past;
    int32_t n_head;
    int32_t n_head_kv;
    int32_t n_embd_k;  // elements of a head
    int32_t n_embd_v;
    int32_t n_swa;     // cells that a token attends to, 0 for all
    int32_t n_queries; // last tokens whose attention is summed
    int32_t type_k;    // ggml_type
    int32_t type_v;
    int32_t n_threads; // parts that are computed one after another
    bool v_transposed; // v is [n_head_kv, n_embd_v, cells], F16 or F32
    bool is_rounded;   // to integers of 16 bits
    float scale;
    float cap;       // softmax of scale*cap*tanh(cap_scale*kq), 0 for scale*kq
    float cap_scale;
    const float * q;   // [n_tokens, n_head, n_embd_k]
    const void * k;   // [cells, n_head_kv, n_embd_k]
    const void * v;   // [cells, n_head_kv, n_embd_v]
    const float * sinks;   // [n_head], may be NULL
    const float * mask;    // [n_tokens, cells], added to the logits in place of the causal order; may be NULL
    const float * weights; // [n_queries], may be NULL for 1
} asl_attention_case;

//   kernel  a name as above, or "plain 16"
//   y       float [n_tokens, n_head, n_embd_v]
//   scores  float [n_head_kv, cells]: sum over queries and heads of the group of weight times attention; NULL without queries
// Returns false if the case is none, the kernel does not run here, or it does not round.
// Twins: attention and rounded_attention in tests/twins.py
ASL_API bool asl_attention_compute(const char * kernel, const asl_attention_case * c, float * y, float * scores);

// A short convolution of a layer that remembers a state, for tests.
//   kernel  "scalar", "AVX2" or "AVX-512"
//   past    float [n_channels, n_taps - 1], the inputs before the chunk's
//   x       float [n_tokens, n_channels]
//   w       float [n_channels, n_taps]
//   joined  receives float [n_channels, n_taps - 1 + n_tokens]
//   y       float [n_tokens, n_channels]
// Returns false if the kernel does not run here or a size is below 1. Twin: short_convolution in tests/twins.py
ASL_API bool asl_short_convolution(const char * kernel, const float * past, const float * x, const float * w, int32_t n_channels,
        int32_t n_tokens, int32_t n_taps, int32_t n_threads, float * joined, float * y);

// Gated delta nets over a chunk, for tests; kernel as above.
//   q, k       float [n_tokens, n_head_k, n]; head h has those of h modulo n_head_k
//   v          float [n_tokens, n_head, n]
//   g          float [n_tokens, n_head, n_g], n_g 1 or n: logarithms of what is left of the state
//   beta       float [n_tokens, n_head]
//   state      float [n_head, n, n], of values, then keys
//   new_state  as the state
//   y          float [n_tokens, n_head, n]
// Returns false if the kernel does not run here or there are no such nets of these sizes (n: 32 to 256, in steps of 32).
// Twin: delta_nets in tests/twins.py
ASL_API bool asl_delta_nets(const char * kernel, const float * q, const float * k, const float * v, const float * g,
        const float * beta, const float * state, int32_t n, int32_t n_head, int32_t n_head_k, int32_t n_g, int32_t n_tokens,
        int32_t n_threads, float * new_state, float * y);

#ifdef __cplusplus
}
#endif
