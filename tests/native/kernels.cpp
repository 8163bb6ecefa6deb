// Random shapes of every kernel of ours, in real threads, beside the scalar kernel in one: built with sanitizers by `make
// sanitize`.
//
//     kernels N SEED    // N shapes of each kind; says what differs, and returns 1

#include "attend.h"
#include "experts.h"
#include "packed.h"
#include "recurrent.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <thread>
#include <vector>

static std::mt19937 rng;

static int64_t draw(int64_t least, int64_t most) { return least + (int64_t) (rng() % (uint64_t) (most - least + 1)); }

static std::vector<float> draw_floats(int64_t n, float scale = 1.0f) {
    std::vector<float> result(n);
    for (float & x : result) {
        x = scale * ((float) rng() / (float) rng.max() - 0.5f);
    }
    return result;
}

// Bytes that are ordinary numbers in every form of a scale.
static std::vector<uint8_t> draw_weights(size_t n) {
    std::vector<uint8_t> result(n);
    for (uint8_t & x : result) {
        x = 0x30 | (rng() & 0xf);
    }
    return result;
}

static void in_threads(int n, const std::function<void(int)> & work) {
    std::vector<std::thread> threads;
    for (int i = 1; i < n; ++i) {
        threads.emplace_back(work, i);
    }
    work(0);
    for (auto & t : threads) {
        t.join();
    }
}

static int n_different = 0;

static void compare(const char * kind, const char * kernel, const std::vector<float> & found, const std::vector<float> & expected) {
    if (memcmp(found.data(), expected.data(), expected.size() * sizeof(float)) != 0) {
        printf("%s: %s differs from the scalar kernel\n", kind, kernel);
        ++n_different;
    }
}

static const ggml_type TYPES[] = { GGML_TYPE_Q4_0, GGML_TYPE_Q4_1, GGML_TYPE_Q5_0, GGML_TYPE_Q5_1, GGML_TYPE_Q8_0,
    GGML_TYPE_IQ4_NL, GGML_TYPE_MXFP4, GGML_TYPE_Q2_K, GGML_TYPE_Q4_K, GGML_TYPE_Q5_K, GGML_TYPE_Q6_K };

static void try_product(int n_threads) {
    const ggml_type type = TYPES[draw(0, std::size(TYPES) - 1)];
    const int64_t n_in = ggml_blck_size(type) * draw(1, 5), n_out = draw(1, 70), n_tokens = draw(1, 20);
    const int bits = draw(0, 1) ? 8 : 16;
    const auto weights = draw_weights(n_out * ggml_row_size(type, n_in));
    const auto x = draw_floats(n_tokens * n_in, 6.0f);
    std::vector<float> expected(n_tokens * n_out);
    asl_compute_packed(*asl_find_packed_kernel("scalar"), type, weights.data(), {}, n_out, n_in, bits, x.data(), n_tokens, expected.data());
    for (const char * name : { "AVX2", "AVX-512 VNNI" }) {
        const asl_packed_kernel * kernel = asl_find_packed_kernel(name);
        asl_packed_matrix w;
        if (!kernel || !asl_shape_packed(type, {}, n_out, n_in, w)) {
            continue;
        }
        std::vector<uint8_t> memory(w.n_bytes() + 64);
        uint8_t * packed = (uint8_t *) GGML_PAD((uintptr_t) memory.data(), 64);
        const asl_act_form form { bits, w.form.width, n_in };
        std::vector<uint8_t> acts(n_tokens * form.row_bytes());
        std::vector<float> y(n_tokens * n_out);
        asl_packed_tokens tokens;
        tokens.acts = acts.data();
        tokens.y = y.data();
        tokens.ldy = n_out;
        tokens.n = n_tokens;
        const asl_packed_source source { type, weights.data(), {} };
        for (const bool as_multiplied : { false, true }) {
            in_threads(n_threads, [&](int i) {
                const int64_t n = w.n_panels();
                asl_pack(type, weights.data(), {}, w, n * i / n_threads, n * (i + 1) / n_threads, packed);
                for (int64_t t = n_tokens * i / n_threads; t < n_tokens * (i + 1) / n_threads; ++t) {
                    kernel->quantise(form, x.data() + t * n_in, acts.data() + t * form.row_bytes());
                }
            });
            w.data = packed;
            in_threads(n_threads, [&](int i) {
                const int64_t begin = w.n_panels() * i / n_threads, end = w.n_panels() * (i + 1) / n_threads;
                if (as_multiplied) {
                    asl_pack_and_multiply(*kernel, source, w, form, tokens, begin, end);
                } else {
                    kernel->product(w, form, tokens, begin, end);
                }
            });
            compare("a product", name, y, expected);
        }
    }
}

