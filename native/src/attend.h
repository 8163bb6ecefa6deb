// Causal attention of a chunk, computed over tiles of keys with a running softmax: F32 arithmetic, whatever K and V are
// stored in. No mask is read, but for sliding windows over tokens that do not follow each other.
//
// Tiles begin at fixed cells and each row of queries is summed by itself, so that the result depends neither on the
// chunks nor on the threads. Every kernel gives the bits of the scalar one.

#pragma once

#include "ggml.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

// keys of a tile, which begins at a multiple of it
static const int64_t ASL_KEY_TILE = 64;
// rows of queries that a kernel works on at once
static const int64_t ASL_ROW_GROUP = 6;
// where the exponential is 0
static const float ASL_EXP_MIN = -87.0f;

// Rounded attention. Queries (scaled), keys and values become integers of 16 bits times a unit for each row, which is such
// that the largest is at most this, and the root of the sum of squares of a query and a key at most that: no sum of their
// products leaves 32 bits.
static const float ASL_INT_MAX = 32767.0f;
static const float ASL_NORM_MAX = 46000.0f;
// Values are integers of 14 bits. The weights of a row for the keys of a tile, each times the unit of its value, become
// integers whose largest is ASL_INT_MAX at most and whose sum is this: times a value again below 2^31.
static const float ASL_VALUE_MAX = 8191.0f;
static const float ASL_WEIGHTS_MAX = 262000.0f;
// a row whose unit would be less counts as 0
static const float ASL_UNIT_MIN = 1e-20f;

struct asl_rounding {
    float unit, inverse;
};

// Of a row with this largest absolute value and sum of squares (sixteen sums, as those of weights: attend.cpp).
inline asl_rounding asl_round_to(float largest, float squares, bool is_value) {
    const float unit = is_value ? largest / ASL_VALUE_MAX : std::max(largest / ASL_INT_MAX, std::sqrt(squares) / ASL_NORM_MAX);
    const bool is_zero = !(unit > ASL_UNIT_MIN);
    return { std::fma(squares, 0.0f, is_zero ? 0.0f : unit), is_zero ? 0.0f : 1.0f / unit }; // what is no number stays none
}

// K or V of all KV heads: rows of a head's elements, or, transposed, rows of cells.
struct asl_head_rows {
    ggml_type type = GGML_TYPE_F16;
    const char * data = nullptr;
    int64_t n_embd = 0; // elements of a head
    size_t nb_cell = 0; // bytes from a cell to the next
    size_t nb_head = 0;
    size_t nb_embd = 0; // from an element to the next, where transposed
    bool transposed = false; // F16 or F32
};

// One chunk in one layer. Token t lies in cell n_past + t and attends to the cells up to its own.
struct asl_attend {
    int64_t n_tokens = 0;
    int64_t n_past = 0;
    int64_t n_head = 0;
    int64_t n_head_kv = 0;
    int64_t n_swa = 0; // cells that a token attends to, 0 for all

    const char * q = nullptr; // F32 rows of k.n_embd elements
    size_t nb_q_token = 0;
    size_t nb_q_head = 0;
    asl_head_rows k;
    asl_head_rows v;

    float scale = 1.0f;
    float cap = 0.0f; // of the logits: cap*tanh(cap_scale*kq), times scale; 0 for none
    float cap_scale = 1.0f;
    const float * sinks = nullptr; // [n_head], may be NULL

    // added to the logits, and in place of the causal order: F16 or F32 [n_tokens, cells], may be NULL
    const char * mask = nullptr;
    ggml_type mask_type = GGML_TYPE_F32;
    size_t nb_mask = 0;

    bool is_rounded = false; // queries, keys, values and weights: a kernel's attend_rounded

    float * y = nullptr; // [n_tokens, n_head, v.n_embd]

    // of the last tokens' queries, whose attention is summed for each key
    int64_t n_queries = 0;
    float * softmax = nullptr;       // [n_queries, n_head, 2]: maximum and sum of the softmax
    const float * weights = nullptr; // [n_queries], NULL for 1

    int64_t n_group() const { return n_head / n_head_kv; }
    int64_t n_keys() const { return n_past + n_tokens; }
};

struct asl_attend_kernel {
    const char * name;

    // Tokens begin..end-1 of the query heads of one KV head: y, and softmax where they belong to n_queries.
    void (*attend)(const asl_attend & a, int64_t head_kv, int64_t begin, int64_t end);

    // The same over integers of 16 bits, NULL where that is no faster.
    void (*attend_rounded)(const asl_attend & a, int64_t head_kv, int64_t begin, int64_t end);

    // dst[i] = sum over queries and heads of the group of weight times attention to cell tile*ASL_KEY_TILE + i. After
    // attend for all of them.
    void (*score)(const asl_attend & a, int64_t head_kv, int64_t tile, float * dst);
};

// Cells [begin, end) that token t may attend to; with a mask, all.
struct asl_key_range {
    int64_t begin, end;
};

inline asl_key_range asl_keys_of(const asl_attend & a, int64_t t) {
    const int64_t end = a.mask ? a.n_keys() : a.n_past + t + 1;
    return { a.n_swa > 0 && !a.mask && end > a.n_swa ? end - a.n_swa : 0, end };
}

// Value of the mask for token t and a cell.
float asl_mask_value(const asl_attend & a, int64_t t, int64_t cell);

// n numbers of any type in F32.
void asl_read_f32(ggml_type type, const void * src, float * dst, int64_t n);

// The kernel of this name, NULL if there is none or this machine cannot run it: "scalar", "AVX2", "AVX-512", and "plain 16",
// which is the code of the AVX-512 kernel over numbers in memory.
const asl_attend_kernel * asl_find_attend_kernel(const char * name);

// The fastest one that runs here and gives the scalar one's bits on small cases, which are computed once.
const asl_attend_kernel & asl_attend_kernel_in_force();

// All of a chunk: the part of thread ith of nth.
void asl_attend_part(const asl_attend_kernel & kernel, const asl_attend & a, int ith, int nth);

// scores[head_kv][cell] for all cells, rows of n_row numbers: the part of thread ith of nth.
void asl_score_part(const asl_attend_kernel & kernel, const asl_attend & a, float * scores, int64_t n_row, int ith, int nth);

// defined by attend-avx2.cpp and attend-avx512.cpp. NULL where they were not compiled, or the processor lacks something
const asl_attend_kernel * asl_attend_kernel_avx2();
const asl_attend_kernel * asl_attend_kernel_avx512();
// attend-vnni.cpp: attend_rounded on AVX-512 with VNNI, or NULL
decltype(asl_attend_kernel::attend_rounded) asl_attend_rounded_vnni();
// attend-plain.cpp
const asl_attend_kernel * asl_attend_kernel_plain();
