#include "recurrent.h"

#include <cmath>
#include <cstring>
#include <vector>

#define ASL_TARGET

#include "recurrent-tile.h"

namespace {

struct one {
    using vec = float;
    static const int64_t W = 1;

    static vec load(const float * p) { return *p; }
    static void store(float * p, vec x) { *p = x; }
    static vec set1(float x) { return x; }
    static vec sub(vec a, vec b) { return a - b; }
    static vec mul(vec a, vec b) { return a * b; }
    static vec fma(vec a, vec b, vec c) { return std::fma(a, b, c); }
};

} // namespace

static const asl_recurrent_kernel SCALAR = { "scalar", convolve_channels<one>, join_channels, delta_block<one> };

const asl_recurrent_kernel * asl_find_recurrent_kernel(const char * name) {
    for (const asl_recurrent_kernel * kernel : { &SCALAR, asl_recurrent_kernel_avx2(), asl_recurrent_kernel_avx512() }) {
        if (kernel && strcmp(kernel->name, name) == 0) {
            return kernel;
        }
    }
    return nullptr;
}

const asl_recurrent_kernel & asl_recurrent_kernel_in_force() {
    const asl_recurrent_kernel *avx512 = asl_recurrent_kernel_avx512(), *avx2 = asl_recurrent_kernel_avx2();
    return avx512 ? *avx512 : avx2 ? *avx2
                                   : SCALAR;
}

void asl_convolve_part(const asl_recurrent_kernel & kernel, const asl_short_conv & conv, int ith, int nth) {
    kernel.convolve(conv, conv.n_channels * ith / nth, conv.n_channels * (ith + 1) / nth);
}

void asl_join_part(const asl_recurrent_kernel & kernel, const asl_joined_inputs & inputs, int ith, int nth) {
    kernel.join(inputs, inputs.n_channels * ith / nth, inputs.n_channels * (ith + 1) / nth);
}

const float * asl_get_decays(const asl_delta_net & net) {
    static thread_local std::vector<float> decays;
    const int64_t n = net.g_of_each ? net.n : 1;
    decays.resize(n * net.n_tokens);
    for (int64_t t = 0; t < net.n_tokens; ++t) {
        for (int64_t i = 0; i < n; ++i) {
            decays[t * n + i] = expf(net.g[t * net.ldg + i]);
        }
    }
    return decays.data();
}
