// Which attention kernel is in force: the fastest one that gives the scalar one's bits.

#include "attend.h"

#include <cstring>
#include <vector>

// Small cases that kernels are compared on at first use.

// A chunk of some form, over numbers that are the same in every run.
struct attend_case {
    attend_case(int64_t n_embd, int64_t n_swa, float cap, bool transposed);

    // y, then softmax, then scores
    std::vector<float> run(const asl_attend_kernel & kernel);

    asl_attend a;
    std::vector<float> q, sinks;
    std::vector<ggml_fp16_t> k, v;
};

static std::vector<float> draw(size_t n, uint32_t seed) {
    std::vector<float> values(n);
    uint32_t state = seed;
    for (float & x : values) {
        state = state * 1664525u + 1013904223u;
        x = ((int) (state >> 8) % 20001 - 10000) / 3000.0f;
    }
    return values;
}

attend_case::attend_case(int64_t n_embd, int64_t n_swa, float cap, bool transposed) {
    a.n_tokens = 9;
    a.n_past = 121;
    a.n_head = 6;
    a.n_head_kv = 2;
    a.n_swa = n_swa;
    a.n_queries = 4;
    a.scale = 0.3f;
    a.cap = cap;
    q = draw(a.n_tokens * a.n_head * n_embd, 1);
    sinks = draw(a.n_head, 2);
    const std::vector<float> drawn_k = draw(a.n_keys() * a.n_head_kv * n_embd, 3);
    const std::vector<float> drawn_v = draw(a.n_keys() * a.n_head_kv * n_embd, 4);
    k.resize(drawn_k.size());
    v.resize(drawn_v.size());
    ggml_fp32_to_fp16_row(drawn_k.data(), k.data(), k.size());
    ggml_fp32_to_fp16_row(drawn_v.data(), v.data(), v.size());

    const size_t n_bytes = sizeof(ggml_fp16_t), n_row = a.n_head_kv * n_embd * n_bytes;
    a.q = (const char *) q.data();
    a.nb_q_head = n_embd * sizeof(float);
    a.nb_q_token = a.n_head * a.nb_q_head;
    a.k = { GGML_TYPE_F16, (const char *) k.data(), n_embd, n_row, n_embd * n_bytes, 0, false };
    a.v = { GGML_TYPE_F16, (const char *) v.data(), n_embd, n_row, n_embd * n_bytes, 0, false };
    if (transposed) {
        a.v.nb_cell = n_bytes;
        a.v.nb_embd = a.n_keys() * n_bytes;
        a.v.nb_head = n_embd * a.v.nb_embd;
        a.v.transposed = true;
    }
    a.sinks = n_swa > 0 ? sinks.data() : nullptr;
}

std::vector<float> attend_case::run(const asl_attend_kernel & kernel) {
    const size_t n_y = a.n_tokens * a.n_head * a.v.n_embd, n_softmax = a.n_queries * a.n_head * 2;
    std::vector<float> result(n_y + n_softmax + a.n_head_kv * a.n_keys());
    a.y = result.data();
    a.softmax = result.data() + n_y;
    asl_attend_part(kernel, a, 0, 1);
    asl_score_part(kernel, a, a.softmax + n_softmax, a.n_keys(), 0, 1);
    return result;
}

static bool is_right(const asl_attend_kernel & kernel) {
    const asl_attend_kernel & scalar = *asl_find_attend_kernel("scalar");
    for (attend_case c : { attend_case(64, 0, 0.0f, false), attend_case(40, 70, 0.0f, true), attend_case(96, 20, 5.0f, false) }) {
        for (const bool is_rounded : { false, true }) {
            c.a.is_rounded = is_rounded;
            if (is_rounded && !kernel.attend_rounded) {
                continue;
            }
            const std::vector<float> want = c.run(scalar), got = c.run(kernel);
            if (memcmp(want.data(), got.data(), want.size() * sizeof(float)) != 0) {
                return false;
            }
        }
    }
    return true;
}

const asl_attend_kernel & asl_attend_kernel_in_force() {
    static const asl_attend_kernel & kernel = []() -> const asl_attend_kernel & {
        for (const asl_attend_kernel * k : { asl_attend_kernel_avx512(), asl_attend_kernel_avx2() }) {
            if (k && is_right(*k)) {
                return *k;
            }
        }
        return *asl_find_attend_kernel("scalar");
    }();
    return kernel;
}
