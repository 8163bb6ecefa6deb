// Vectors of 16 numbers for attend-tile.h. Whoever includes this defines ASL_TARGET.

#pragma once

#include <immintrin.h>

#include <cstdint>

namespace {

#define ASL_OP ASL_TARGET __attribute__((always_inline)) static inline

// all lanes by a mask: GCC 12 warns of the other form's own header
static const __mmask16 ALL = 0xffff;

struct simd16 {
    using vec = __m512;
    static const int64_t W = 16;
    static const int PANELS = 2;

    ASL_OP vec load(const float * p) { return _mm512_loadu_ps(p); }
    ASL_OP void store(float * p, vec x) { _mm512_storeu_ps(p, x); }
    ASL_OP vec set1(float x) { return _mm512_set1_ps(x); }
    ASL_OP vec add(vec a, vec b) { return _mm512_add_ps(a, b); }
    ASL_OP vec sub(vec a, vec b) { return _mm512_sub_ps(a, b); }
    ASL_OP vec mul(vec a, vec b) { return _mm512_mul_ps(a, b); }
    ASL_OP vec div(vec a, vec b) { return _mm512_div_ps(a, b); }
    ASL_OP vec fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
    ASL_OP vec max(vec a, vec b) { return _mm512_maskz_max_ps(ALL, a, b); }
    ASL_OP vec min(vec a, vec b) { return _mm512_maskz_min_ps(ALL, a, b); }
    ASL_OP vec abs(vec x) { return _mm512_andnot_ps(_mm512_set1_ps(-0.0f), x); }
    ASL_OP vec with_sign_of(vec x, vec sign) { return _mm512_or_ps(x, _mm512_and_ps(_mm512_set1_ps(-0.0f), sign)); }
    ASL_OP vec round(vec x) { return _mm512_maskz_roundscale_ps(ALL, x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
    ASL_OP vec pow2(vec n) {
        const __m512i exponents = _mm512_add_epi32(_mm512_maskz_cvtps_epi32(ALL, n), _mm512_set1_epi32(127));
        return _mm512_castsi512_ps(_mm512_maskz_slli_epi32(ALL, exponents, 23));
    }
    ASL_OP vec zero_below(vec x, float limit, vec y) {
        return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, _mm512_set1_ps(limit), _CMP_NLT_UQ), y);
    }
    ASL_OP float first(vec x) { return _mm_cvtss_f32(_mm512_maskz_extractf32x4_ps((__mmask8) 0xf, x, 0)); }
    ASL_OP __m256 low(vec x) { return _mm512_maskz_extractf32x8_ps((__mmask8) 0xff, x, 0); }
    ASL_OP __m256 high(vec x) { return _mm512_maskz_extractf32x8_ps((__mmask8) 0xff, x, 1); }
    ASL_OP float max_of(vec x) {
        const __m256 h = _mm256_max_ps(low(x), high(x));
        __m128 m = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
        m = _mm_max_ps(m, _mm_movehl_ps(m, m));
        return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
    }
    ASL_OP float sum_of(const vec * lanes) {
        const __m256 h = _mm256_add_ps(low(lanes[0]), high(lanes[0]));
        __m128 s = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
        s = _mm_add_ps(s, _mm_movehl_ps(s, s));
        return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
    }
    ASL_OP void read_f16(const uint16_t * src, float * dst, int64_t n) {
        int64_t i = 0;
        for (; i + 8 <= n; i += 8) {
            _mm256_storeu_ps(dst + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) (src + i))));
        }
        for (; i < n; ++i) {
            dst[i] = _cvtsh_ss(src[i]);
        }
    }
    ASL_OP void transpose8(const float * src, int64_t ld, float * dst, int64_t ldd) {
        const __m256 r0 = _mm256_loadu_ps(src), r1 = _mm256_loadu_ps(src + ld), r2 = _mm256_loadu_ps(src + 2 * ld), r3 = _mm256_loadu_ps(src + 3 * ld);
        const __m256 r4 = _mm256_loadu_ps(src + 4 * ld), r5 = _mm256_loadu_ps(src + 5 * ld), r6 = _mm256_loadu_ps(src + 6 * ld), r7 = _mm256_loadu_ps(src + 7 * ld);
        const __m256 a0 = _mm256_unpacklo_ps(r0, r1), a1 = _mm256_unpackhi_ps(r0, r1);
        const __m256 a2 = _mm256_unpacklo_ps(r2, r3), a3 = _mm256_unpackhi_ps(r2, r3);
        const __m256 a4 = _mm256_unpacklo_ps(r4, r5), a5 = _mm256_unpackhi_ps(r4, r5);
        const __m256 a6 = _mm256_unpacklo_ps(r6, r7), a7 = _mm256_unpackhi_ps(r6, r7);
        const __m256 b0 = _mm256_shuffle_ps(a0, a2, 0x44), b1 = _mm256_shuffle_ps(a0, a2, 0xee);
        const __m256 b2 = _mm256_shuffle_ps(a1, a3, 0x44), b3 = _mm256_shuffle_ps(a1, a3, 0xee);
        const __m256 b4 = _mm256_shuffle_ps(a4, a6, 0x44), b5 = _mm256_shuffle_ps(a4, a6, 0xee);
        const __m256 b6 = _mm256_shuffle_ps(a5, a7, 0x44), b7 = _mm256_shuffle_ps(a5, a7, 0xee);
        _mm256_storeu_ps(dst, _mm256_permute2f128_ps(b0, b4, 0x20));
        _mm256_storeu_ps(dst + ldd, _mm256_permute2f128_ps(b1, b5, 0x20));
        _mm256_storeu_ps(dst + 2 * ldd, _mm256_permute2f128_ps(b2, b6, 0x20));
        _mm256_storeu_ps(dst + 3 * ldd, _mm256_permute2f128_ps(b3, b7, 0x20));
        _mm256_storeu_ps(dst + 4 * ldd, _mm256_permute2f128_ps(b0, b4, 0x31));
        _mm256_storeu_ps(dst + 5 * ldd, _mm256_permute2f128_ps(b1, b5, 0x31));
        _mm256_storeu_ps(dst + 6 * ldd, _mm256_permute2f128_ps(b2, b6, 0x31));
        _mm256_storeu_ps(dst + 7 * ldd, _mm256_permute2f128_ps(b3, b7, 0x31));
    }
};

} // namespace
