#include "mask.h"

#include "ggml-backend.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

// llama.cpp pads the cells a graph attends to (llama_kv_cache::get_n_kv)
static const int64_t N_PAD = 256;

void asl_causal_mask::reset(int32_t n_tokens_max, int32_t n_past_max) {
    bands.clear();
    this->n_tokens_max = n_tokens_max;
    this->n_past_max   = n_past_max;
}

template <typename T>
static void fill_band(ggml_tensor * t, int64_t n_past_max, int64_t n_swa, T keep, T drop) {
    std::vector<T> row(t->ne[0]);
    for (int64_t j = 0; j < t->ne[1]; ++j) {
        const auto end = row.begin() + std::min(t->ne[0], n_past_max + j + 1);
        std::fill(row.begin(), row.end(), drop);
        std::fill(n_swa > 0 ? end - std::min<int64_t>(n_swa, end - row.begin()) : row.begin(), end, keep);
        ggml_backend_tensor_set(t, row.data(), j*t->nb[1], t->nb[1]);
    }
}

const asl_causal_mask::band & asl_causal_mask::get_band(ggml_backend_buffer_type_t buft, ggml_type type, int32_t n_swa, bool strided) {
    for (const band & b : bands) {
        if (b.buft == buft && b.tensor->type == type && b.n_swa == n_swa && (b.window == nullptr) == strided) {
            return b;
        }
    }
    band b;
    b.buft  = buft;
    b.n_swa = n_swa;
    b.ctx.reset(ggml_init({ 2*ggml_tensor_overhead(), nullptr, true }));
    b.tensor = ggml_new_tensor_2d(b.ctx.get(), type, n_past_max + GGML_PAD(n_tokens_max, N_PAD) + N_PAD, n_tokens_max);
    ggml_set_name(b.tensor, "asl_causal_band");
    if (!strided) {
        b.window = ggml_dup_tensor(b.ctx.get(), b.tensor);
        ggml_set_name(b.window, "asl_causal_window");
    }
    b.buffer.reset(ggml_backend_alloc_ctx_tensors_from_buft(b.ctx.get(), buft));
    if (!b.buffer) {
        throw std::runtime_error("cannot allocate " + std::to_string((strided ? 1 : 2)*ggml_nbytes(b.tensor)) + " bytes for the attention mask");
    }
    if (type == GGML_TYPE_F16) {
        fill_band<ggml_fp16_t>(b.tensor, n_past_max, n_swa, ggml_fp32_to_fp16(0.0f), ggml_fp32_to_fp16(-INFINITY));
    } else {
        fill_band<float>(b.tensor, n_past_max, n_swa, 0.0f, -INFINITY);
    }
    bands.push_back(std::move(b));
    return bands.back();
}

ggml_tensor * asl_causal_mask::build(
        ggml_context * ctx, const ggml_tensor * mask, int32_t n_past, int32_t n_swa, ggml_backend_buffer_type_t buft, bool strided) {
    const int64_t n_kv = mask->ne[0];
    if ((mask->type != GGML_TYPE_F32 && mask->type != GGML_TYPE_F16) || ggml_nrows(mask) != mask->ne[1]) {
        throw std::runtime_error("the attention mask has an unexpected form");
    }
    const auto & found = get_band(buft, mask->type, n_swa, strided);
    ggml_tensor * band = found.tensor;
    const int64_t begin = n_past_max - n_past;
    if (begin < 0 || begin + n_kv > band->ne[0] || mask->ne[1] > band->ne[1]) {
        throw std::runtime_error("a chunk of " + std::to_string(mask->ne[1]) + " tokens after " + std::to_string(n_past) +
                " needs a wider attention mask than was prepared");
    }
    ggml_tensor * view = ggml_view_2d(ctx, band, n_kv, mask->ne[1], band->nb[1], begin*ggml_element_size(band));
    if (strided) {
        return view;
    }
    // Memory of its own: a graph's would grow with n_kv, and be planned anew for every chunk
    ggml_tensor * window = ggml_new_tensor_2d(ctx, mask->type, n_kv, mask->ne[1]);
    ggml_backend_tensor_alloc(found.buffer.get(), window, found.window->data);
    return ggml_cpy(ctx, view, window);
}

size_t asl_causal_mask::size_bytes(bool host) const {
    size_t result = 0;
    for (const band & b : bands) {
        result += ggml_backend_buffer_is_host(b.buffer.get()) == host ? ggml_backend_buffer_get_size(b.buffer.get()) : 0;
    }
    return result;
}
