// Attention over integers of 16 bits (attend.h says which) for vectors of S::W numbers, beside attend-tile.h, which asks S
// for the rest:
//   ivec, zero(), to_float(i): integers
//   dot2(sum, a, b): to each sum, the products of both integers of 16 bits that lie in its place in a and b
//   store16(dst, x): numbers, rounded, as integers of 16 bits
//   pairs(lower, upper): integers of 16 bits of two rows, side by side
// Two integers lie where a number would, so that what moves numbers moves them too.

#pragma once

#include "attend-tile.h"

// n numbers, a multiple of 16, as integers. Returns the unit.
template <class S, bool IS_VALUE>
ASL_INLINE float round_row(const float * x, int64_t n, float * dst) {
    const int64_t N = 16 / S::W;
    typename S::vec squares[N], largest[N];
    for (int64_t j = 0; j < N; ++j) {
        squares[j] = largest[j] = S::set1(0.0f);
    }
    for (int64_t k = 0; k < n; k += 16) {
        for (int64_t j = 0; j < N; ++j) {
            const auto v = S::load(x + k + j * S::W);
            squares[j] = S::fma(v, v, squares[j]);
            largest[j] = S::max(largest[j], S::abs(v));
        }
    }
    const float sum = S::sum_of(squares);
    const asl_rounding r = asl_round_to(S::max_of(S::max(largest[0], largest[N - 1])), sum, IS_VALUE);
    for (int64_t k = 0; k < n; k += S::W) {
        S::store16((char *) dst + k * sizeof(int16_t), S::mul(S::load(x + k), S::set1(r.inverse)));
    }
    return r.unit;
}

