// What the attention kernels of AVX2 and AVX-512 have in common: eight numbers at a time. Whoever includes this defines ASL_TARGET.

#pragma once

#include <immintrin.h>

#include <cstdint>

namespace {

#define ASL_OP ASL_TARGET __attribute__((always_inline)) static inline

ASL_OP float max_of8(__m256 x) {
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

ASL_OP float sum_of8(__m256 x) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

struct eights {
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
