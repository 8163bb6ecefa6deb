// The kernels of recurrent.h on AVX2.

#include "recurrent.h"

#if defined(__x86_64__) && defined(__GNUC__)

#define ASL_TARGET __attribute__((target("avx2,fma,f16c")))

#include "attend-simd8.h"
#include "recurrent-tile.h"

const asl_recurrent_kernel * asl_recurrent_kernel_avx2() {
    static const asl_recurrent_kernel kernel = { "AVX2", convolve_channels<simd8>, join_channels, delta_block<simd8> };
    const bool runs = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    return runs ? &kernel : nullptr;
}

#else

const asl_recurrent_kernel * asl_recurrent_kernel_avx2() { return nullptr; }

#endif
