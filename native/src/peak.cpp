#include "peak.h"

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__)

#include <time.h>

#include <algorithm>

// CPU seconds of this thread
static double now() {
    timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double) t.tv_sec + 1e-9 * (double) t.tv_nsec;
}

// 12 sums that do not wait for each other. Registers only, so that nothing but arithmetic is measured, and of zeros: denormal
// numbers, which registers may hold by chance, are slow.
#define ASL_TWELVE(M) M(0) M(1) M(2) M(3) M(4) M(5) M(6) M(7) M(8) M(9) M(10) M(11)

#define ASL_LOOP(name, zero, text) \
    static void name(long n) { \
        __asm__ volatile("vzeroall\n" zero : : : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", \
                "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15"); \
        for (long i = 0; i < n; ++i) { \
            __asm__ volatile(text : : : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", \
                    "xmm11", "xmm13"); \
        } \
    }

#define ZERO_FACTORS "vpxord %%zmm30, %%zmm30, %%zmm30\n vpxord %%zmm31, %%zmm31, %%zmm31\n"
#define M(i) "vfmadd231ps %%zmm31, %%zmm30, %%zmm" #i "\n"
ASL_LOOP(f32_avx512, ZERO_FACTORS, ASL_TWELVE(M))
#undef M
#define M(i) "vpdpwssd %%zmm31, %%zmm30, %%zmm" #i "\n"
ASL_LOOP(int16_vnni, ZERO_FACTORS, ASL_TWELVE(M))
#undef M
#define M(i) "vpdpbusd %%zmm31, %%zmm30, %%zmm" #i "\n"
ASL_LOOP(int8_vnni, ZERO_FACTORS, ASL_TWELVE(M))
#undef M
#define M(i) "vfmadd231ps %%ymm15, %%ymm14, %%ymm" #i "\n"
ASL_LOOP(f32_avx2, "", ASL_TWELVE(M))
#undef M
// products of pairs, then their sum
#define M(i) "vpmaddwd %%ymm15, %%ymm14, %%ymm13\n vpaddd %%ymm13, %%ymm" #i ", %%ymm" #i "\n"
ASL_LOOP(int16_avx2, "", ASL_TWELVE(M))
#undef M
// sums of 16 bits, as of 4-bit weights
#define M(i) "vpmaddubsw %%ymm15, %%ymm14, %%ymm13\n vpaddw %%ymm13, %%ymm" #i ", %%ymm" #i "\n"
ASL_LOOP(int8_avx2, "", ASL_TWELVE(M))
#undef M

// operations: of an instruction that multiplies
static double measure(void (*loop)(long), double operations) {
    const long N = 100 * 1000;
    double best = 1.0;
    for (int run = 0; run < 20; ++run) { // some ms altogether
        const double begin = now();
        loop(N);
        best = std::min(best, now() - begin);
    }
    return 1e-9 * N * 12 * operations / best;
}

double asl_measure_peak(int n_bits) {
    if (n_bits != 32 && n_bits != 16 && n_bits != 8) {
        return 0;
    }
    const double operations = n_bits == 32 ? 2 * 16 : n_bits == 16 ? 2 * 32
                                                                   : 2 * 64;
    if (n_bits == 32 ? __builtin_cpu_supports("avx512f") : __builtin_cpu_supports("avx512vnni")) {
        return measure(n_bits == 32 ? f32_avx512 : n_bits == 16 ? int16_vnni
                                                                : int8_vnni,
                operations);
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        return measure(n_bits == 32 ? f32_avx2 : n_bits == 16 ? int16_avx2
                                                              : int8_avx2,
                operations / 2);
    }
    return 0;
}

#else

double asl_measure_peak(int) { return 0; }

#endif
