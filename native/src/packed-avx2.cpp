// Products with packed weights on AVX2. packed.cpp has the same in plain C++.

#include "packed.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#define ASL_AVX2 __attribute__((target("avx2,fma")))
#define ASL_INLINE __attribute__((target("avx2,fma"), always_inline)) static inline

// tokens whose activations stay in the second-level cache while the panels pass
static const int64_t N_TOKENS_BLOCK = 64;

// Tokens of a tile. What is summed for each is a variable, not an element: compilers keep arrays of registers in memory.
static const int TILE = 4;
#define ASL_EACH(M) M(0) M(1) M(2) M(3)

ASL_INLINE __m256i load(const void * p) { return _mm256_load_si256((const __m256i *) p); }

ASL_INLINE __m256i broadcast4(const uint8_t * p) {
    int32_t four;
    memcpy(&four, p, sizeof(four));
    return _mm256_set1_epi32(four);
}

// How many products of pairs may be added in 16 bits: pairs*2*(2^bits - 1)*127 stays below 2^15.
template <int BITS>
constexpr int n_sums() { return BITS == 4 ? 8 : BITS == 5 ? 4
                                                          : 2; }

namespace {

// Sums of a block for all tokens of a tile and 16 outputs.
struct tile_sums {
#define M(i) __m256i a##i, b##i;
    ASL_EACH(M)
#undef M
};

struct tile_rows {
    const uint8_t * q[TILE];
};

} // namespace

// Activations of 8 bits.
template <int BITS, int WIDTH>
ASL_INLINE tile_sums dot8(const uint8_t * w, const tile_rows & rows) {
    constexpr int STEP = n_sums<BITS>() < WIDTH / 4 ? n_sums<BITS>() : WIDTH / 4;
    const __m256i ones = _mm256_set1_epi16(1);
    tile_sums sums;
#define M(i) sums.a##i = sums.b##i = _mm256_setzero_si256();
    ASL_EACH(M)
#undef M
#pragma GCC unroll 8
    for (int begin = 0; begin < WIDTH / 4; begin += STEP) {
#define M(i) __m256i a##i = _mm256_setzero_si256(), b##i = a##i;
        ASL_EACH(M)
#undef M
        for (int g = begin; g < begin + STEP; ++g) {
            const __m256i w0 = load(w + g * 64);
            const __m256i w1 = load(w + g * 64 + 32);
            __m256i x;
#define M(i) \
    x = broadcast4(rows.q[i] + g * 4); \
    a##i = _mm256_add_epi16(a##i, _mm256_maddubs_epi16(w0, x)); \
    b##i = _mm256_add_epi16(b##i, _mm256_maddubs_epi16(w1, x));
            ASL_EACH(M)
#undef M
        }
#define M(i) \
    sums.a##i = _mm256_add_epi32(sums.a##i, _mm256_madd_epi16(a##i, ones)); \
    sums.b##i = _mm256_add_epi32(sums.b##i, _mm256_madd_epi16(b##i, ones));
        ASL_EACH(M)
#undef M
    }
    return sums;
}

// The sum of the integers of a block, times 128.
template <int WIDTH>
ASL_INLINE __m256i sum_times_128(const uint8_t * q) {
    const __m256i weights = _mm256_set1_epi16(128);
    __m256i total = _mm256_setzero_si256();
    for (int k = 0; k < WIDTH; k += 16) {
        const __m256i x = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *) (q + k)));
        total = _mm256_add_epi32(total, _mm256_madd_epi16(x, weights));
    }
    __m128i t = _mm_add_epi32(_mm256_castsi256_si128(total), _mm256_extracti128_si256(total, 1));
    t = _mm_add_epi32(t, _mm_shuffle_epi32(t, 0x4e));
    t = _mm_add_epi32(t, _mm_shuffle_epi32(t, 0xb1));
    return _mm256_broadcastd_epi32(t);
}

