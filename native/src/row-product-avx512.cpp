// Products of few rows on AVX-512 with VNNI. row-product.cpp has the same in plain C++.

#include "row-product.h"

#include "packed.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include <immintrin.h>

#include <algorithm>

#define ASL_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")))
#define ASL_INLINE __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c"), always_inline)) static inline

// all lanes by a mask: GCC 12 warns of the other form's own header
static const __mmask16 ALL = 0xffff;

namespace {

// Where the parts of a stored block lie, in words of 16 bits: d, m, the fifth bits, the fours.
template <ggml_type TYPE>
struct block_form {
    static const bool HAS_MINIMUM = TYPE != GGML_TYPE_Q5_0;
    static const bool HAS_FIFTH = TYPE != GGML_TYPE_Q4_1;
    static const int FIFTH = HAS_MINIMUM ? 2 : 1;
    static const int QS = FIFTH + (HAS_FIFTH ? 2 : 0);
    static const int SIZE = QS + 8;

    static constexpr int n_vectors(int n_blocks) { return (n_blocks * SIZE + 31) / 32; }
};

// Which words of N blocks two fields are, of vectors 2*i and 2*i + 1.
template <int FIRST, int SECOND, int SIZE, int N>
struct field_words {
    alignas(64) uint16_t index[3][32] = {};
    uint32_t mask[3] = {};

    constexpr field_words() {
        for (int i = 0; i < 32; ++i) {
            const int word = i % N * SIZE + (i < 16 ? FIRST : SECOND);
            index[word / 64][i] = (uint16_t) (word % 64);
            mask[word / 64] |= 1u << i;
        }
    }
};

} // namespace

// Two fields of N blocks, one in each half: over and over.
template <int FIRST, int SECOND, int SIZE, int N>
ASL_INLINE __m512i pick(const __m512i * words) {
    static constexpr field_words<FIRST, SECOND, SIZE, N> WORDS;
    const int N_VECTORS = (N * SIZE + 31) / 32;
    __m512i result = _mm512_setzero_si512();
    for (int i = 0; i < (N_VECTORS + 1) / 2; ++i) {
        const __m512i upper = words[2 * i + 1 < N_VECTORS ? 2 * i + 1 : 2 * i];
        const __m512i found = _mm512_permutex2var_epi16(words[2 * i], _mm512_load_si512(WORDS.index[i]), upper);
        result = i == 0 ? found : _mm512_mask_mov_epi16(result, WORDS.mask[i], found);
    }
    return result;
}

template <int WHICH>
ASL_INLINE __m256i half(__m512i v) { return _mm512_maskz_extracti64x4_epi64((__mmask8) 0xf, v, WHICH); }

// The sixteen bytes of four blocks.
ASL_INLINE __m512i load4(const uint8_t * b0, const uint8_t * b1, const uint8_t * b2, const uint8_t * b3) {
    __m512i x = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *) b0));
    x = _mm512_maskz_inserti32x4(ALL, x, _mm_loadu_si128((const __m128i *) b1), 1);
    x = _mm512_maskz_inserti32x4(ALL, x, _mm_loadu_si128((const __m128i *) b2), 2);
    return _mm512_maskz_inserti32x4(ALL, x, _mm_loadu_si128((const __m128i *) b3), 3);
}

ASL_INLINE float sum_of(__m512 v) {
    __m256 a = _mm256_add_ps(_mm512_maskz_extractf32x8_ps((__mmask8) 0xff, v, 0), _mm512_maskz_extractf32x8_ps((__mmask8) 0xff, v, 1));
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}

