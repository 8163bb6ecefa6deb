// Layers that remember a state, computed by kernels of our own on CPUs: the short convolution before the recurrence, and gated
// delta nets (Qwen3-Next, Qwen3.5, Kimi Linear). The scalar kernel is the definition: the others give its bits, whatever the
// threads.

#pragma once

#include <cstddef>
#include <cstdint>

// Each channel's last n_taps inputs, weighted: y[t][c] = sum of x[c][t + i] * w[c][i].
struct asl_short_conv {
    int64_t n_channels = 0;
    int64_t n_tokens = 0;
    int64_t n_taps = 0;
    const float * x = nullptr; // [n_channels][n_tokens + n_taps - 1]
    const float * w = nullptr; // [n_channels][n_taps]
    float * y = nullptr;       // [n_tokens][n_channels]
};

// A channel's earlier inputs, and those of the chunk behind them: y[c] = { past[c], x[.][c] }
struct asl_joined_inputs {
    int64_t n_channels = 0;
    int64_t n_tokens = 0;
    int64_t n_past = 0;
    const float * past = nullptr; // [n_channels][n_past]
    const float * x = nullptr;    // rows of n_channels, one for each token
    int64_t ldx = 0;              // from one token to the next
    float * y = nullptr;          // [n_channels][n_past + n_tokens]
};

// One head of a gated delta net. State M[j][i], i of the key, j of the value; for each token
//   M = M * exp(g) (g a number, or one for each i),  M[j] += k * beta * (v[j] - M[j].k),  y[j] = M[j].q / sqrt(n)
struct asl_delta_net {
    int64_t n = 0; // elements of a head: keys and values
    int64_t n_tokens = 0;
    const float *q = nullptr, *k = nullptr, *v = nullptr, *g = nullptr, *beta = nullptr;
    int64_t ldq = 0, ldk = 0, ldv = 0, ldg = 0, ldbeta = 0; // from one token to the next
    bool g_of_each = false;
    const float * state = nullptr; // [n][n]
    float * new_state = nullptr;
    float * y = nullptr;
    int64_t ldy = 0;
};

struct asl_recurrent_kernel {
    const char * name;

    // channels [begin, end)
    void (*convolve)(const asl_short_conv & conv, int64_t begin, int64_t end);
    void (*join)(const asl_joined_inputs & inputs, int64_t begin, int64_t end);

    // values [begin, end) of the head; multiples of ASL_DELTA_BLOCK
    //   decays: [n_tokens], or [n_tokens][n] of each: exp(g)
    void (*delta)(const asl_delta_net & net, const float * decays, int64_t begin, int64_t end);
};

static const int64_t ASL_TAPS_MAX = 16;
// elements of a head
static const int64_t ASL_DELTA_MAX = 256;
// values of a head that are computed together
static const int64_t ASL_DELTA_BLOCK = 32;

// The kernel of this name, NULL if there is none or this machine cannot run it: "scalar", "AVX2", "AVX-512".
const asl_recurrent_kernel * asl_find_recurrent_kernel(const char * name);

// The fastest one that runs here.
const asl_recurrent_kernel & asl_recurrent_kernel_in_force();

// Part ith of nth of each
void asl_convolve_part(const asl_recurrent_kernel & kernel, const asl_short_conv & conv, int ith, int nth);
void asl_join_part(const asl_recurrent_kernel & kernel, const asl_joined_inputs & inputs, int ith, int nth);
// Of heads that follow each other: get(head) describes one.
template <class Get>
void asl_delta_part(const asl_recurrent_kernel & kernel, int64_t n_heads, int64_t n, Get get, int ith, int nth);

// exp(g) of all tokens, for asl_recurrent_kernel::delta; in memory of the thread
const float * asl_get_decays(const asl_delta_net & net);

template <class Get>
void asl_delta_part(const asl_recurrent_kernel & kernel, int64_t n_heads, int64_t n, Get get, int ith, int nth) {
    const int64_t n_blocks = n / ASL_DELTA_BLOCK, total = n_heads * n_blocks;
    const int64_t last = total * (ith + 1) / nth;
    for (int64_t at = total * ith / nth; at < last;) {
        const int64_t head = at / n_blocks;
        const int64_t stop = (head + 1) * n_blocks < last ? (head + 1) * n_blocks : last;
        const asl_delta_net net = get(head);
        kernel.delta(net, asl_get_decays(net), (at - head * n_blocks) * ASL_DELTA_BLOCK, (stop - head * n_blocks) * ASL_DELTA_BLOCK);
        at = stop;
    }
}

// defined by recurrent-avx2.cpp and recurrent-avx512.cpp. NULL where they were not compiled, or the processor lacks something
const asl_recurrent_kernel * asl_recurrent_kernel_avx2();
const asl_recurrent_kernel * asl_recurrent_kernel_avx512();