// The same for weights of 8 bits, whose pairs do not fit 16 bits: they are moved to -128..127, and their sign to the
// activations. What is subtracted so, 128 times the sum of the activations, is added again.
template <int WIDTH>
ASL_INLINE tile_sums dot8_wide(const uint8_t * w, const tile_rows & rows) {
    const __m256i ones = _mm256_set1_epi16(1);
    const __m256i half = _mm256_set1_epi8((char) 0x80);
    tile_sums sums;
#define M(i) sums.a##i = sums.b##i = sum_times_128<WIDTH>(rows.q[i]);
    ASL_EACH(M)
#undef M
    for (int g = 0; g < WIDTH / 4; ++g) {
        const __m256i w0 = _mm256_xor_si256(load(w + g * 64), half);
        const __m256i w1 = _mm256_xor_si256(load(w + g * 64 + 32), half);
        const __m256i a0 = _mm256_abs_epi8(w0);
        const __m256i a1 = _mm256_abs_epi8(w1);
        __m256i x;
#define M(i) \
    x = broadcast4(rows.q[i] + g * 4); \
    sums.a##i = _mm256_add_epi32(sums.a##i, _mm256_madd_epi16(_mm256_maddubs_epi16(a0, _mm256_sign_epi8(x, w0)), ones)); \
    sums.b##i = _mm256_add_epi32(sums.b##i, _mm256_madd_epi16(_mm256_maddubs_epi16(a1, _mm256_sign_epi8(x, w1)), ones));
        ASL_EACH(M)
#undef M
    }
    return sums;
}

// Activations of 16 bits.
template <int WIDTH>
ASL_INLINE tile_sums dot16(const uint8_t * w, const tile_rows & rows) {
    const __m256i low = _mm256_set1_epi16(0xff);
    tile_sums sums;
#define M(i) sums.a##i = sums.b##i = _mm256_setzero_si256();
    ASL_EACH(M)
#undef M
    for (int g = 0; g < WIDTH / 4; ++g) {
        const __m256i w0 = load(w + g * 64);
        const __m256i w1 = load(w + g * 64 + 32);
        const __m256i a02 = _mm256_and_si256(w0, low), b02 = _mm256_and_si256(w1, low);
        const __m256i a13 = _mm256_srli_epi16(w0, 8), b13 = _mm256_srli_epi16(w1, 8);
        __m256i x;
#define M(i) \
    x = broadcast4(rows.q[i] + g * 8); \
    sums.a##i = _mm256_add_epi32(sums.a##i, _mm256_madd_epi16(a02, x)); \
    sums.b##i = _mm256_add_epi32(sums.b##i, _mm256_madd_epi16(b02, x)); \
    x = broadcast4(rows.q[i] + g * 8 + 4); \
    sums.a##i = _mm256_add_epi32(sums.a##i, _mm256_madd_epi16(a13, x)); \
    sums.b##i = _mm256_add_epi32(sums.b##i, _mm256_madd_epi16(b13, x));
        ASL_EACH(M)
#undef M
    }
    return sums;
}

template <int ACT, int BITS, int WIDTH>
ASL_INLINE tile_sums dot(const uint8_t * w, const tile_rows & rows) {
    if constexpr (ACT == 16) {
        return dot16<WIDTH>(w, rows);
    } else if constexpr (BITS == 8) {
        return dot8_wide<WIDTH>(w, rows);
    } else {
        return dot8<BITS, WIDTH>(w, rows);
    }
}

