// Attention on AVX-512. attend.cpp has the same in plain C++.

#include "attend.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include <immintrin.h>

#define ASL_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")))

#include "attend-simd16.h"
#include "attend-tile.h"

const asl_attend_kernel * asl_attend_kernel_avx512() {
    static const asl_attend_kernel kernel = { "AVX-512", attend_block<simd16>, asl_attend_rounded_vnni(), score_tile<simd16> };
    const bool runs = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    return runs ? &kernel : nullptr;
}

#else

const asl_attend_kernel * asl_attend_kernel_avx512() { return nullptr; }

#endif
