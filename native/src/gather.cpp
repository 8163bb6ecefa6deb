#include "gather.h"

#include "access.h"
#include "cache.h"

#include "llama-context.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

// A view of a cache tensor with another element type: F32 moves bits unchanged on every backend.
static ggml_tensor * raw_view(ggml_context * ctx, ggml_tensor * t, ggml_type type, int64_t ne0, int64_t ne1, int64_t ne2, size_t nb1, size_t nb2, size_t offset = 0) {
    const int64_t ne[3] = { ne0, ne1, ne2 };
    ggml_tensor * view = ggml_new_tensor(ctx, type, 3, ne);
    view->nb[1] = nb1;
    view->nb[2] = nb2;
    view->nb[3] = nb2 * ne2;
    view->view_src = t;
    view->view_offs = offset;
    view->data = (char *) t->data + offset;
    view->buffer = t->buffer;
    return view;
}

// One row per (cell, KV head): [bytes of the head] of each cell.
static bool rows_are_words(const ggml_tensor * t, int64_t n_embd_head) {
    return n_embd_head % ggml_blck_size(t->type) == 0 && ggml_row_size(t->type, n_embd_head) % sizeof(float) == 0 &&
           t->nb[1] % sizeof(float) == 0;
}

static ggml_tensor * build_gather(ggml_context * ctx, ggml_tensor * src, ggml_tensor * dst, ggml_tensor * index, int64_t n_embd_head, int64_t first) {
    const size_t n_bytes = ggml_row_size(src->type, n_embd_head);
    const int64_t n_word = n_bytes / sizeof(float);

    ggml_tensor * from = raw_view(ctx, src, GGML_TYPE_F32, n_word, src->ne[1], index->ne[1], src->nb[1], n_bytes);
    ggml_tensor * to = raw_view(ctx, dst, GGML_TYPE_F32, n_word, index->ne[0], index->ne[1], dst->nb[1], n_bytes, first * dst->nb[1]);

    return ggml_cpy(ctx, ggml_get_rows(ctx, from, index), to);
}

// V stored transposed (flash attention off): F16, BF16 or F32, converted to F32 and back, which is exact.
static ggml_tensor * build_gather_trans(ggml_context * ctx, ggml_tensor * src, ggml_tensor * dst, ggml_tensor * index, int64_t n_embd_head, int64_t n_used, int64_t first) {
    const int64_t n_rows = index->ne[0];
    const int64_t n_head_kv = index->ne[1];

    const size_t size = ggml_type_size(src->type);
    const size_t nb_src = src->ne[1] * size; // bytes between channels: the number of cells
    const size_t nb_dst = dst->ne[1] * size;

    ggml_tensor * from = raw_view(ctx, src, src->type, n_used, n_embd_head, n_head_kv, nb_src, nb_src * n_embd_head);
    from = ggml_cont(ctx, ggml_permute(ctx, from, 1, 0, 2, 3));                          // [n_embd_head, n_used, n_head_kv]
    ggml_tensor * rows = ggml_permute(ctx, ggml_get_rows(ctx, from, index), 1, 0, 2, 3); // F32 [n_rows, n_embd_head, n_head_kv]
    ggml_tensor * to = raw_view(ctx, dst, dst->type, n_rows, n_embd_head, n_head_kv, nb_dst, nb_dst * n_embd_head, first * size);

    return ggml_cpy(ctx, rows, to);
}

// All rows from the first one on: one block of bytes, or one of each channel where V is stored transposed.
static ggml_tensor * build_copy(ggml_context * ctx, ggml_tensor * src, ggml_tensor * dst, int64_t n_rows, int64_t first, int64_t n_channels) {
    if (n_channels > 0) {
        const size_t size = ggml_type_size(src->type);
        const size_t nb_src = src->ne[1] * size;
        const size_t nb_dst = dst->ne[1] * size;
        ggml_tensor * from = raw_view(ctx, src, src->type, n_rows, n_channels, 1, nb_src, nb_src * n_channels);
        ggml_tensor * to = raw_view(ctx, dst, dst->type, n_rows, n_channels, 1, nb_dst, nb_dst * n_channels, first * size);
        return ggml_cpy(ctx, from, to);
    }
    const int64_t n_word = src->nb[1] / sizeof(float);
    ggml_tensor * from = raw_view(ctx, src, GGML_TYPE_F32, n_word, n_rows, 1, src->nb[1], src->nb[1] * n_rows);
    ggml_tensor * to = raw_view(ctx, dst, GGML_TYPE_F32, n_word, n_rows, 1, dst->nb[1], dst->nb[1] * n_rows, first * dst->nb[1]);
    return ggml_cpy(ctx, from, to);
}

