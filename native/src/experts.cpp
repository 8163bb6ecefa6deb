#include "experts.h"

#include <algorithm>
#include <vector>

// Packing a panel takes about as long as multiplying it with so many tokens.
static const int64_t N_TOKENS_PACKING = 16;

namespace {

// Which rows of activations, and of outputs, are those of each expert.
struct expert_rows {
    std::vector<int64_t> first; // [n_expert + 1] of each expert in the two others
    std::vector<int32_t> acts;
    std::vector<int32_t> y;

    int64_t count(int64_t expert) const { return first[expert + 1] - first[expert]; }
};

} // namespace

static expert_rows group_rows(const asl_expert_product & p) {
    expert_rows rows;
    rows.first.resize(p.n_expert + 1);
    for (int64_t t = 0; t < p.n_tokens; ++t) {
        for (int64_t u = 0; u < p.n_used; ++u) {
            GGML_ASSERT(p.get_expert(t, u) >= 0 && p.get_expert(t, u) < p.n_expert);
            ++rows.first[p.get_expert(t, u) + 1];
        }
    }
    for (int64_t expert = 0; expert < p.n_expert; ++expert) {
        rows.first[expert + 1] += rows.first[expert];
    }
    std::vector<int64_t> next = rows.first;
    rows.acts.resize(p.n_tokens * p.n_used);
    rows.y.resize(p.n_tokens * p.n_used);
    for (int64_t t = 0; t < p.n_tokens; ++t) {
        for (int64_t u = 0; u < p.n_used; ++u) {
            const int64_t i = next[p.get_expert(t, u)]++;
            rows.acts[i] = (int32_t) (t * p.n_acts + u % p.n_acts);
            rows.y[i] = (int32_t) (t * p.n_used + u);
        }
    }
    return rows;
}

// The first of n units of the same cost, which begin at `start`, that begins at `at` or after it.
static int64_t first_unit(int64_t at, int64_t start, int64_t cost, int64_t n) {
    return at <= start ? 0 : std::min(n, (at - start + cost - 1) / cost);
}

void asl_multiply_experts(const asl_packed_kernel & kernel, const asl_expert_product & p, int ith, int nth) {
    const expert_rows rows = group_rows(p);
    const int64_t n_pairs = (p.shape.n_panels() + 1) / 2; // kernels take two panels at a time
    auto cost_of = [&](int64_t expert) { return rows.count(expert) > 0 ? rows.count(expert) + N_TOKENS_PACKING : 0; };
    int64_t total = 0;
    for (int64_t expert = 0; expert < p.n_expert; ++expert) {
        total += cost_of(expert) * n_pairs;
    }
    const int64_t from = total * ith / nth, to = total * (ith + 1) / nth;

    const size_t n_bytes = ggml_row_size(p.source.type, p.shape.n_in) * p.shape.n_out; // of a matrix
    int64_t start = 0;
    for (int64_t expert = 0; expert < p.n_expert; ++expert) {
        const int64_t cost = cost_of(expert);
        if (cost == 0) {
            continue;
        }
        const int64_t begin = 2 * first_unit(from, start, cost, n_pairs), end = 2 * first_unit(to, start, cost, n_pairs);
        if (begin < end) {
            asl_packed_source source = p.source;
            source.data += expert * n_bytes;
            asl_packed_tokens tokens;
            tokens.acts = p.acts;
            tokens.y = p.y;
            tokens.ldy = p.shape.n_out;
            tokens.n = rows.count(expert);
            tokens.act_rows = rows.acts.data() + rows.first[expert];
            tokens.y_rows = rows.y.data() + rows.first[expert];
            asl_pack_and_multiply(kernel, source, p.shape, p.form, tokens, begin, std::min(end, p.shape.n_panels()));
        }
        start += cost * n_pairs;
    }
}

bool asl_compute_experts(const asl_packed_kernel & kernel, asl_expert_product p, int64_t n_out, int64_t n_in, int act_bits,
        const float * x, int n_threads) {
    if (p.n_tokens < 1 || p.n_expert < 1 || !asl_shape_packed(p.source.type, p.source.repacked, n_out, n_in, p.shape)) {
        return false;
    }
    p.form = { act_bits, p.shape.form.width, n_in };
    std::vector<uint8_t> acts(p.n_tokens * p.n_acts * p.form.row_bytes());
    for (int64_t row = 0; row < p.n_tokens * p.n_acts; ++row) {
        kernel.quantise(p.form, x + row * n_in, acts.data() + row * p.form.row_bytes());
    }
    p.acts = acts.data();
    for (int i = 0; i < n_threads; ++i) {
        asl_multiply_experts(kernel, p, i, n_threads);
    }
    return true;
}
