// Vectors of 8 numbers for attend-tile.h. Whoever includes this defines ASL_TARGET.

#pragma once

#include "attend-eights.h"

namespace {

struct simd8 : eights {
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
    ASL_OP float max_of(vec x) { return max_of8(x); }
    ASL_OP float sum_of(const vec * lanes) { return sum_of8(_mm256_add_ps(lanes[0], lanes[1])); }
};

} // namespace