static void try_experts(int n_threads) {
    const ggml_type type = TYPES[draw(0, std::size(TYPES) - 1)];
    const int64_t n_in = ggml_blck_size(type) * draw(1, 3), n_out = draw(1, 70);
    asl_expert_product p;
    p.n_expert = draw(1, 6);
    p.n_tokens = draw(1, 30);
    p.n_used = draw(1, p.n_expert);
    p.n_acts = draw(0, 1) ? 1 : p.n_used;
    const auto weights = draw_weights(p.n_expert * n_out * ggml_row_size(type, n_in));
    const auto x = draw_floats(p.n_tokens * p.n_acts * n_in, 6.0f);
    std::vector<int32_t> ids(p.n_tokens * p.n_used);
    for (int32_t & id : ids) {
        id = (int32_t) draw(0, p.n_expert - 1);
    }
    p.source = { type, weights.data(), {} };
    p.ids = (const char *) ids.data();
    p.nb_used = sizeof(int32_t);
    p.nb_token = p.n_used * sizeof(int32_t);
    std::vector<float> expected(p.n_tokens * p.n_used * n_out), y(expected.size());
    p.y = expected.data();
    asl_compute_experts(*asl_find_packed_kernel("scalar"), p, n_out, n_in, 8, x.data(), 1);
    for (const char * name : { "AVX2", "AVX-512 VNNI" }) {
        const asl_packed_kernel * kernel = asl_find_packed_kernel(name);
        if (!kernel || !asl_shape_packed(type, {}, n_out, n_in, p.shape)) {
            continue;
        }
        p.form = { 8, p.shape.form.width, n_in };
        std::vector<uint8_t> acts(p.n_tokens * p.n_acts * p.form.row_bytes());
        for (int64_t row = 0; row < p.n_tokens * p.n_acts; ++row) {
            kernel->quantise(p.form, x.data() + row * n_in, acts.data() + row * p.form.row_bytes());
        }
        p.acts = acts.data();
        p.y = y.data();
        in_threads(n_threads, [&](int i) { asl_multiply_experts(*kernel, p, i, n_threads); });
        compare("a product of experts", name, y, expected);
    }
}

static asl_head_rows make_rows(const std::vector<float> & x, int64_t n_embd, int64_t n_head_kv) {
    asl_head_rows rows;
    rows.type = GGML_TYPE_F32;
    rows.data = (const char *) x.data();
    rows.n_embd = n_embd;
    rows.nb_head = n_embd * sizeof(float);
    rows.nb_cell = n_head_kv * rows.nb_head;
    return rows;
}

static void try_attention(int n_threads) {
    asl_attend a;
    a.n_tokens = draw(1, 90);
    a.n_past = draw(0, 1) * draw(0, 150);
    a.n_head_kv = draw(1, 3);
    a.n_head = a.n_head_kv * draw(1, 4);
    a.n_swa = draw(0, 2) ? 0 : draw(1, 100);
    const int64_t n_embd_k = draw(1, 70), n_embd_v = draw(1, 70);
    const auto q = draw_floats(a.n_tokens * a.n_head * n_embd_k, 4.0f), k = draw_floats(a.n_keys() * a.n_head_kv * n_embd_k, 2.0f);
    const auto v = draw_floats(a.n_keys() * a.n_head_kv * n_embd_v);
    a.q = (const char *) q.data();
    a.nb_q_head = n_embd_k * sizeof(float);
    a.nb_q_token = a.n_head * a.nb_q_head;
    a.k = make_rows(k, n_embd_k, a.n_head_kv);
    a.v = make_rows(v, n_embd_v, a.n_head_kv);
    a.scale = 0.3f;
    a.n_queries = draw(0, a.n_tokens);
    std::vector<float> softmax(a.n_queries * a.n_head * 2), scores(a.n_head_kv * a.n_keys()), expected_scores(scores.size());
    std::vector<float> y(a.n_tokens * a.n_head * n_embd_v), expected(y.size());
    a.softmax = softmax.data();
    auto run = [&](const asl_attend_kernel & kernel, int n, std::vector<float> & to, std::vector<float> & to_scores) {
        a.y = to.data();
        in_threads(n, [&](int i) { asl_attend_part(kernel, a, i, n); });
        in_threads(a.n_queries > 0 ? n : 0, [&](int i) { asl_score_part(kernel, a, to_scores.data(), a.n_keys(), i, n); });
    };
    for (const bool rounded : { false, true }) {
        a.is_rounded = false;
        const asl_attend_kernel * base = asl_find_attend_kernel(rounded ? "plain 16" : "scalar");
        a.is_rounded = rounded;
        run(*base, 1, expected, expected_scores);
        for (const char * name : { "AVX2", "AVX-512" }) {
            const asl_attend_kernel * kernel = asl_find_attend_kernel(name);
            if (kernel && (!rounded || kernel->attend_rounded)) {
                run(*kernel, n_threads, y, scores);
                compare(rounded ? "rounded attention" : "attention", name, y, expected);
                compare("scores", name, scores, expected_scores);
            }
        }
    }
}

