#include "dequant.h"

#include "ggml-backend.h"

#include <algorithm>
#include <new>
#include <set>
#include <thread>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#endif

#if defined(__x86_64__) && defined(__GNUC__)
// libggml-base, where ggml_fp32_to_fp16_row lives, is compiled without F16C: its loop takes longer than the
// rest of the expansion
__attribute__((target("avx,f16c"))) static void fp32_to_fp16_row_f16c(const float * x, ggml_fp16_t * y, int64_t n) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        _mm_storeu_si128((__m128i *) (y + i), _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT));
    }
    ggml_fp32_to_fp16_row(x + i, y + i, n - i);
}

static void fp32_to_fp16_row(const float * x, ggml_fp16_t * y, int64_t n) {
    static const bool has_f16c = __builtin_cpu_supports("f16c") && __builtin_cpu_supports("avx");
    has_f16c ? fp32_to_fp16_row_f16c(x, y, n) : ggml_fp32_to_fp16_row(x, y, n);
}
#else
static void fp32_to_fp16_row(const float * x, ggml_fp16_t * y, int64_t n) { ggml_fp32_to_fp16_row(x, y, n); }
#endif

// bytes of a weight in F16, such that the next one is aligned
static size_t padded_bytes(const ggml_tensor * w) {
    return GGML_PAD(ggml_nelements(w) * sizeof(ggml_fp16_t), ggml_backend_buft_get_alignment(ggml_backend_cpu_buffer_type()));
}

void asl_dequantiser::set_mode(asl_dequant mode, int n_threads) {
    this->mode = mode;
    this->n_threads = std::max(1, n_threads);
    this->n_total = 0;
}

void asl_dequantiser::next_layer(int64_t n_tokens) {
    n_layer_tokens = n_tokens;
    expanded.clear();
    packed.clear();
}

void asl_dequantiser::release() {
    expanded.clear();
    packed.release();
    buffer.reset();
    ctx.reset();
}

// of a product
static int64_t n_tokens_of(const ggml_tensor * node) {
    return node->op == GGML_OP_MUL_MAT ? node->src[1]->ne[1] : node->src[1]->ne[2];
}

asl_held asl_dequantiser::choose(const ggml_tensor * node) const {
    if (!enabled() || (node->op != GGML_OP_MUL_MAT && node->op != GGML_OP_MUL_MAT_ID)) {
        return asl_held::stored;
    }
    const ggml_tensor * w = node->src[0];
    const ggml_tensor * x = node->src[1];

    const bool is_weight = w->op == GGML_OP_NONE && w->view_src == nullptr && w->buffer && x->type == GGML_TYPE_F32 &&
                           ggml_backend_buffer_get_usage(w->buffer) == GGML_BACKEND_BUFFER_USAGE_WEIGHTS && ggml_is_contiguous(w);
    asl_weight_use use;
    use.type = w->type;
    // a short chunk reads weights as they are: its products are of few rows
    const int64_t n_tokens = n_tokens_of(node);
    use.n_tokens = n_tokens < ASL_PACK_TOKENS_MIN ? n_tokens : n_layer_tokens;
    if (node->op == GGML_OP_MUL_MAT_ID) {
        use.of_experts = true;
        use.n_tokens_expert = n_tokens * node->src[2]->ne[0] / w->ne[2];
    }
    use.can_pack = asl_packed_weights::can_pack(node);
    // repacked weights are not host memory. Of AMX's, and of forms that are not known, nothing can be read
    use.repacked = is_weight && !ggml_backend_buffer_is_host(w->buffer);
    return is_weight && (!use.repacked || asl_find_repacked_form(w).rows > 0) ? asl_choose_held(mode, use) : asl_held::stored;
}

void asl_dequantiser::prepare(const std::vector<ggml_tensor *> & nodes) {
    std::vector<const ggml_tensor *> to_expand;
    std::vector<asl_packed_weights::wanted> to_pack;
    std::set<const ggml_tensor *> seen;
    for (const ggml_tensor * node : nodes) {
        const asl_held held = choose(node);
        if (held == asl_held::stored || !seen.insert(node->src[0]).second) {
            continue;
        }
        if (held == asl_held::f16) {
            to_expand.push_back(node->src[0]);
        } else {
            // one chunk has all tokens of the layer
            const bool once = node->op == GGML_OP_MUL_MAT_ID || n_tokens_of(node) >= n_layer_tokens;
            to_pack.push_back({ node->src[0], held == asl_held::int8 ? 8 : 16, once });
        }
    }
    prepare_expanded(to_expand);
    packed.prepare(to_pack, n_threads);
    n_total += (int32_t) seen.size();
}

void asl_dequantiser::prepare_expanded(const std::vector<const ggml_tensor *> & weights) {
    if (weights.empty()) {
        return;
    }
    size_t n_bytes = 0;
    for (const ggml_tensor * w : weights) {
        n_bytes += padded_bytes(w);
    }
    if (!buffer || ggml_backend_buffer_get_size(buffer.get()) < n_bytes) {
        buffer.reset();
        buffer.reset(ggml_backend_buft_alloc_buffer(ggml_backend_cpu_buffer_type(), n_bytes));
        if (!buffer) {
            throw std::bad_alloc();
        }
        ggml_backend_buffer_set_usage(buffer.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    }
    ctx.reset(ggml_init({ weights.size() * ggml_tensor_overhead(), nullptr, true }));

    char * base = (char *) ggml_backend_buffer_get_base(buffer.get());
    for (const ggml_tensor * w : weights) {
        ggml_tensor * t = ggml_new_tensor(ctx.get(), GGML_TYPE_F16, GGML_MAX_DIMS, w->ne);
        ggml_set_name(t, w->name);
        ggml_backend_tensor_alloc(buffer.get(), t, base);
        expand(w, (ggml_fp16_t *) t->data);
        expanded[w] = t;
        base += padded_bytes(w);
    }
}

size_t asl_dequantiser::size_bytes() const {
    return packed.size_bytes() + (buffer ? ggml_backend_buffer_get_size(buffer.get()) : 0);
}

void asl_dequantiser::expand(const ggml_tensor * src, ggml_fp16_t * dst) const {
    const auto * traits = ggml_get_type_traits(src->type);

    const int64_t n_row = src->ne[0];
    const int64_t n_rows = ggml_nrows(src);

    auto work = [&](int64_t begin, int64_t end) {
        std::vector<float> row(n_row);
        for (int64_t r = begin; r < end; ++r) {
            traits->to_float((const char *) src->data + r * src->nb[1], row.data(), n_row);
            fp32_to_fp16_row(row.data(), dst + r * n_row, n_row);
        }
    };

    std::vector<std::thread> threads;
    for (int i = 1; i < n_threads; ++i) {
        threads.emplace_back(work, n_rows * i / n_threads, n_rows * (i + 1) / n_threads);
    }
    work(0, n_rows / n_threads);
    for (auto & t : threads) {
        t.join();
    }
}

void asl_dequantiser::replace(const std::vector<ggml_tensor *> & nodes, ggml_context * ctx) const {
    std::vector<ggml_tensor *> with_packed;
    for (ggml_tensor * node : nodes) {
        const asl_held held = choose(node);
        if (held == asl_held::f16) {
            const auto it = expanded.find(node->src[0]);
            node->src[0] = it == expanded.end() ? node->src[0] : it->second;
        } else if (held != asl_held::stored) {
            with_packed.push_back(node);
        }
    }
    packed.replace(with_packed, ctx);
}
