// Vectors of 16 numbers for attend-tile.h. Whoever includes this defines ASL_TARGET.

#pragma once

#include "attend-eights.h"

namespace {

// all lanes by a mask: GCC 12 warns of the other form's own header
static const __mmask16 ALL = 0xffff;

struct simd16 : eights {
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
    ASL_OP float max_of(vec x) { return max_of8(_mm256_max_ps(low(x), high(x))); }
    ASL_OP float sum_of(const vec * lanes) { return sum_of8(_mm256_add_ps(low(lanes[0]), high(lanes[0]))); }
};

} // namespace