static void try_recurrent(int n_threads) {
    const int64_t n = 32 * draw(1, 4), n_head = draw(1, 3), n_tokens = draw(1, 40), n_g = draw(0, 1) ? 1 : n;
    const int64_t n_channels = draw(1, 70), n_taps = draw(1, 5);
    const auto q = draw_floats(n_tokens * n_head * n), k = draw_floats(q.size(), 0.3f), v = draw_floats(q.size());
    auto g = draw_floats(n_tokens * n_head * n_g);
    for (float & x : g) {
        x = -std::fabs(x);
    }
    const auto beta = draw_floats(n_tokens * n_head), state = draw_floats(n_head * n * n);
    const auto past = draw_floats(n_channels * (n_taps - 1)), x = draw_floats(n_tokens * n_channels), w = draw_floats(n_channels * n_taps);
    std::vector<float> expected, expected_conv;
    for (const char * name : { "scalar", "AVX2", "AVX-512" }) {
        const asl_recurrent_kernel * kernel = asl_find_recurrent_kernel(name);
        if (!kernel) {
            continue;
        }
        const int nth = expected.empty() ? 1 : n_threads;
        std::vector<float> out(q.size() + state.size()), joined(n_channels * (n_taps - 1 + n_tokens)), y(n_tokens * n_channels);
        in_threads(nth, [&](int i) {
            auto get = [&](int64_t head) {
                asl_delta_net net;
                net.n = n;
                net.n_tokens = n_tokens;
                net.q = q.data() + head * n;
                net.k = k.data() + head * n;
                net.v = v.data() + head * n;
                net.g = g.data() + head * n_g;
                net.beta = beta.data() + head;
                net.ldq = net.ldk = net.ldv = net.ldy = n_head * n;
                net.ldg = n_head * n_g;
                net.ldbeta = n_head;
                net.g_of_each = n_g == n;
                net.state = state.data() + head * n * n;
                net.y = out.data() + head * n;
                net.new_state = out.data() + q.size() + head * n * n;
                return net;
            };
            asl_delta_part(*kernel, n_head, n, get, i, nth);
            asl_join_part(*kernel, { n_channels, n_tokens, n_taps - 1, past.data(), x.data(), n_channels, joined.data() }, i, nth);
        });
        in_threads(nth, [&](int i) {
            asl_convolve_part(*kernel, { n_channels, n_tokens, n_taps, joined.data(), w.data(), y.data() }, i, nth);
        });
        expected = expected.empty() ? out : expected;
        expected_conv = expected_conv.empty() ? y : expected_conv;
        compare("delta nets", name, out, expected);
        compare("a short convolution", name, y, expected_conv);
    }
}

int main(int argc, char ** argv) {
    const int n = argc > 1 ? atoi(argv[1]) : 20;
    rng.seed(argc > 2 ? (unsigned) atoi(argv[2]) : 0);
    for (int i = 0; i < n; ++i) {
        const int n_threads = (int) draw(1, 5);
        try_product(n_threads);
        try_experts(n_threads);
        try_attention(n_threads);
        try_recurrent(n_threads);
    }
    printf("%d shapes of each kind of kernel, %d differ\n", n, n_different);
    return n_different > 0;
}
