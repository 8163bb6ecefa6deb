#include "hidden.h"

#include "memory.h"

#include "llama-context.h"
#include "llama-model.h"

#include "ggml-backend.h"

#include <cstring>
#include <new>
#include <stdexcept>
#include <utility>

// Memory that graphs read in place on CPUs and that other devices copy fast.
static ggml_backend_buffer_type_t host_buffer_type(const llama_model & model) {
    ggml_backend_buffer_type_t buft = model.devices.empty() ? nullptr : ggml_backend_dev_host_buffer_type(model.devices[0].dev);
    return buft ? buft : ggml_backend_cpu_buffer_type();
}

ggml_backend_buffer_type_t asl_hidden_buffer_type(llama_context & ctx, size_t n_bytes) {
    const ggml_backend_buffer_type_t host = host_buffer_type(ctx.get_model());

    // where the K/V of all layers lie, the layers run
    ggml_backend_buffer_type_t buft = nullptr;
    for (uint32_t il = 0; il < ctx.get_model().hparams.n_layer(); ++il) {
        ggml_backend_buffer_type_t own = asl_layer_buffer_type(ctx, il);
        if (!own) {
            continue;
        }
        if (buft && own != buft) {
            return host;
        }
        buft = own;
    }
    if (ggml_backend_buft_is_host(buft)) {
        return host;
    }
    // an eighth of what is free: the prefill's compute buffers come after it
    size_t n_free = 0;
    size_t n_total = 0;
    ggml_backend_dev_t device = ggml_backend_buft_get_device(buft);
    if (device) {
        ggml_backend_dev_memory(device, &n_free, &n_total);
    }
    return n_bytes <= n_free / 8 ? buft : host;
}

void asl_hidden::release() {
    tensor = nullptr;
    buffer.reset();
    ctx.reset();
}

void asl_hidden::clear() {
    ggml_backend_buffer_clear(buffer.get(), 0);
}

void asl_hidden::reset(int64_t n_hidden, int64_t begin, int64_t end, ggml_backend_buffer_type_t buft) {
    release();
    first = begin;
    ctx.reset(ggml_init({ ggml_tensor_overhead(), nullptr, true }));
    tensor = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, n_hidden, end - begin);
    ggml_set_name(tensor, "asl_hidden");
    buffer.reset(ggml_backend_alloc_ctx_tensors_from_buft(ctx.get(), buft));
    if (!buffer) {
        throw std::bad_alloc();
    }
}

void asl_hidden::get(int64_t begin, int64_t end, float * dst) const {
    ggml_backend_tensor_get(tensor, dst, offset(begin), offset(end) - offset(begin));
}

void asl_hidden::set(int64_t begin, int64_t end, const float * src) {
    ggml_backend_tensor_set(tensor, src, offset(begin), offset(end) - offset(begin));
}

void asl_hidden::gather(llama_context & ctx, const std::vector<int32_t> & index) {
    if (!ggml_backend_buffer_is_host(buffer.get())) {
        gather_on_device(ctx, index);
        return;
    }
    const size_t n_row = tensor->nb[1];
    char * data = (char *) tensor->data;
    for (size_t i = 0; i < index.size(); ++i) {
        memmove(data + i * n_row, data + offset(index[i]), n_row);
    }
}

// Into a buffer of their own; that of all rows is freed.
void asl_hidden::gather_on_device(llama_context & ctx, const std::vector<int32_t> & index) {
    asl_hidden kept;
    kept.reset(tensor->ne[0], first, first + (int64_t) index.size(), get_type());

    const size_t n_nodes = 4;
    ggml_context_ptr graph { ggml_init({ n_nodes * ggml_tensor_overhead() + ggml_graph_overhead_custom(n_nodes, false), nullptr, true }) };
    ggml_tensor * rows = ggml_new_tensor_1d(graph.get(), GGML_TYPE_I32, index.size());
    ggml_set_input(rows);
    ggml_tensor * result = ggml_get_rows(graph.get(), tensor, rows);
    kept.take(result, first);
    ggml_cgraph * gf = ggml_new_graph_custom(graph.get(), n_nodes, false);
    ggml_build_forward_expand(gf, result);

    ggml_backend_sched_t sched = ctx.get_sched();
    ggml_backend_sched_reset(sched);
    if (!ggml_backend_sched_alloc_graph(sched, gf)) {
        throw std::bad_alloc();
    }
    std::vector<int32_t> places(index);
    for (int32_t & i : places) {
        i -= first;
    }
    ggml_backend_tensor_set(rows, places.data(), 0, ggml_nbytes(rows));
    if (ctx.graph_compute(gf, true) != GGML_STATUS_SUCCESS) {
        throw std::runtime_error("the graph that drops hidden states failed to compute");
    }
    ggml_backend_sched_synchronize(sched);
    ggml_backend_sched_reset(sched);
    *this = std::move(kept);
}

ggml_tensor * asl_hidden::view(ggml_context * ctx, int64_t begin, int64_t n_tokens) const {
    // a leaf: ggml_set_input takes no ggml_view
    ggml_tensor * result = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, tensor->ne[0], n_tokens);
    take(result, begin);
    return result;
}

void asl_hidden::take(ggml_tensor * node, int64_t begin) const {
    ggml_backend_tensor_alloc(buffer.get(), node, (char *) tensor->data + offset(begin));
}

ggml_backend_buffer_type_t asl_hidden::get_type() const {
    return buffer ? ggml_backend_buffer_get_type(buffer.get()) : nullptr;
}

size_t asl_hidden::size_bytes(bool host) const {
    return buffer && ggml_backend_buffer_is_host(buffer.get()) == host ? ggml_backend_buffer_get_size(buffer.get()) : 0;
}