// Rows that are no multiple of 4 bytes (q8_0 with 32 elements per head: 34 bytes) go through the host.
static void gather_on_host(const ggml_tensor * src, ggml_tensor * dst, const std::vector<int32_t> & index, int64_t n_rows, int64_t n_head_kv, int64_t n_embd_head, int64_t first) {
    if (n_embd_head % ggml_blck_size(src->type) != 0) {
        throw std::runtime_error(std::string("heads of ") + std::to_string(n_embd_head) + " elements share blocks of type " + ggml_type_name(src->type));
    }
    const size_t n_bytes = ggml_row_size(src->type, n_embd_head);
    const int32_t n_used = 1 + *std::max_element(index.begin(), index.end());

    std::vector<uint8_t> from(n_used * src->nb[1]);
    std::vector<uint8_t> to(n_rows * dst->nb[1]);
    ggml_backend_tensor_get(src, from.data(), 0, from.size());
    for (int64_t h = 0; h < n_head_kv; ++h) {
        for (int64_t i = 0; i < n_rows; ++i) {
            memcpy(to.data() + i * dst->nb[1] + h * n_bytes, from.data() + index[h * n_rows + i] * src->nb[1] + h * n_bytes, n_bytes);
        }
    }
    ggml_backend_tensor_set(dst, to.data(), first * dst->nb[1], to.size());
}

// Computes a graph of ours; `input` is filled first if the graph reads it.
static void compute(llama_context & ctx, ggml_cgraph * gf, ggml_tensor * input, const void * data) {
    ggml_backend_sched_t sched = ctx.get_sched();
    ggml_backend_sched_reset(sched);
    if (!ggml_backend_sched_alloc_graph(sched, gf)) {
        throw std::bad_alloc();
    }
    if (input && input->buffer) { // not where all rows are copied
        ggml_backend_tensor_set(input, data, 0, ggml_nbytes(input));
    }
    if (ctx.graph_compute(gf, true) != GGML_STATUS_SUCCESS) {
        throw std::runtime_error("the graph that copies K/V rows failed to compute");
    }
    ggml_backend_sched_synchronize(sched);
    ggml_backend_sched_reset(sched);
}

void asl_gather_rows(llama_context & src, llama_context & dst, int32_t il, const std::vector<int32_t> & index, int64_t n_rows, int64_t first) {
    const asl_kv_layer from = asl_get_kv_layer(src, il);
    const asl_kv_layer to = asl_get_kv_layer(dst, il);

    const size_t n_nodes = 32;
    ggml_context_ptr ctx { ggml_init({ n_nodes * ggml_tensor_overhead() + ggml_graph_overhead_custom(n_nodes, false), nullptr, true }) };
    ggml_cgraph * gf = ggml_new_graph_custom(ctx.get(), n_nodes, false);

    ggml_tensor * idx = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_I32, n_rows, from.n_head_kv);
    ggml_set_input(idx);

    const int64_t n_used = 1 + *std::max_element(index.begin(), index.end());

    const bool within = &src == &dst; // rows move among the cells of one layer: through a copy

    const bool all = n_used == n_rows && !within; // lists of increasing indices below n_used

    if (all && from.k->nb[1] % sizeof(float) == 0) {
        ggml_build_forward_expand(gf, build_copy(ctx.get(), from.k, to.k, n_rows, first, 0));
    } else if (rows_are_words(from.k, from.n_embd_head_k)) {
        ggml_build_forward_expand(gf, build_gather(ctx.get(), from.k, to.k, idx, from.n_embd_head_k, first));
    } else {
        gather_on_host(from.k, to.k, index, n_rows, from.n_head_kv, from.n_embd_head_k, first);
    }
    if (!from.v) {
        // with the keys
    } else if (all && (from.v_trans || from.v->nb[1] % sizeof(float) == 0)) {
        const int64_t n_channels = from.v_trans ? from.n_head_kv * from.n_embd_head_v : 0;
        ggml_build_forward_expand(gf, build_copy(ctx.get(), from.v, to.v, n_rows, first, n_channels));
    } else if (from.v_trans) {
        ggml_build_forward_expand(gf, build_gather_trans(ctx.get(), from.v, to.v, idx, from.n_embd_head_v, n_used, first));
    } else if (rows_are_words(from.v, from.n_embd_head_v)) {
        ggml_build_forward_expand(gf, build_gather(ctx.get(), from.v, to.v, idx, from.n_embd_head_v, first));
    } else {
        gather_on_host(from.v, to.v, index, n_rows, from.n_head_kv, from.n_embd_head_v, first);
    }
    if (ggml_graph_n_nodes(gf) == 0) {
        return;
    }
    if (within) {
        asl_context_access::forget_graph(src);
    }
    compute(src, gf, idx, index.data());
}

