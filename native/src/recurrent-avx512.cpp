// The kernels of recurrent.h on AVX-512.

#include "recurrent.h"

#if defined(__x86_64__) && defined(__GNUC__)

#define ASL_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")))

#include "attend-simd16.h"
#include "recurrent-tile.h"

const asl_recurrent_kernel * asl_recurrent_kernel_avx512() {
    static const asl_recurrent_kernel kernel = { "AVX-512", convolve_channels<simd16>, join_channels, delta_block<simd16> };
    const bool runs = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    return runs ? &kernel : nullptr;
}

#else

const asl_recurrent_kernel * asl_recurrent_kernel_avx512() { return nullptr; }

#endif
