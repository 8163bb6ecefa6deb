// The kernels of recurrent.h over vectors S of S::W numbers. Whoever includes this defines ASL_TARGET.

#pragma once

#include "recurrent.h"

#include <algorithm>
#include <cmath>

namespace {

// tokens whose inputs are brought into rows of channels at a time
const int64_t N_CONV_TOKENS = 64;

template <class S>
ASL_TARGET void convolve_channels(const asl_short_conv & conv, int64_t begin, int64_t end) {
    using vec = typename S::vec;
    const int64_t n_row = conv.n_tokens + conv.n_taps - 1;
    float rows[(N_CONV_TOKENS + ASL_TAPS_MAX) * S::W], taps[ASL_TAPS_MAX * S::W], out[S::W];
    for (int64_t c = begin; c < end; c += S::W) {
        const int64_t n = std::min(end - c, (int64_t) S::W);
        for (int64_t i = 0; i < conv.n_taps; ++i) {
            for (int64_t lane = 0; lane < S::W; ++lane) {
                taps[i * S::W + lane] = lane < n ? conv.w[(c + lane) * conv.n_taps + i] : 0.0f;
            }
        }
        for (int64_t t0 = 0; t0 < conv.n_tokens; t0 += N_CONV_TOKENS) {
            const int64_t n_tokens = std::min(N_CONV_TOKENS, conv.n_tokens - t0);
            for (int64_t lane = 0; lane < S::W; ++lane) {
                const float * x = conv.x + (c + std::min(lane, n - 1)) * n_row + t0; // past the end: the last channel again
                for (int64_t t = 0; t < n_tokens + conv.n_taps - 1; ++t) {
                    rows[t * S::W + lane] = x[t];
                }
            }
            for (int64_t t = 0; t < n_tokens; ++t) {
                vec sum = S::set1(0.0f);
                for (int64_t i = 0; i < conv.n_taps; ++i) {
                    sum = S::fma(S::load(rows + (t + i) * S::W), S::load(taps + i * S::W), sum);
                }
                float * y = conv.y + (t0 + t) * conv.n_channels + c;
                S::store(n == S::W ? y : out, sum);
                std::copy(out, n == S::W ? out : out + n, y);
            }
        }
    }
}

ASL_TARGET inline void join_channels(const asl_joined_inputs & inputs, int64_t begin, int64_t end) {
    const int64_t BLOCK = 16; // channels: a line of the cache of each token
    const int64_t n_row = inputs.n_past + inputs.n_tokens;
    for (int64_t c0 = begin; c0 < end; c0 += BLOCK) {
        const int64_t c1 = std::min(end, c0 + BLOCK);
        for (int64_t c = c0; c < c1; ++c) {
            std::copy(inputs.past + c * inputs.n_past, inputs.past + (c + 1) * inputs.n_past, inputs.y + c * n_row);
        }
        for (int64_t t0 = 0; t0 < inputs.n_tokens; t0 += BLOCK) {
            const int64_t t1 = std::min(inputs.n_tokens, t0 + BLOCK);
            for (int64_t c = c0; c < c1; ++c) {
                float * y = inputs.y + c * n_row + inputs.n_past;
                for (int64_t t = t0; t < t1; ++t) {
                    y[t] = inputs.x[t * inputs.ldx + c];
                }
            }
        }
    }
}

// Two vectors of values. A token's update of the state waits for the next token's pass, so that each token reads and writes
// the state once.
template <class S>
ASL_TARGET void delta_columns(const asl_delta_net & net, const float * decays, int64_t j) {
    using vec = typename S::vec;
    const int64_t N = 2 * S::W;
    alignas(64) float m[ASL_DELTA_MAX * N]; // [i][value]
    for (int64_t i = 0; i < net.n; ++i) {
        for (int64_t lane = 0; lane < N; ++lane) {
            m[i * N + lane] = net.state[(j + lane) * net.n + i];
        }
    }
    const float scale = 1.0f / sqrtf((float) net.n);
    vec d0 = S::set1(0.0f), d1 = d0; // of the token before
    for (int64_t t = 0; t <= net.n_tokens; ++t) {
        // at both ends the other token's numbers stand for those of no token: multiplied by 0, or not used
        const int64_t before = std::max<int64_t>(0, t - 1), here = std::min(t, net.n_tokens - 1);
        const float *k_before = net.k + before * net.ldk, *q_before = net.q + before * net.ldq, *k = net.k + here * net.ldk;
        const float * decay = decays + here * (net.g_of_each ? net.n : 1);
        const int64_t step = net.g_of_each;
        const bool is_end = t == net.n_tokens;
        vec a0 = S::set1(0.0f), a1 = a0, b0 = a0, b1 = a0;
        for (int64_t i = 0; i < net.n; ++i) {
            const vec x = S::set1(k_before[i]), y = S::set1(q_before[i]);
            vec m0 = S::fma(d0, x, S::load(m + i * N)), m1 = S::fma(d1, x, S::load(m + i * N + S::W));
            b0 = S::fma(m0, y, b0);
            b1 = S::fma(m1, y, b1);
            if (!is_end) {
                const vec g = S::set1(decay[i * step]), z = S::set1(k[i]);
                m0 = S::mul(m0, g);
                m1 = S::mul(m1, g);
                a0 = S::fma(m0, z, a0);
                a1 = S::fma(m1, z, a1);
            }
            S::store(m + i * N, m0);
            S::store(m + i * N + S::W, m1);
        }
        if (t > 0) {
            float * out = net.y + before * net.ldy + j;
            S::store(out, S::mul(b0, S::set1(scale)));
            S::store(out + S::W, S::mul(b1, S::set1(scale)));
        }
        const float * v = net.v + here * net.ldv + j;
        const vec beta = S::set1(net.beta[here * net.ldbeta]);
        d0 = S::mul(S::sub(S::load(v), a0), beta);
        d1 = S::mul(S::sub(S::load(v + S::W), a1), beta);
    }
    for (int64_t i = 0; i < net.n; ++i) {
        for (int64_t lane = 0; lane < N; ++lane) {
            net.new_state[(j + lane) * net.n + i] = m[i * N + lane];
        }
    }
}

template <class S>
ASL_TARGET void delta_block(const asl_delta_net & net, const float * decays, int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; j += 2 * S::W) {
        delta_columns<S>(net, decays, j);
    }
}

} // namespace
