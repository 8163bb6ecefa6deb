// Rounded attention on AVX-512 with VNNI. attend.cpp has the same in plain C++.

#include "attend.h"

#if defined(__x86_64__) && defined(__GNUC__)

#define ASL_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")))

#include "attend-rounded.h"
#include "attend-simd16.h"

namespace {

struct simd16_vnni : simd16 {
    using ivec = __m512i;

    ASL_OP ivec zero() { return _mm512_setzero_si512(); }
    // as text: GCC 12 copies registers around the intrinsic
    ASL_OP ivec dot2(ivec sum, vec a, vec b) {
        __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
        return sum;
    }
    ASL_OP vec to_float(ivec v) { return _mm512_maskz_cvtepi32_ps(ALL, v); }
    ASL_OP void store16(char * dst, vec x) {
        _mm256_storeu_si256((__m256i *) dst, _mm512_maskz_cvtsepi32_epi16(ALL, _mm512_maskz_cvtps_epi32(ALL, x)));
    }
    ASL_OP vec pairs(const char * lower, const char * upper) {
        const __m512i low = _mm512_maskz_cvtepu16_epi32(ALL, _mm256_loadu_si256((const __m256i *) lower));
        const __m512i high = _mm512_maskz_cvtepu16_epi32(ALL, _mm256_loadu_si256((const __m256i *) upper));
        return _mm512_castsi512_ps(_mm512_or_si512(low, _mm512_maskz_slli_epi32(ALL, high, 16)));
    }
};

} // namespace

decltype(asl_attend_kernel::attend_rounded) asl_attend_rounded_vnni() {
    return __builtin_cpu_supports("avx512vnni") ? attend_block_rounded<simd16_vnni> : nullptr;
}

#else

decltype(asl_attend_kernel::attend_rounded) asl_attend_rounded_vnni() { return nullptr; }

#endif
