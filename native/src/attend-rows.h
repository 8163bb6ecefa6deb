// What the kernels of attend.h share (attend-tile.h, attend-rounded.h), for vectors of S::W numbers. Whoever includes them
// defines ASL_TARGET, an attribute for functions that use such vectors, and S:
//   PANELS: panels that a group of rows is multiplied with at once, as many as there are registers for
//   vec, load, store, set1, add, sub, mul, div, fma(a, b, c) = a*b + c, max, abs, with_sign_of(x, sign)
//   round(x), pow2(n): 2 to the power of a whole number from -126 to 127
//   zero_below(x, limit, y): 0 where x < limit, else y
//   max_of(x), sum_of(x): of all numbers, halves added to halves; low(x), high(x) where W is 16
//   read_f16(src, dst, n); transpose8(src, ld, dst, ldd): 8 x 8 numbers
//
// What is computed, and in which order, is in attend.cpp, in plain C++.

#pragma once

#include "attend.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>

#define ASL_INLINE ASL_TARGET __attribute__((always_inline)) static inline

// Rows whose logits, weights and sums are computed one after another: so many that a tile's keys, then its values, stay
// in the first-level cache meanwhile.
static const int64_t N_STAGE = 8 * ASL_ROW_GROUP;

// Rows of a group. What is summed for each is a variable, not an element: compilers keep arrays of registers in memory.
#define ASL_EACH_ROW(M) M(0) M(1) M(2) M(3) M(4) M(5)

namespace {

// to a multiple of any n (GGML_PAD wants a power of 2)
inline int64_t round_up(int64_t x, int64_t n) { return (x + n - 1) / n * n; }

// exp(x) = 2^n*(1 + q)
template <class S>
struct exp_parts {
    typename S::vec n, q;
};

// What a group of rows is worked on in: floats, each part aligned to 64 bytes.
struct attend_memory {
    attend_memory(const asl_attend & a, int64_t n_rows, int64_t n_embd_v_padded)
        : n_rows(n_rows), n_embd_v(n_embd_v_padded) {
        const int64_t n_k = round_up(a.k.n_embd, 16), n_temp = std::max(n_k, n_embd_v) * ASL_KEY_TILE;
        const int64_t sizes[] = { n_rows * n_k, n_rows * n_embd_v, ASL_KEY_TILE * n_k, ASL_KEY_TILE * n_embd_v, n_temp,
            std::min(N_STAGE, n_rows) * ASL_KEY_TILE, n_rows, n_rows, 2 * n_rows,
            a.is_rounded ? n_temp : 0, n_k, n_rows, ASL_KEY_TILE, ASL_KEY_TILE };
        float ** parts[] = { &q, &o, &k, &v, &temp, &s, &max, &sum, &ranges, &rows, &row, &unit_q, &unit_k, &unit_v };
        int64_t total = 16;
        for (const int64_t n : sizes) {
            total += round_up(n, 16);
        }
        memory.reset(new float[total]);
        float * at = memory.get() + (64 - (uintptr_t) memory.get() % 64) % 64 / sizeof(float);
        for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); ++i) {
            *parts[i] = at;
            at += round_up(sizes[i], 16);
        }
    }

    int32_t & begin(int64_t row) { return ((int32_t *) ranges)[2 * row]; }
    int32_t & end(int64_t row) { return ((int32_t *) ranges)[2 * row + 1]; }

    const int64_t n_rows;   // whole groups
    const int64_t n_embd_v; // whole panels
    std::unique_ptr<float[]> memory;
    float * q;    // [n_rows, n_embd_k], scaled
    float * o;    // [n_rows, n_embd_v]: not divided by the sum yet
    float * k;    // panels of a tile: [keys/panel][n_embd_k][panel]
    float * v;    // [n_embd_v/panel][keys][panel]
    float * temp;
    float * s;    // [N_STAGE, ASL_KEY_TILE]
    float * max;
    float * sum;
    float * ranges; // cells of each row, as integers

    // of attention over integers (attend-rounded.h): q, k and v hold two in the place of a number
    float * rows; // as large as temp
    float * row;
    float * unit_q; // [n_rows]
    float * unit_k; // [ASL_KEY_TILE]
    float * unit_v;
};

// Rows of a block, whole groups.
struct row_range {
    int64_t begin, end;
};

} // namespace