// Columns of a panel for the tokens of a tile, whose activations lie at these addresses.
template <int ACT, int BITS, int WIDTH>
ASL_INLINE void tile(const asl_act_form & form, const uint8_t * w, const uint8_t * const * acts, float (*y)[ASL_PANEL]) {
    tile_rows rows;
    const float * d[TILE];
    const float * s[TILE];
    for (int i = 0; i < TILE; ++i) {
        rows.q[i] = acts[i];
        d[i] = (const float *) (acts[i] + form.d_offset());
        s[i] = (const float *) (acts[i] + form.s_offset());
    }
#define M(i) __m256 a##i = _mm256_setzero_ps(), b##i = a##i;
    ASL_EACH(M)
#undef M
    const int64_t n_blocks = form.n_in / WIDTH;
    for (int64_t b = 0; b < n_blocks; ++b) {
        const tile_sums sums = dot<ACT, BITS, WIDTH>(w, rows);
        const float * scales = (const float *) (w + WIDTH * ASL_PANEL);
        const __m256 d0 = _mm256_load_ps(scales), d1 = _mm256_load_ps(scales + 8);
        const __m256 m0 = _mm256_load_ps(scales + 16), m1 = _mm256_load_ps(scales + 24);
        __m256 x;
#define M(i) \
    x = _mm256_set1_ps(d[i][b * WIDTH / ASL_ACT_BLOCK]); \
    a##i = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(sums.a##i), d0), x, a##i); \
    b##i = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(sums.b##i), d1), x, b##i); \
    x = _mm256_set1_ps(s[i][b]); \
    a##i = _mm256_fmadd_ps(m0, x, a##i); \
    b##i = _mm256_fmadd_ps(m1, x, b##i); \
    rows.q[i] += WIDTH * (ACT / 8);
        ASL_EACH(M)
#undef M
        w += WIDTH * ASL_PANEL + 2 * ASL_PANEL * sizeof(float);
    }
#define M(i) \
    _mm256_storeu_ps(y[i], a##i); \
    _mm256_storeu_ps(y[i] + 8, b##i);
    ASL_EACH(M)
#undef M
}

template <int ACT, int BITS, int WIDTH>
ASL_AVX2 static void product(const asl_packed_matrix & w, const asl_act_form & form, const asl_packed_tokens & tokens,
        int64_t begin, int64_t end) {
    for (int64_t t0 = 0; t0 < tokens.n; t0 += N_TOKENS_BLOCK) {
        const int64_t t1 = std::min(tokens.n, t0 + N_TOKENS_BLOCK);
        for (int64_t p = begin; p < end; ++p) {
            const int64_t n_out = std::min(ASL_PANEL, w.n_out - p * ASL_PANEL);
            for (int64_t t = t0; t < t1; t += TILE) {
                const uint8_t * rows[TILE]; // past the end: the last token again
                for (int64_t i = 0; i < TILE; ++i) {
                    rows[i] = tokens.get_acts(form, std::min(t + i, t1 - 1));
                }
                float out[TILE][ASL_PANEL];
                tile<ACT, BITS, WIDTH>(form, w.data + p * w.panel_bytes(), rows, out);
                for (int64_t i = 0; i < std::min<int64_t>(TILE, t1 - t); ++i) {
                    memcpy(tokens.get_y(t + i) + p * ASL_PANEL, out[i], n_out * sizeof(float));
                }
            }
        }
    }
}

template <int ACT>
ASL_AVX2 static void product_of_form(const asl_packed_matrix & w, const asl_act_form & form, const asl_packed_tokens & tokens,
        int64_t begin, int64_t end) {
    if (w.form.width == 16) {
        product<ACT, 6, 16>(w, form, tokens, begin, end);
    } else if (ACT == 16 || w.form.bits == 4) {
        product<ACT, 4, 32>(w, form, tokens, begin, end);
    } else if (w.form.bits == 5) {
        product<ACT, 5, 32>(w, form, tokens, begin, end);
    } else {
        product<ACT, 8, 32>(w, form, tokens, begin, end);
    }
}

ASL_AVX2 static void product_any(const asl_packed_matrix & w, const asl_act_form & form, const asl_packed_tokens & tokens,
        int64_t begin, int64_t end) {
    if (form.n_bits == 16) {
        product_of_form<16>(w, form, tokens, begin, end);
    } else {
        product_of_form<8>(w, form, tokens, begin, end);
    }
}

// Integers of eight values.
ASL_INLINE __m256i round8(const float * x, __m256 inverse, __m256i max) {
    const __m256i value = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x), inverse));
    return _mm256_max_epi32(_mm256_min_epi32(value, max), _mm256_sub_epi32(_mm256_setzero_si256(), max));
}

