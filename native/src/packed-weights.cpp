#include "packed-weights.h"

#include "experts.h"
#include "pages.h"

#include "ggml-backend.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <thread>
#include <tuple>

static const size_t ALIGNMENT = 64; // of packed matrices

bool asl_packed_weights::can_pack(const ggml_tensor * node) {
    const ggml_tensor * w = node->src[0];
    const ggml_tensor * x = node->src[1];
    const bool is_one = node->op == GGML_OP_MUL_MAT && w->ne[2] == 1;
    const bool is_experts = node->op == GGML_OP_MUL_MAT_ID && node->src[2]->type == GGML_TYPE_I32 && x->ne[3] == 1;
    return (is_one || is_experts) && w->ne[3] == 1 && asl_find_packed_form(w->type).width > 0 && x->type == GGML_TYPE_F32 &&
           x->nb[0] == sizeof(float) && node->type == GGML_TYPE_F32 && ggml_is_contiguous(node);
}

void asl_packed_weights::prepare(const std::vector<wanted> & list, int n_threads) {
    clear();
    std::vector<const ggml_tensor *> to_pack;
    for (const auto & [w, act_bits, as_multiplied] : list) {
        auto p = std::make_unique<product>();
        p->kernel = &asl_packed_kernel_in_force();
        p->weights.form = asl_find_packed_form(w->type);
        p->weights.n_in = w->ne[0];
        p->weights.n_out = w->ne[1];
        p->form = { act_bits, p->weights.form.width, w->ne[0] };
        p->n_expert = w->ne[2];
        p->source = { w->type, (const uint8_t *) w->data, asl_find_repacked_form(w) };
        products[w] = std::move(p);
        if (!as_multiplied) {
            to_pack.push_back(w);
        }
    }
    pack(to_pack, n_threads);
}

static uint8_t * align(void * data) { return (uint8_t *) GGML_PAD((uintptr_t) data, ALIGNMENT); }

void asl_packed_weights::pack(const std::vector<const ggml_tensor *> & list, int n_threads) {
    size_t n_bytes = 0;
    for (const ggml_tensor * w : list) {
        n_bytes += products[w]->weights.n_bytes();
    }
    if (n_bytes == 0) {
        return;
    }
    if (size_bytes() < n_bytes + ALIGNMENT) {
        buffer.reset();
        buffer.reset(ggml_backend_buft_alloc_buffer(ggml_backend_cpu_buffer_type(), n_bytes + ALIGNMENT));
        if (!buffer) {
            throw std::bad_alloc();
        }
        asl_prefer_large_pages(ggml_backend_buffer_get_base(buffer.get()), size_bytes());
    }
    uint8_t * base = align(ggml_backend_buffer_get_base(buffer.get())); // each matrix is a multiple of the alignment
    for (const ggml_tensor * w : list) {
        asl_packed_matrix & matrix = products[w]->weights;
        const asl_packed_source & source = products[w]->source;
        matrix.data = base;
        auto work = [&, base](int64_t begin, int64_t end) {
            asl_pack(source.type, source.data, source.repacked, matrix, begin, end, base);
        };
        const int64_t n = matrix.n_panels();
        std::vector<std::thread> threads;
        for (int i = 1; i < n_threads; ++i) {
            threads.emplace_back(work, n * i / n_threads, n * (i + 1) / n_threads);
        }
        work(0, n / n_threads);
        for (auto & t : threads) {
            t.join();
        }
        base += matrix.n_bytes();
    }
}

// Row r of a tensor, counted over all dimensions but the first.
static const float * get_row(const ggml_tensor * x, int64_t r) {
    const int64_t i1 = r % x->ne[1], i2 = r / x->ne[1] % x->ne[2], i3 = r / x->ne[1] / x->ne[2];
    return (const float *) ((const char *) x->data + i1 * x->nb[1] + i2 * x->nb[2] + i3 * x->nb[3]);
}

void asl_packed_weights::quantise(ggml_tensor * dst, int ith, int nth, void * userdata) {
    const product & p = *(const product *) userdata;
    const int64_t n = dst->ne[1];
    for (int64_t r = n * ith / nth; r < n * (ith + 1) / nth; ++r) {
        p.kernel->quantise(p.form, get_row(dst->src[0], r), (uint8_t *) dst->data + r * p.form.row_bytes());
    }
}

void asl_packed_weights::multiply(ggml_tensor * dst, int ith, int nth, void * userdata) {
    const product & p = *(const product *) userdata;
    asl_packed_tokens tokens;
    tokens.acts = (const uint8_t *) dst->src[0]->data;
    tokens.y = (float *) dst->data;
    tokens.ldy = dst->ne[0];
    tokens.n = ggml_nrows(dst);
    const int64_t n = p.weights.n_panels();
    const int64_t begin = n * ith / nth, end = n * (ith + 1) / nth;
    if (p.weights.data) {
        p.kernel->product(p.weights, p.form, tokens, begin, end);
    } else {
        asl_pack_and_multiply(*p.kernel, p.source, p.weights, p.form, tokens, begin, end);
    }
}

void asl_packed_weights::multiply_experts(ggml_tensor * dst, int ith, int nth, void * userdata) {
    const product & p = *(const product *) userdata;
    const ggml_tensor * acts = dst->src[0];
    const ggml_tensor * ids = dst->src[1];
    asl_expert_product experts;
    experts.source = p.source;
    experts.shape = p.weights;
    experts.form = p.form;
    experts.n_expert = p.n_expert;
    experts.n_tokens = ids->ne[1];
    experts.n_used = ids->ne[0];
    experts.ids = (const char *) ids->data;
    experts.nb_used = ids->nb[0];
    experts.nb_token = ids->nb[1];
    experts.acts = (const uint8_t *) acts->data;
    experts.n_acts = acts->ne[1] / ids->ne[1];
    experts.y = (float *) dst->data;
    asl_multiply_experts(*p.kernel, experts, ith, nth);
}

void asl_packed_weights::replace(const std::vector<ggml_tensor *> & nodes, ggml_context * ctx) const {
    std::map<std::tuple<const ggml_tensor *, int, int>, ggml_tensor *> rounded; // by activations and form
    for (ggml_tensor * node : nodes) {
        const auto found = products.find(node->src[0]);
        if (found == products.end() || !can_pack(node)) {
            continue;
        }
        product * p = found->second.get();
        ggml_tensor * x = node->src[1];
        ggml_tensor *& acts = rounded[{ x, p->form.n_bits, p->form.width }];
        if (!acts) {
            acts = ggml_custom_4d(ctx, GGML_TYPE_I8, p->form.row_bytes(), ggml_nrows(x), 1, 1, &x, 1, quantise, GGML_N_TASKS_MAX, p);
            ggml_format_name(acts, "%s (rounded)", x->name);
        }
        // the node itself changes, so that whatever reads it goes on to
        const bool is_experts = node->op == GGML_OP_MUL_MAT_ID;
        ggml_tensor * read[] = { acts, is_experts ? node->src[2] : nullptr };
        const ggml_tensor * custom = ggml_custom_4d(ctx, GGML_TYPE_F32, node->ne[0], node->ne[1], node->ne[2], node->ne[3], read,
                is_experts ? 2 : 1, is_experts ? multiply_experts : multiply, GGML_N_TASKS_MAX, p);
        node->op = custom->op;
        memcpy(node->op_params, custom->op_params, sizeof(node->op_params));
        memcpy(node->src, custom->src, sizeof(node->src));
    }
}

void asl_packed_weights::clear() {
    products.clear();
}

void asl_packed_weights::release() {
    clear();
    buffer.reset();
}