// x from ASL_EXP_MIN to 88
template <class S>
ASL_INLINE exp_parts<S> split_exp(typename S::vec x) {
    const auto n = S::round(S::mul(x, S::set1(1.44269504f)));
    auto r = S::fma(n, S::set1(-0.693359375f), x);      // ln 2, in two parts
    r = S::fma(n, S::set1(2.12194440e-4f), r);
    auto p = S::set1(1.0f / 5040);                        // exp(r) - 1 by its series
    p = S::fma(p, r, S::set1(1.0f / 720));
    p = S::fma(p, r, S::set1(1.0f / 120));
    p = S::fma(p, r, S::set1(1.0f / 24));
    p = S::fma(p, r, S::set1(1.0f / 6));
    p = S::fma(p, r, S::set1(0.5f));
    return { n, S::fma(p, S::mul(r, r), r) };
}

// x at most 88
template <class S>
ASL_INLINE typename S::vec exp_of(typename S::vec x) {
    const auto parts = split_exp<S>(S::max(S::set1(ASL_EXP_MIN), x));
    const auto y = S::mul(S::add(parts.q, S::set1(1.0f)), S::pow2(parts.n));
    return S::zero_below(x, ASL_EXP_MIN, y);
}

// With e = exp(2|x|) - 1, tanh(|x|) is e/(e + 2): small x keep their digits.
template <class S>
ASL_INLINE typename S::vec tanh_of(typename S::vec x) {
    const auto a = S::abs(x);
    const auto parts = split_exp<S>(S::min(S::add(a, a), S::set1(40.0f)));
    const auto power = S::pow2(parts.n);
    const auto e = S::fma(power, parts.q, S::sub(power, S::set1(1.0f)));
    return S::with_sign_of(S::div(e, S::add(e, S::set1(2.0f))), x);
}

template <class S>
ASL_INLINE void read_row(ggml_type type, const void * src, float * dst, int64_t n) {
    if (type == GGML_TYPE_F16) {
        S::read_f16((const uint16_t *) src, dst, n);
    } else {
        asl_read_f32(type, src, dst, n);
    }
}

// Rows of n_inner numbers to panels: dst[row/panel][inner][row%panel]
template <class S>
ASL_INLINE void pack_transposed(const float * rows, int64_t n_rows, int64_t n_inner, float * dst) {
    const int64_t PANEL = 2 * S::W;
    for (int64_t r = 0; r < n_rows; r += 8) {
        float * panel = dst + r / PANEL * n_inner * PANEL + r % PANEL;
        int64_t i = 0;
        for (; i + 8 <= n_inner; i += 8) {
            S::transpose8(rows + r * n_inner + i, n_inner, panel + i * PANEL, PANEL);
        }
        for (; i < n_inner; ++i) {
            for (int64_t j = 0; j < 8; ++j) {
                panel[i * PANEL + j] = rows[(r + j) * n_inner + i];
            }
        }
    }
}

// The queries of a row, times what they can be multiplied by beforehand.
template <class S>
ASL_INLINE void scale_query(const asl_attend & a, int64_t t, int64_t head, float * dst) {
    const float * q = (const float *) (a.q + t * a.nb_q_token + head * a.nb_q_head);
    const float factor = a.cap != 0.0f ? a.cap_scale : a.scale;
    for (int64_t d = 0; d < a.k.n_embd; ++d) {
        dst[d] = q[d] * factor;
    }
}

template <class S>
ASL_INLINE void cap_logits(const asl_attend & a, float * s) {
    if (a.cap != 0.0f) {
        const auto factor = S::set1(a.cap * a.scale);
        for (int64_t i = 0; i < ASL_ROW_GROUP * ASL_KEY_TILE; i += S::W) {
            S::store(s + i, S::mul(tanh_of<S>(S::load(s + i)), factor));
        }
    }
}

// Cells that token t does not attend to get no weight. begin, end: those it may, counted from the tile's first cell.
template <class S>
ASL_INLINE void limit_keys(const asl_attend & a, int64_t t, int64_t cell, int64_t begin, int64_t end, float * s) {
    if (a.mask) {
        for (int64_t i = 0; i < std::min(ASL_KEY_TILE, end); ++i) {
            s[i] += asl_mask_value(a, t, cell + i);
        }
    }
    if (begin <= 0 && end >= ASL_KEY_TILE) {
        return;
    }
    std::fill(s, s + std::max<int64_t>(0, std::min(ASL_KEY_TILE, begin)), -INFINITY);
    std::fill(s + std::max<int64_t>(0, std::min(ASL_KEY_TILE, end)), s + ASL_KEY_TILE, -INFINITY);
}

