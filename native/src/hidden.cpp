#include "hidden.h"

#include "llama-model.h"

#include "ggml-backend.h"

#include <new>

ggml_backend_buffer_type_t asl_host_buffer_type(const llama_model & model) {
    ggml_backend_buffer_type_t buft = model.devices.empty() ? nullptr : ggml_backend_dev_host_buffer_type(model.devices[0].dev);
    return buft ? buft : ggml_backend_cpu_buffer_type();
}

void asl_hidden::release() {
    tensor = nullptr;
    buffer.reset();
    ctx.reset();
}

void asl_hidden::reset(int64_t n_embd, int64_t begin, int64_t end, ggml_backend_buffer_type_t buft) {
    release();
    first = begin;
    ctx.reset(ggml_init({ ggml_tensor_overhead(), nullptr, true }));
    tensor = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, n_embd, end - begin);
    ggml_set_name(tensor, "asl_hidden");
    buffer.reset(ggml_backend_alloc_ctx_tensors_from_buft(ctx.get(), buft));
    if (!buffer) {
        throw std::bad_alloc();
    }
}

float * asl_hidden::row(int64_t i) {
    return (float *) tensor->data + (i - first)*tensor->ne[0];
}

const float * asl_hidden::row(int64_t i) const {
    return (const float *) tensor->data + (i - first)*tensor->ne[0];
}

ggml_tensor * asl_hidden::view(ggml_context * ctx, int64_t begin, int64_t n_tokens) const {
    // a leaf: ggml_set_input takes no ggml_view
    ggml_tensor * result = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, tensor->ne[0], n_tokens);
    take(result, begin);
    // devices must copy it before the graph goes on: the layer's output takes the same rows
    ggml_set_input(result);
    return result;
}

void asl_hidden::take(ggml_tensor * node, int64_t begin) const {
    ggml_backend_tensor_alloc(buffer.get(), node, (char *) tensor->data + (begin - first)*tensor->nb[1]);
}

size_t asl_hidden::size_bytes() const {
    return buffer ? ggml_backend_buffer_get_size(buffer.get()) : 0;
}
