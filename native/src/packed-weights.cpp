#include "packed-weights.h"

#include "pages.h"

#include "ggml-backend.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <thread>
#include <tuple>

static const size_t ALIGNMENT = 64; // of packed matrices
static const int64_t N_GROUP_BYTES = 512 * 1024; // of panels that are packed and multiplied at a time

bool asl_packed_weights::can_pack(const ggml_tensor * node) {
    const ggml_tensor * w = node->src[0];
    const ggml_tensor * x = node->src[1];
    return node->op == GGML_OP_MUL_MAT && w->ne[2] == 1 && w->ne[3] == 1 && asl_find_packed_form(w->type).width > 0 &&
           x->type == GGML_TYPE_F32 && x->nb[0] == sizeof(float) && node->type == GGML_TYPE_F32 && ggml_is_contiguous(node);
}

void asl_packed_weights::prepare(const std::vector<wanted> & list, bool once, int n_threads) {
    clear();
    for (const auto & [w, act_bits] : list) {
        auto p = std::make_unique<product>();
        p->kernel = &asl_packed_kernel_in_force();
        p->weights.form = asl_find_packed_form(w->type);
        p->weights.n_in = w->ne[0];
        p->weights.n_out = w->ne[1];
        p->form = { act_bits, p->weights.form.width, w->ne[0] };
        p->source = once ? w : nullptr;
        products[w] = std::move(p);
    }
    if (!once) {
        pack(list, n_threads);
    }
}

static uint8_t * align(void * data) { return (uint8_t *) GGML_PAD((uintptr_t) data, ALIGNMENT); }

void asl_packed_weights::pack(const std::vector<wanted> & list, int n_threads) {
    size_t n_bytes = 0;
    for (const wanted & one : list) {
        n_bytes += products[one.weights]->weights.n_bytes();
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
    for (const wanted & one : list) {
        const ggml_tensor * w = one.weights;
        asl_packed_matrix & matrix = products[w]->weights;
        matrix.data = base;
        const asl_repacked_form repacked = asl_find_repacked_form(w);
        auto work = [&, base](int64_t begin, int64_t end) { asl_pack(w->type, w->data, repacked, matrix, begin, end, base); };
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
    const uint8_t * acts = (const uint8_t *) dst->src[0]->data;
    const int64_t n = p.weights.n_panels();
    const int64_t begin = n * ith / nth, end = n * (ith + 1) / nth;
    if (p.source) {
        pack_and_multiply(p, acts, begin, end, dst);
    } else {
        p.kernel->product(p.weights, p.form, acts, ggml_nrows(dst), begin, end, (float *) dst->data, dst->ne[0]);
    }
}

// Some panels at a time, which stay in the second-level cache.
void asl_packed_weights::pack_and_multiply(const product & p, const uint8_t * acts, int64_t begin, int64_t end, ggml_tensor * dst) {
    static thread_local std::vector<uint8_t> memory;
    const asl_repacked_form repacked = asl_find_repacked_form(p.source);
    const size_t n_row = ggml_row_size(p.source->type, p.source->ne[0]);
    // pairs, as the kernels have them: each of the groups reads all activations
    const int64_t n_most = std::max<int64_t>(2, N_GROUP_BYTES / p.weights.panel_bytes() / 2 * 2);
    for (int64_t first = begin; first < end; first += n_most) {
        const int64_t n = std::min(n_most, end - first);
        asl_packed_matrix group = p.weights;
        group.n_out = std::min(n * ASL_PANEL, p.weights.n_out - first * ASL_PANEL);
        memory.resize(std::max(memory.size(), group.n_bytes() + ALIGNMENT));
        uint8_t * data = align(memory.data());
        group.data = data;
        // groups of repacked rows never cross a panel: they have 4 or 8 rows
        asl_pack(p.source->type, (const uint8_t *) p.source->data + first * ASL_PANEL * n_row, repacked, group, 0, n, data);
        p.kernel->product(group, p.form, acts, ggml_nrows(dst), 0, n, (float *) dst->data + first * ASL_PANEL, dst->ne[0]);
    }
}

void asl_packed_weights::replace(const std::vector<ggml_tensor *> & nodes, ggml_context * ctx) const {
    std::map<std::tuple<const ggml_tensor *, int, int>, ggml_tensor *> rounded; // by activations and form
    for (ggml_tensor * node : nodes) {
        const auto found = node->op == GGML_OP_MUL_MAT ? products.find(node->src[0]) : products.end();
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
        const ggml_tensor * custom = ggml_custom_4d(ctx, GGML_TYPE_F32, node->ne[0], node->ne[1], node->ne[2], node->ne[3],
                &acts, 1, multiply, GGML_N_TASKS_MAX, p);
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