// The same for the rows of a group.
template <class S>
ASL_INLINE void limit_group(const asl_attend & a, int64_t row, int64_t first, int64_t cell, attend_memory & m, float * s) {
    for (int64_t i = 0; i < ASL_ROW_GROUP; ++i) {
        const int64_t t = std::min(first + (row + i) / a.n_group(), a.n_tokens - 1);
        limit_keys<S>(a, t, cell, m.begin(row + i) - cell, m.end(row + i) - cell, s + i * ASL_KEY_TILE);
    }
}

// Logits of a group become weights relative to the running maximum of each row. factors: what the sums so far are
// multiplied by. Step by step for all rows, which need not wait for each other.
template <class S>
ASL_INLINE void soften(float * s, float * max, float * sum, float * factors) {
    const int64_t N = 16; // a whole number of vectors
    float before[N] = {}, top[N] = {}, factor[N];
    for (int64_t i = 0; i < ASL_ROW_GROUP; ++i) {
        const float * row = s + i * ASL_KEY_TILE;
        auto largest = S::load(row);
        for (int64_t j = S::W; j < ASL_KEY_TILE; j += S::W) {
            largest = S::max(largest, S::load(row + j));
        }
        before[i] = max[i];
        max[i] = std::max(max[i], S::max_of(largest));
        top[i] = max[i] == -INFINITY ? 0.0f : max[i]; // no key so far: all weights and sums are 0
    }
    for (int64_t i = 0; i < ASL_ROW_GROUP; i += S::W) {
        S::store(factor + i, exp_of<S>(S::sub(S::load(before + i), S::load(top + i))));
    }
    for (int64_t i = 0; i < ASL_ROW_GROUP; ++i) {
        float * row = s + i * ASL_KEY_TILE;
        const auto t = S::set1(top[i]);
        typename S::vec lanes[16 / S::W]; // 16 of them, whatever the width
        for (int64_t j = 0; j < 16 / S::W; ++j) {
            lanes[j] = S::set1(0.0f);
        }
        for (int64_t k = 0; k < ASL_KEY_TILE; k += 16) {
            for (int64_t j = 0; j < 16 / S::W; ++j) {
                const auto p = exp_of<S>(S::sub(S::load(row + k + j * S::W), t));
                S::store(row + k + j * S::W, p);
                lanes[j] = S::add(lanes[j], p);
            }
        }
        factors[i] = factor[i];
        sum[i] = std::fma(sum[i], factor[i], S::sum_of(lanes));
    }
}

// The rows' last step: sinks, the division, and what scores need.
template <class S>
ASL_INLINE void end_row(const asl_attend & a, int64_t t, int64_t head, float * o, float max, float sum) {
    float factor = 1.0f;
    if (a.sinks) {
        const float top = std::max(max, a.sinks[head]);
        factor = S::first(exp_of<S>(S::set1(max - top)));
        sum = std::fma(sum, factor, S::first(exp_of<S>(S::set1(a.sinks[head] - top))));
        max = top;
    }
    float * y = a.y + (t * a.n_head + head) * a.v.n_embd;
    for (int64_t d = 0; d < a.v.n_embd; ++d) {
        y[d] = sum > 0.0f ? o[d] * factor / sum : sum == sum ? 0.0f
                                                             : sum;
    }
    const int64_t i_query = t - (a.n_tokens - a.n_queries);
    if (i_query >= 0 && a.softmax) {
        float * stats = a.softmax + (i_query * a.n_head + head) * 2;
        stats[0] = max;
        stats[1] = sum;
    }
}

// Nothing attended to yet.
ASL_INLINE void begin_rows(const asl_attend & a, int64_t first, int64_t n_rows, attend_memory & m) {
    std::fill(m.o, m.o + m.n_rows * m.n_embd_v, 0.0f);
    for (int64_t r = 0; r < m.n_rows; ++r) {
        m.max[r] = -INFINITY;
        m.sum[r] = 0.0f;
        const asl_key_range keys = r < n_rows ? asl_keys_of(a, first + r / a.n_group()) : asl_key_range { 0, 0 };
        m.begin(r) = (int32_t) keys.begin;
        m.end(r) = (int32_t) keys.end;
    }
}

// Later tokens see later cells, from their windows' beginning on: groups that see a tile lie side by side.
ASL_INLINE row_range rows_that_see(attend_memory & m, int64_t n_rows, int64_t cell) {
    row_range rows { 0, n_rows };
    while (rows.begin < n_rows && m.end(std::min(rows.begin + ASL_ROW_GROUP, n_rows) - 1) <= cell) {
        rows.begin += ASL_ROW_GROUP;
    }
    while (rows.end > rows.begin && m.begin(rows.end - 1) >= cell + ASL_KEY_TILE) {
        --rows.end;
    }
    rows.end = round_up(rows.end, ASL_ROW_GROUP);
    return rows;
}
