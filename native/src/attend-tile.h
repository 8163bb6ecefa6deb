// The kernels of attend.h in F32, for vectors of S::W numbers (attend-rows.h).

#pragma once

#include "attend-rows.h"

// c[i][panel] = c[i]*factors[i] + sum over k of a[i][k]*b[k][panel]; without factors: without the first part.
// N panels, each of n*2*S::W numbers.
template <class S, int N, bool ADDS>
ASL_INLINE void multiply_rows(const float * a, int64_t lda, const float * b, int64_t n, float * c, int64_t ldc, const float * factors) {
    using vec = typename S::vec;
    (void) factors;
    const float * next = b + (N - 1) * n * 2 * S::W; // the second panel
    float * c_next = c + (N - 1) * 2 * S::W;
#define M(i) \
    vec x##i = S::set1(0.0f), y##i = x##i, z##i = x##i, w##i = x##i; \
    if (ADDS) { \
        const vec f = S::set1(factors[i]); \
        x##i = S::mul(S::load(c + i * ldc), f); \
        y##i = S::mul(S::load(c + i * ldc + S::W), f); \
        if (N == 2) { \
            z##i = S::mul(S::load(c_next + i * ldc), f); \
            w##i = S::mul(S::load(c_next + i * ldc + S::W), f); \
        } \
    }
    ASL_EACH_ROW(M)
#undef M
    for (int64_t k = 0; k < n; ++k, b += 2 * S::W, next += 2 * S::W) {
        const vec b0 = S::load(b), b1 = S::load(b + S::W);
        const vec b2 = N == 2 ? S::load(next) : b0, b3 = N == 2 ? S::load(next + S::W) : b1;
        vec f;
#define M(i) \
    f = S::set1(a[i * lda + k]); \
    x##i = S::fma(f, b0, x##i); \
    y##i = S::fma(f, b1, y##i); \
    if (N == 2) { \
        z##i = S::fma(f, b2, z##i); \
        w##i = S::fma(f, b3, w##i); \
    }
        ASL_EACH_ROW(M)
#undef M
    }
#define M(i) \
    S::store(c + i * ldc, x##i); \
    S::store(c + i * ldc + S::W, y##i); \
    if (N == 2) { \
        S::store(c_next + i * ldc, z##i); \
        S::store(c_next + i * ldc + S::W, w##i); \
    }
    ASL_EACH_ROW(M)
#undef M
}

// The same for n_out columns of c, in whole panels.
template <class S, bool ADDS>
ASL_INLINE void multiply_panels(const float * a, int64_t lda, const float * b, int64_t n, int64_t n_out, float * c, int64_t ldc,
        const float * factors) {
    int64_t p = 0;
    for (; p + S::PANELS * 2 * S::W <= n_out; p += S::PANELS * 2 * S::W) {
        multiply_rows<S, S::PANELS, ADDS>(a, lda, b + p * n, n, c + p, ldc, factors);
    }
    for (; p < n_out; p += 2 * S::W) {
        multiply_rows<S, 1, ADDS>(a, lda, b + p * n, n, c + p, ldc, factors);
    }
}

// Keys of a tile, from its first cell on; those that are not there are 0.
template <class S>
ASL_INLINE void pack_keys(const asl_attend & a, int64_t head, int64_t cell, attend_memory & m) {
    const asl_head_rows & k = a.k;
    const int64_t n = std::min(ASL_KEY_TILE, a.n_keys() - cell);
    for (int64_t i = 0; i < n; ++i) {
        read_row<S>(k.type, k.data + (cell + i) * k.nb_cell + head * k.nb_head, m.temp + i * k.n_embd, k.n_embd);
    }
    std::fill(m.temp + n * k.n_embd, m.temp + ASL_KEY_TILE * k.n_embd, 0.0f);
    pack_transposed<S>(m.temp, ASL_KEY_TILE, k.n_embd, m.k);
}

template <class S>
ASL_INLINE void pack_values(const asl_attend & a, int64_t head, int64_t cell, attend_memory & m) {
    const asl_head_rows & v = a.v;
    const int64_t PANEL = 2 * S::W;
    const int64_t n = std::min(ASL_KEY_TILE, a.n_keys() - cell);
    if (v.transposed) {
        for (int64_t d = 0; d < v.n_embd; ++d) {
            float * row = m.temp + d * ASL_KEY_TILE;
            read_row<S>(v.type, v.data + cell * v.nb_cell + head * v.nb_head + d * v.nb_embd, row, n);
            std::fill(row + n, row + ASL_KEY_TILE, 0.0f);
        }
        std::fill(m.temp + v.n_embd * ASL_KEY_TILE, m.temp + m.n_embd_v * ASL_KEY_TILE, 0.0f);
        pack_transposed<S>(m.temp, m.n_embd_v, ASL_KEY_TILE, m.v);
        return;
    }
    std::fill(m.temp, m.temp + m.n_embd_v, 0.0f);
    for (int64_t i = 0; i < ASL_KEY_TILE; ++i) {
        if (i < n) {
            read_row<S>(v.type, v.data + (cell + i) * v.nb_cell + head * v.nb_head, m.temp, v.n_embd);
        } else {
            std::fill(m.temp, m.temp + v.n_embd, 0.0f);
        }
        for (int64_t d = 0; d < m.n_embd_v; d += S::W) {
            S::store(m.v + d / PANEL * ASL_KEY_TILE * PANEL + i * PANEL + d % PANEL, S::load(m.temp + d));
        }
    }
}

// Logits of a group of scaled queries for the keys of a tile, before any limit.
template <class S>
ASL_INLINE void compute_logits(const asl_attend & a, const float * q, const float * k, float * s) {
    multiply_panels<S, false>(q, a.k.n_embd, k, a.k.n_embd, ASL_KEY_TILE, s, ASL_KEY_TILE, nullptr);
    cap_logits<S>(a, s);
}

// Rows begin..end-1 of the block, whole groups, and the keys of a tile.
template <class S>
ASL_INLINE void attend_stage(const asl_attend & a, int64_t begin, int64_t end, int64_t first, int64_t cell, attend_memory & m) {
    float factors[N_STAGE];
    for (int64_t r = begin; r < end; r += ASL_ROW_GROUP) {
        compute_logits<S>(a, m.q + r * a.k.n_embd, m.k, m.s + (r - begin) * ASL_KEY_TILE);
    }
    for (int64_t r = begin; r < end; r += ASL_ROW_GROUP) {
        float * s = m.s + (r - begin) * ASL_KEY_TILE;
        limit_group<S>(a, r, first, cell, m, s);
        soften<S>(s, m.max + r, m.sum + r, factors + (r - begin));
    }
    for (int64_t r = begin; r < end; r += ASL_ROW_GROUP) {
        multiply_panels<S, true>(m.s + (r - begin) * ASL_KEY_TILE, ASL_KEY_TILE, m.v, ASL_KEY_TILE, m.n_embd_v, m.o + r * m.n_embd_v,
                m.n_embd_v, factors + (r - begin));
    }
}

template <class S>
ASL_TARGET static void attend_block(const asl_attend & a, int64_t head_kv, int64_t first, int64_t last) {
    const int64_t n_group = a.n_group(), n_rows = (last - first) * n_group;
    attend_memory m(a, round_up(n_rows, ASL_ROW_GROUP), round_up(a.v.n_embd, 2 * S::W));
    begin_rows(a, first, n_rows, m);
    std::fill(m.q + n_rows * a.k.n_embd, m.q + m.n_rows * a.k.n_embd, 0.0f);
    for (int64_t r = 0; r < n_rows; ++r) {
        scale_query<S>(a, first + r / n_group, head_kv * n_group + r % n_group, m.q + r * a.k.n_embd);
    }
    const int64_t begin = m.begin(0) / ASL_KEY_TILE * ASL_KEY_TILE, end = m.end(n_rows - 1);
    for (int64_t cell = begin; cell < end; cell += ASL_KEY_TILE) {
        pack_keys<S>(a, head_kv, cell, m);
        pack_values<S>(a, head_kv, cell, m);
        const row_range rows = rows_that_see(m, n_rows, cell);
        for (int64_t r = rows.begin; r < rows.end; r += N_STAGE) {
            attend_stage<S>(a, r, std::min(r + N_STAGE, rows.end), first, cell, m);
        }
    }
    for (int64_t r = 0; r < n_rows; ++r) {
        end_row<S>(a, first + r / n_group, head_kv * n_group + r % n_group, m.o + r * m.n_embd_v, m.max[r], m.sum[r]);
    }
}

// One row of the window: its attention to the keys of a tile, times `factor`.
template <class S>
ASL_INLINE void add_attention(const float * s, float max, float factor, float * dst) {
    for (int64_t i = 0; i < ASL_KEY_TILE; i += S::W) {
        const auto p = exp_of<S>(S::sub(S::load(s + i), S::set1(max)));
        S::store(dst + i, S::fma(p, S::set1(factor), S::load(dst + i)));
    }
}

template <class S>
ASL_TARGET static void score_tile(const asl_attend & a, int64_t head_kv, int64_t tile, float * dst) {
    const int64_t n_group = a.n_group(), n_rows = a.n_queries * n_group, cell = tile * ASL_KEY_TILE;
    attend_memory m(a, ASL_ROW_GROUP, 0);
    pack_keys<S>(a, head_kv, cell, m);
    std::fill(m.q, m.q + ASL_ROW_GROUP * a.k.n_embd, 0.0f);
    std::fill(m.temp, m.temp + ASL_KEY_TILE, 0.0f);
    for (int64_t r = 0; r < n_rows; r += ASL_ROW_GROUP) {
        const int64_t n = std::min(ASL_ROW_GROUP, n_rows - r);
        for (int64_t i = 0; i < n; ++i) {
            scale_query<S>(a, a.n_tokens - a.n_queries + (r + i) / n_group, head_kv * n_group + (r + i) % n_group, m.q + i * a.k.n_embd);
        }
        compute_logits<S>(a, m.q, m.k, m.s);
        for (int64_t i = 0; i < n; ++i) {
            const int64_t i_query = (r + i) / n_group, t = a.n_tokens - a.n_queries + i_query;
            const float * stats = a.softmax + (i_query * a.n_head + head_kv * n_group + (r + i) % n_group) * 2;
            const asl_key_range keys = asl_keys_of(a, t);
            if (stats[1] > 0.0f) {
                float * s = m.s + i * ASL_KEY_TILE;
                limit_keys<S>(a, t, cell, keys.begin - cell, keys.end - cell, s);
                add_attention<S>(s, stats[0], (a.weights ? a.weights[i_query] : 1.0f) / stats[1], m.temp);
            }
        }
    }
    memcpy(dst, m.temp, std::min(ASL_KEY_TILE, a.n_keys() - cell) * sizeof(float));
}
