// Attention on AVX-512. attend.cpp has the same in plain C++.

#include "attend.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include <immintrin.h>

#define ASL_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")))

#include "attend-tile.h"

namespace {

#define ASL_OP ASL_TARGET __attribute__((always_inline)) static inline

// all lanes by a mask: GCC 12 warns of the other form's own header
static const __mmask16 ALL = 0xffff;

struct simd16 {
    using vec = __m512;
    static const int64_t W = 16;

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
        const __m256i index = _mm256_mullo_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32((int) ld));
        for (int64_t i = 0; i < 8; ++i) {
            _mm256_storeu_ps(dst + i * ldd, _mm256_i32gather_ps(src + i, index, sizeof(float)));
        }
    }
};

} // namespace

const asl_attend_kernel * asl_attend_kernel_avx512() {
    static const asl_attend_kernel kernel = { "AVX-512", attend_block<simd16>, score_tile<simd16> };
    const bool runs = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    return runs ? &kernel : nullptr;
}

#else

const asl_attend_kernel * asl_attend_kernel_avx512() { return nullptr; }

#endif
