// Attention on AVX2. attend.cpp has the same in plain C++.

#include "attend.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include <immintrin.h>

#define ASL_TARGET __attribute__((target("avx2,fma,f16c")))

#include "attend-tile.h"

namespace {

#define ASL_OP ASL_TARGET __attribute__((always_inline)) static inline

struct simd8 {
    using vec = __m256;
    static const int64_t W = 8;
    static const int PANELS = 1;

    ASL_OP vec load(const float * p) { return _mm256_loadu_ps(p); }
    ASL_OP void store(float * p, vec x) { _mm256_storeu_ps(p, x); }
    ASL_OP vec set1(float x) { return _mm256_set1_ps(x); }
    ASL_OP vec add(vec a, vec b) { return _mm256_add_ps(a, b); }
    ASL_OP vec sub(vec a, vec b) { return _mm256_sub_ps(a, b); }
    ASL_OP vec mul(vec a, vec b) { return _mm256_mul_ps(a, b); }
    ASL_OP vec div(vec a, vec b) { return _mm256_div_ps(a, b); }
    ASL_OP vec fma(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
    ASL_OP vec max(vec a, vec b) { return _mm256_max_ps(a, b); }
    ASL_OP vec min(vec a, vec b) { return _mm256_min_ps(a, b); }
    ASL_OP vec abs(vec x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }
    ASL_OP vec with_sign_of(vec x, vec sign) { return _mm256_or_ps(x, _mm256_and_ps(_mm256_set1_ps(-0.0f), sign)); }
    ASL_OP vec round(vec x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
    ASL_OP vec pow2(vec n) {
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
    }
    ASL_OP vec zero_below(vec x, float limit, vec y) { return _mm256_andnot_ps(_mm256_cmp_ps(x, _mm256_set1_ps(limit), _CMP_LT_OQ), y); }
    ASL_OP float first(vec x) { return _mm256_cvtss_f32(x); }
    ASL_OP float max_of(vec x) {
        __m128 m = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
        m = _mm_max_ps(m, _mm_movehl_ps(m, m));
        return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
    }
    ASL_OP float sum_of(const vec * lanes) {
        const vec x = _mm256_add_ps(lanes[0], lanes[1]);
        __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
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
        const vec r0 = load(src), r1 = load(src + ld), r2 = load(src + 2 * ld), r3 = load(src + 3 * ld);
        const vec r4 = load(src + 4 * ld), r5 = load(src + 5 * ld), r6 = load(src + 6 * ld), r7 = load(src + 7 * ld);
        const vec a0 = _mm256_unpacklo_ps(r0, r1), a1 = _mm256_unpackhi_ps(r0, r1);
        const vec a2 = _mm256_unpacklo_ps(r2, r3), a3 = _mm256_unpackhi_ps(r2, r3);
        const vec a4 = _mm256_unpacklo_ps(r4, r5), a5 = _mm256_unpackhi_ps(r4, r5);
        const vec a6 = _mm256_unpacklo_ps(r6, r7), a7 = _mm256_unpackhi_ps(r6, r7);
        const vec b0 = _mm256_shuffle_ps(a0, a2, 0x44), b1 = _mm256_shuffle_ps(a0, a2, 0xee);
        const vec b2 = _mm256_shuffle_ps(a1, a3, 0x44), b3 = _mm256_shuffle_ps(a1, a3, 0xee);
        const vec b4 = _mm256_shuffle_ps(a4, a6, 0x44), b5 = _mm256_shuffle_ps(a4, a6, 0xee);
        const vec b6 = _mm256_shuffle_ps(a5, a7, 0x44), b7 = _mm256_shuffle_ps(a5, a7, 0xee);
        store(dst, _mm256_permute2f128_ps(b0, b4, 0x20));
        store(dst + ldd, _mm256_permute2f128_ps(b1, b5, 0x20));
        store(dst + 2 * ldd, _mm256_permute2f128_ps(b2, b6, 0x20));
        store(dst + 3 * ldd, _mm256_permute2f128_ps(b3, b7, 0x20));
        store(dst + 4 * ldd, _mm256_permute2f128_ps(b0, b4, 0x31));
        store(dst + 5 * ldd, _mm256_permute2f128_ps(b1, b5, 0x31));
        store(dst + 6 * ldd, _mm256_permute2f128_ps(b2, b6, 0x31));
        store(dst + 7 * ldd, _mm256_permute2f128_ps(b3, b7, 0x31));
    }
};

} // namespace

const asl_attend_kernel * asl_attend_kernel_avx2() {
    static const asl_attend_kernel kernel = { "AVX2", attend_block<simd8>, nullptr, score_tile<simd8> };
    const bool runs = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    return runs ? &kernel : nullptr;
}

#else

const asl_attend_kernel * asl_attend_kernel_avx2() { return nullptr; }

#endif