// Rows of a group (a) times n pairs of N panels (b). Logits: c = sums*columns*rows. Values: c = c*factors + sums*rows.
template <class S, int N, bool IS_VALUE>
ASL_INLINE void dot_rows(const float * a, int64_t lda, const float * b, int64_t n, float * c, int64_t ldc, const float * rows,
        const float * columns, const float * factors) {
    using vec = typename S::vec;
    (void) columns;
    (void) factors;
    const int64_t next = (N - 1) * n * 2 * S::W; // to the second panel
#define M(i) typename S::ivec x##i = S::zero(), y##i = x##i, z##i = x##i, w##i = x##i;
    ASL_EACH_ROW(M)
#undef M
    for (int64_t k = 0; k < n; ++k, b += 2 * S::W) {
        const vec b0 = S::load(b), b1 = S::load(b + S::W);
        const vec b2 = N == 2 ? S::load(b + next) : b0, b3 = N == 2 ? S::load(b + next + S::W) : b1;
        vec f;
#define M(i) \
    f = S::set1(a[i * lda + k]); \
    x##i = S::dot2(x##i, b0, f); \
    y##i = S::dot2(y##i, b1, f); \
    if (N == 2) { \
        z##i = S::dot2(z##i, b2, f); \
        w##i = S::dot2(w##i, b3, f); \
    }
        ASL_EACH_ROW(M)
#undef M
    }
#define FINISH(i, j, sum) \
    { \
        float * at = c + i * ldc + j * S::W; \
        const vec v = S::to_float(sum), unit = S::set1(rows[i]); \
        S::store(at, IS_VALUE ? S::fma(v, unit, S::mul(S::load(at), S::set1(factors[i]))) \
                              : S::mul(S::mul(v, S::load(columns + j * S::W)), unit)); \
    }
#define M(i) \
    FINISH(i, 0, x##i) \
    FINISH(i, 1, y##i) \
    if (N == 2) { \
        FINISH(i, 2, z##i) \
        FINISH(i, 3, w##i) \
    }
    ASL_EACH_ROW(M)
#undef M
#undef FINISH
}

// The same for n_out columns of c, in whole panels.
template <class S, bool IS_VALUE>
ASL_INLINE void dot_panels(const float * a, int64_t lda, const float * b, int64_t n, int64_t n_out, float * c, int64_t ldc,
        const float * rows, const float * columns, const float * factors) {
    int64_t p = 0;
    for (; p + S::PANELS * 2 * S::W <= n_out; p += S::PANELS * 2 * S::W) {
        dot_rows<S, S::PANELS, IS_VALUE>(a, lda, b + p * n, n, c + p, ldc, rows, columns + p, factors);
    }
    for (; p < n_out; p += 2 * S::W) {
        dot_rows<S, 1, IS_VALUE>(a, lda, b + p * n, n, c + p, ldc, rows, columns + p, factors);
    }
}

// elements of a key, in whole vectors
inline int64_t padded_k(const asl_attend & a) { return round_up(a.k.n_embd, 16); }

template <class S>
ASL_INLINE void round_keys(const asl_attend & a, int64_t head, int64_t cell, attend_memory & m) {
    const asl_head_rows & k = a.k;
    const int64_t n = std::min(ASL_KEY_TILE, a.n_keys() - cell), n_k = padded_k(a);
    std::fill(m.row, m.row + n_k, 0.0f);
    for (int64_t i = 0; i < ASL_KEY_TILE; ++i) {
        if (i < n) {
            read_row<S>(k.type, k.data + (cell + i) * k.nb_cell + head * k.nb_head, m.row, k.n_embd);
        } else {
            std::fill(m.row, m.row + k.n_embd, 0.0f);
        }
        m.unit_k[i] = round_row<S, false>(m.row, n_k, m.temp + i * n_k / 2);
    }
    pack_transposed<S>(m.temp, ASL_KEY_TILE, n_k / 2, m.k);
}

template <class S>
ASL_INLINE void round_values(const asl_attend & a, int64_t head, int64_t cell, attend_memory & m) {
    const asl_head_rows & v = a.v;
    const int64_t PANEL = 2 * S::W, n_v = m.n_embd_v;
    const int64_t n = std::min(ASL_KEY_TILE, a.n_keys() - cell);
    std::fill(m.temp, m.temp + n_v * ASL_KEY_TILE, 0.0f);
    if (v.transposed) {
        for (int64_t d = 0; d < v.n_embd; ++d) {
            read_row<S>(v.type, v.data + cell * v.nb_cell + head * v.nb_head + d * v.nb_embd, m.rows + d * ASL_KEY_TILE, n);
            std::fill(m.rows + d * ASL_KEY_TILE + n, m.rows + (d + 1) * ASL_KEY_TILE, 0.0f);
        }
        std::fill(m.rows + v.n_embd * ASL_KEY_TILE, m.rows + n_v * ASL_KEY_TILE, 0.0f);
        for (int64_t d = 0; d < n_v; d += 8) {
            for (int64_t i = 0; i < ASL_KEY_TILE; i += 8) {
                S::transpose8(m.rows + d * ASL_KEY_TILE + i, ASL_KEY_TILE, m.temp + i * n_v + d, n_v);
            }
        }
    } else {
        for (int64_t i = 0; i < n; ++i) {
            read_row<S>(v.type, v.data + (cell + i) * v.nb_cell + head * v.nb_head, m.temp + i * n_v, v.n_embd);
        }
    }
    for (int64_t i = 0; i < ASL_KEY_TILE; ++i) {
        m.unit_v[i] = round_row<S, true>(m.temp + i * n_v, n_v, m.rows + i * n_v / 2);
    }
    for (int64_t j = 0; j < ASL_KEY_TILE / 2; ++j) {
        const char * lower = (const char *) (m.rows + j * n_v);
        const char * upper = lower + n_v * sizeof(int16_t);
        for (int64_t d = 0; d < n_v; d += S::W) {
            S::store(m.v + d / PANEL * ASL_KEY_TILE / 2 * PANEL + j * PANEL + d % PANEL, S::pairs(lower + d * 2, upper + d * 2));
        }
    }
}

// Weights of a row, times the units of the values, in the same place: their sum and the largest.
template <class S>
ASL_INLINE void weigh(float * s, const float * unit_v, float & sum, float & largest) {
    typename S::vec lanes[16 / S::W];
    auto top = S::set1(0.0f);
    for (int64_t j = 0; j < 16 / S::W; ++j) {
        lanes[j] = top;
    }
    for (int64_t k = 0; k < ASL_KEY_TILE; k += 16) {
        for (int64_t j = 0; j < 16 / S::W; ++j) {
            const int64_t i = k + j * S::W;
            const auto p = S::mul(S::load(s + i), S::load(unit_v + i));
            S::store(s + i, p);
            lanes[j] = S::add(lanes[j], p);
            top = S::max(top, p);
        }
    }
    sum = S::sum_of(lanes);
    largest = S::max_of(top);
}

// Weights of a group as integers, in place of the numbers. units: of each row
template <class S>
ASL_INLINE void round_weights(float * s, const float * unit_v, float * units) {
    const int64_t N = 16; // a whole number of vectors
    float sum[N] = {}, largest[N] = {}, inverse[N], unit[N];
    for (int64_t i = 0; i < ASL_ROW_GROUP; ++i) {
        weigh<S>(s + i * ASL_KEY_TILE, unit_v, sum[i], largest[i]);
    }
    for (int64_t i = 0; i < ASL_ROW_GROUP; i += S::W) {
        const auto total = S::load(sum + i), top = S::load(largest + i);
        const auto scale = S::min(S::div(S::set1(ASL_WEIGHTS_MAX), total), S::div(S::set1(ASL_INT_MAX), top));
        S::store(inverse + i, S::zero_below(top, ASL_UNIT_MIN, scale));
        // a sum that is no number makes the unit none
        S::store(unit + i, S::fma(total, S::set1(0.0f), S::zero_below(top, ASL_UNIT_MIN, S::div(S::set1(1.0f), scale))));
    }
    for (int64_t i = 0; i < ASL_ROW_GROUP; ++i) {
        float * row = s + i * ASL_KEY_TILE;
        units[i] = unit[i];
        const auto f = S::set1(inverse[i]);
        for (int64_t k = 0; k < ASL_KEY_TILE; k += S::W) {
            S::store16((char *) row + k * sizeof(int16_t), S::mul(S::load(row + k), f));
        }
    }
}

// Rows begin..end-1 of the block, whole groups, and the keys of a tile.
template <class S>
ASL_INLINE void attend_stage_rounded(const asl_attend & a, int64_t begin, int64_t end, int64_t first, int64_t cell, attend_memory & m) {
    const int64_t n_pairs = padded_k(a) / 2;
    float factors[N_STAGE], units[N_STAGE];
    for (int64_t r = begin; r < end; r += ASL_ROW_GROUP) {
        float * s = m.s + (r - begin) * ASL_KEY_TILE;
        dot_panels<S, false>(m.q + r * n_pairs, n_pairs, m.k, n_pairs, ASL_KEY_TILE, s, ASL_KEY_TILE, m.unit_q + r, m.unit_k, nullptr);
        cap_logits<S>(a, s);
    }
    for (int64_t r = begin; r < end; r += ASL_ROW_GROUP) {
        float * s = m.s + (r - begin) * ASL_KEY_TILE;
        limit_group<S>(a, r, first, cell, m, s);
        soften<S>(s, m.max + r, m.sum + r, factors + (r - begin));
        round_weights<S>(s, m.unit_v, units + (r - begin));
    }
    for (int64_t r = begin; r < end; r += ASL_ROW_GROUP) {
        dot_panels<S, true>(m.s + (r - begin) * ASL_KEY_TILE, ASL_KEY_TILE, m.v, ASL_KEY_TILE / 2, m.n_embd_v, m.o + r * m.n_embd_v,
                m.n_embd_v, units + (r - begin), m.o, factors + (r - begin));
    }
}

template <class S>
ASL_TARGET static void attend_block_rounded(const asl_attend & a, int64_t head_kv, int64_t first, int64_t last) {
    const int64_t n_group = a.n_group(), n_rows = (last - first) * n_group, n_k = padded_k(a);
    attend_memory m(a, round_up(n_rows, ASL_ROW_GROUP), round_up(a.v.n_embd, 2 * S::W));
    begin_rows(a, first, n_rows, m);
    std::fill(m.row, m.row + n_k, 0.0f);
    std::fill(m.q, m.q + m.n_rows * n_k / 2, 0.0f);
    std::fill(m.unit_q, m.unit_q + m.n_rows, 0.0f);
    for (int64_t r = 0; r < n_rows; ++r) {
        scale_query<S>(a, first + r / n_group, head_kv * n_group + r % n_group, m.row);
        m.unit_q[r] = round_row<S, false>(m.row, n_k, m.q + r * n_k / 2);
    }
    const int64_t begin = m.begin(0) / ASL_KEY_TILE * ASL_KEY_TILE, end = m.end(n_rows - 1);
    for (int64_t cell = begin; cell < end; cell += ASL_KEY_TILE) {
        round_keys<S>(a, head_kv, cell, m);
        round_values<S>(a, head_kv, cell, m);
        const row_range rows = rows_that_see(m, n_rows, cell);
        for (int64_t r = rows.begin; r < rows.end; r += N_STAGE) {
            attend_stage_rounded<S>(a, r, std::min(r + N_STAGE, rows.end), first, cell, m);
        }
    }
    for (int64_t r = 0; r < n_rows; ++r) {
        end_row<S>(a, first + r / n_group, head_kv * n_group + r % n_group, m.o + r * m.n_embd_v, m.max[r], m.sum[r]);
    }
}