ASL_INLINE int32_t sum8(__m256i v) {
    __m128i t = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    t = _mm_add_epi32(t, _mm_shuffle_epi32(t, 0x4e));
    t = _mm_add_epi32(t, _mm_shuffle_epi32(t, 0xb1));
    return _mm_cvtsi128_si32(t);
}

ASL_INLINE float max_abs32(const float * x) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    __m256 max = _mm256_setzero_ps();
    for (int k = 0; k < ASL_ACT_BLOCK; k += 8) {
        max = _mm256_max_ps(_mm256_andnot_ps(sign, _mm256_loadu_ps(x + k)), max);
    }
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(max), _mm256_extractf128_ps(max, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

template <int ACT>
ASL_INLINE void quantise(const asl_act_form & form, const float * x, uint8_t * dst) {
    const int max = ACT == 16 ? 32767 : 127;
    const __m256i limit = _mm256_set1_epi32(max);
    float * d = (float *) (dst + form.d_offset());
    float * s = (float *) (dst + form.s_offset());
    for (int64_t b = 0; b < form.n_in / ASL_ACT_BLOCK; ++b, x += ASL_ACT_BLOCK) {
        const float max_abs = max_abs32(x);
        const bool is_zero = !(max_abs > ASL_MIN_ABS);
        d[b] = is_zero ? 0.0f : max_abs / max;
        const __m256 inverse = _mm256_set1_ps(is_zero ? 0.0f : 1.0f / d[b]);
        const __m256i v0 = round8(x, inverse, limit), v1 = round8(x + 8, inverse, limit);
        const __m256i v2 = round8(x + 16, inverse, limit), v3 = round8(x + 24, inverse, limit);
        // packing works on halves: quarters come out as 0 2 1 3 of what was put in
        const __m256i p0 = _mm256_permute4x64_epi64(_mm256_packs_epi32(v0, v1), 0xd8);
        const __m256i p1 = _mm256_permute4x64_epi64(_mm256_packs_epi32(v2, v3), 0xd8);
        if (ACT == 16) {
            // of each four: 0 2 1 3
            const __m256i order = _mm256_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15,
                    0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15);
            _mm256_storeu_si256((__m256i *) (dst + b * 64), _mm256_shuffle_epi8(p0, order));
            _mm256_storeu_si256((__m256i *) (dst + b * 64 + 32), _mm256_shuffle_epi8(p1, order));
        } else {
            _mm256_storeu_si256((__m256i *) (dst + b * 32), _mm256_permute4x64_epi64(_mm256_packs_epi16(p0, p1), 0xd8));
        }
        const int32_t first = sum8(_mm256_add_epi32(v0, v1)), second = sum8(_mm256_add_epi32(v2, v3));
        if (form.width == 16) {
            s[b * 2] = d[b] * (float) first;
            s[b * 2 + 1] = d[b] * (float) second;
        } else {
            s[b] = d[b] * (float) (first + second);
        }
    }
}

ASL_AVX2 static void quantise_any(const asl_act_form & form, const float * x, uint8_t * dst) {
    if (form.n_bits == 16) {
        quantise<16>(form, x, dst);
    } else {
        quantise<8>(form, x, dst);
    }
}

const asl_packed_kernel * asl_packed_kernel_avx2() {
    static const asl_packed_kernel kernel = { "AVX2", quantise_any, product_any };
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &kernel : nullptr;
}

#else

const asl_packed_kernel * asl_packed_kernel_avx2() { return nullptr; }

#endif