// n of N blocks, N being 16, or 4 for the last ones of a row.
template <ggml_type TYPE, int N, bool IS_WHOLE>
ASL_INLINE void add_blocks(const uint8_t * first, int64_t n, const int8_t * x, const float * d_row, const float * s_row, __m512 & sums,
        __m512 & minima) {
    using form = block_form<TYPE>;
    const int N_VECTORS = form::n_vectors(N);
    const int64_t n_bytes = 2 * form::SIZE;
    const __m512i quarter = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3); // the block of a lane
    const __m512i low = _mm512_set1_epi8(15), sixteen = _mm512_set1_epi8(16);
    const __mmask16 there = (__mmask16) ((1u << (IS_WHOLE ? N : n)) - 1); // lanes of blocks
    __m512i words[N_VECTORS];
    for (int i = 0; i < N_VECTORS; ++i) {
        const int64_t left = std::max<int64_t>(0, std::min<int64_t>(32, (IS_WHOLE ? N : n) * form::SIZE - i * 32));
        words[i] = IS_WHOLE && left == 32 ? _mm512_loadu_si512(first + i * 64)
                                          : _mm512_maskz_loadu_epi16((__mmask32) ((1ull << left) - 1), first + i * 64);
    }
    const __m512i head = pick<0, form::HAS_MINIMUM ? 1 : 0, form::SIZE, N>(words);
    const __m512 d = _mm512_maskz_cvtph_ps(there, half<0>(head));
    const __m512 m = form::HAS_MINIMUM ? _mm512_maskz_cvtph_ps(there, half<1>(head)) : _mm512_mul_ps(d, _mm512_set1_ps(-16.0f));
    minima = _mm512_fmadd_ps(m, _mm512_loadu_ps(s_row), minima);
    const __m512 scales = _mm512_mul_ps(d, _mm512_loadu_ps(d_row));
    alignas(64) uint64_t fifth[8]; // of the first halves of each four blocks, of the second ones
    if (form::HAS_FIFTH) {
        _mm512_store_si512(fifth, pick<form::FIFTH, form::FIFTH + 1, form::SIZE, N>(words));
    }
    for (int64_t g = 0; g * 4 < (IS_WHOLE ? N : n); ++g) {
        const uint8_t * block = first + g * 4 * n_bytes + 2 * form::QS;
        const int64_t last = IS_WHOLE ? 3 : std::min<int64_t>(3, n - 1 - g * 4); // past the end: again, times zeros
        const __m512i qs = load4(block, block + std::min<int64_t>(1, last) * n_bytes, block + std::min<int64_t>(2, last) * n_bytes,
                block + last * n_bytes);
        __m512i q0 = _mm512_and_si512(qs, low), q1 = _mm512_and_si512(_mm512_srli_epi16(qs, 4), low);
        if (form::HAS_FIFTH) {
            q0 = _mm512_mask_add_epi8(q0, (__mmask64) fifth[g], q0, sixteen);
            q1 = _mm512_mask_add_epi8(q1, (__mmask64) fifth[4 + g], q1, sixteen);
        }
        __m512i dot = _mm512_dpbusd_epi32(_mm512_setzero_si512(), q0, _mm512_loadu_si512(x + g * 128));
        dot = _mm512_dpbusd_epi32(dot, q1, _mm512_loadu_si512(x + g * 128 + 64));
        const __m512i blocks_of = _mm512_add_epi32(quarter, _mm512_set1_epi32((int) g * 4));
        sums = _mm512_fmadd_ps(_mm512_maskz_cvtepi32_ps(ALL, dot), _mm512_maskz_permutexvar_ps(ALL, blocks_of, scales), sums);
    }
}

template <ggml_type TYPE>
ASL_TARGET static float multiply(const uint8_t * weights, int64_t n_blocks, const asl_rounded_row & row) {
    __m512 sums = _mm512_setzero_ps(), minima = sums;
    const int64_t n_sixteens = n_blocks / 16 * 16, n_left = n_blocks - n_sixteens;
    const int64_t SIZE = 2 * block_form<TYPE>::SIZE;
    for (int64_t b = 0; b < n_sixteens; b += 16) {
        add_blocks<TYPE, 16, true>(weights + b * SIZE, 16, row.q + b * 32, row.d + b, row.s + b, sums, minima);
    }
    const uint8_t * rest = weights + n_sixteens * SIZE;
    const int8_t * q = row.q + n_sixteens * 32;
    const float *d = row.d + n_sixteens, *s = row.s + n_sixteens;
    if (n_left > 4) {
        add_blocks<TYPE, 16, false>(rest, n_left, q, d, s, sums, minima);
    } else if (n_left == 4) {
        add_blocks<TYPE, 4, true>(rest, n_left, q, d, s, sums, minima);
    } else if (n_left > 0) {
        add_blocks<TYPE, 4, false>(rest, n_left, q, d, s, sums, minima);
    }
    return sum_of(_mm512_add_ps(sums, minima));
}

ASL_TARGET static float multiply_any(ggml_type type, const uint8_t * weights, int64_t n_blocks, const asl_rounded_row & row) {
    switch (type) {
    case GGML_TYPE_Q4_1:
        return multiply<GGML_TYPE_Q4_1>(weights, n_blocks, row);
    case GGML_TYPE_Q5_0:
        return multiply<GGML_TYPE_Q5_0>(weights, n_blocks, row);
    default:
        return multiply<GGML_TYPE_Q5_1>(weights, n_blocks, row);
    }
}

const asl_row_kernel * asl_row_kernel_avx512() {
    if (!__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("f16c") || !asl_has_avx512_vnni()) {
        return nullptr;
    }
    static const asl_row_kernel kernel = { "AVX-512 VNNI", multiply_any };
    return &kernel;
}

#else

const asl_row_kernel * asl_row_kernel_avx512() { return nullptr; }

#endif