// Cells that follow each other on both sides.
struct cell_run {
    size_t from;
    size_t to;
    size_t n;
};

static std::vector<cell_run> find_runs(const std::vector<uint32_t> & from, const std::vector<uint32_t> & to) {
    std::vector<cell_run> runs;
    for (size_t i = 0; i < from.size(); ++i) {
        const bool follows = !runs.empty() && from[i] == runs.back().from + runs.back().n && to[i] == runs.back().to + runs.back().n;
        if (follows) {
            ++runs.back().n;
        } else {
            runs.push_back({ from[i], to[i], 1 });
        }
    }
    return runs;
}

// n_bytes that lie together on both sides.
static void copy_block(ggml_tensor * src, size_t from, ggml_tensor * dst, size_t to, size_t n_bytes) {
    ggml_context_ptr ctx { ggml_init({ 2 * ggml_tensor_overhead(), nullptr, true }) };
    ggml_backend_tensor_copy(
            raw_view(ctx.get(), src, GGML_TYPE_I8, n_bytes, 1, 1, n_bytes, n_bytes, from),
            raw_view(ctx.get(), dst, GGML_TYPE_I8, n_bytes, 1, 1, n_bytes, n_bytes, to));
}

// The same for each channel of V stored transposed, in one graph: on a device every block is a launch of its own.
static void copy_channels(llama_context & ctx, ggml_tensor * src, size_t from, ggml_tensor * dst, size_t to, size_t n_cells, int64_t n_channels) {
    const size_t size = ggml_type_size(src->type);
    const size_t nb_src = src->ne[1] * size;
    const size_t nb_dst = dst->ne[1] * size;
    if (ggml_backend_buffer_is_host(src->buffer) && ggml_backend_buffer_is_host(dst->buffer)) {
        for (int64_t i = 0; i < n_channels; ++i) {
            copy_block(src, from + i * nb_src, dst, to + i * nb_dst, n_cells * size);
        }
        return;
    }
    const size_t n_nodes = 4;
    ggml_context_ptr own { ggml_init({ n_nodes * ggml_tensor_overhead() + ggml_graph_overhead_custom(n_nodes, false), nullptr, true }) };
    ggml_cgraph * gf = ggml_new_graph_custom(own.get(), n_nodes, false);
    ggml_build_forward_expand(gf, ggml_cpy(own.get(),
                                          raw_view(own.get(), src, src->type, n_cells, n_channels, 1, nb_src, nb_src * n_channels, from),
                                          raw_view(own.get(), dst, dst->type, n_cells, n_channels, 1, nb_dst, nb_dst * n_channels, to)));
    asl_context_access::forget_graph(ctx);
    compute(ctx, gf, nullptr, nullptr);
}

void asl_copy_cells(llama_context & src, const asl_cell_list & from, llama_context & dst, const asl_cell_list & to, int32_t il) {
    const asl_kv_layer a = asl_get_kv_layer(src, il);
    const asl_kv_layer b = asl_get_kv_layer(dst, il);
    for (const cell_run & run : find_runs(from.cells, to.cells)) {
        copy_block(a.k, from.stream * a.k->nb[2] + run.from * a.k->nb[1], b.k, to.stream * b.k->nb[2] + run.to * b.k->nb[1], run.n * a.k->nb[1]);
        if (!a.v) {
            continue; // with the keys
        }
        const size_t v_from = from.stream * a.v->nb[2];
        const size_t v_to = to.stream * b.v->nb[2];
        if (a.v_trans) {
            const size_t size = ggml_type_size(a.v->type);
            copy_channels(dst, a.v, v_from + run.from * size, b.v, v_to + run.to * size, run.n, a.n_head_kv * a.n_embd_head_v);
        } else {
            copy_block(a.v, v_from + run.from * a.v->nb[1], b.v, v_to + run.to * b.v->nb[1], run.n * a.v->nb[1]);
        }
    }
}
