// Attention on AVX2. attend.cpp has the same in plain C++.

#include "attend.h"

#if defined(__x86_64__) && defined(__GNUC__)

#define ASL_TARGET __attribute__((target("avx2,fma,f16c")))

#include "attend-simd8.h"
#include "attend-tile.h"

const asl_attend_kernel * asl_attend_kernel_avx2() {
    static const asl_attend_kernel kernel = { "AVX2", attend_block<simd8>, nullptr, score_tile<simd8> };
    const bool runs = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    return runs ? &kernel : nullptr;
}

#else

const asl_attend_kernel * asl_attend_kernel_avx2() { return nullptr; }

#endif
