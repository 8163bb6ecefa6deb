#include "mask.h"

#include "ggml-backend.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

// llama.cpp pads the cells a graph attends to (llama_kv_cache::get_n_kv)
static const int64_t N_PAD = 256;

// elements: windows of chunks whose past is a multiple of it begin at multiples of 128 bytes
static const int32_t N_ALIGN = 64;

void asl_causal_mask::reset(int32_t n_tokens_max, int32_t n_past_max) {
    bands.clear();
    this->n_tokens_max = n_tokens_max;
    this->n_past_max = GGML_PAD(n_past_max, N_ALIGN);
}

template <typename T>
static void fill_band(ggml_tensor * t, int64_t n_past_max, int64_t n_swa, T keep, T drop) {
    std::vector<T> row(t->ne[0]);
    for (int64_t j = 0; j < t->ne[1]; ++j) {
        const auto end = row.begin() + std::min(t->ne[0], n_past_max + j + 1);
        std::fill(row.begin(), row.end(), drop);
        std::fill(n_swa > 0 ? end - std::min<int64_t>(n_swa, end - row.begin()) : row.begin(), end, keep);
        ggml_backend_tensor_set(t, row.data(), j * t->nb[1], t->nb[1]);
    }
}

static ggml_backend_buffer_ptr allocate(ggml_backend_buffer_type_t buft, const ggml_tensor * t) {
    const size_t n_bytes = ggml_backend_buft_get_alloc_size(buft, t);
    ggml_backend_buffer_ptr buffer { ggml_backend_buft_alloc_buffer(buft, n_bytes) };
    if (!buffer) {
        throw std::runtime_error("cannot allocate " + std::to_string(n_bytes) + " bytes for the attention mask");
    }
    return buffer;
}

static void place(ggml_backend_buffer_t buffer, ggml_tensor * t) {
    ggml_backend_tensor_alloc(buffer, t, ggml_backend_buffer_get_base(buffer));
}

asl_causal_mask::band & asl_causal_mask::get_band(ggml_backend_buffer_type_t buft, ggml_type type, int32_t n_swa) {
    for (band & b : bands) {
        if (b.buft == buft && b.tensor->type == type && b.n_swa == n_swa) {
            return b;
        }
    }
    band b;
    b.buft = buft;
    b.n_swa = n_swa;
    b.ctx.reset(ggml_init({ ggml_tensor_overhead(), nullptr, true }));
    b.tensor = ggml_new_tensor_2d(b.ctx.get(), type, n_past_max + GGML_PAD(n_tokens_max, N_PAD) + N_PAD, n_tokens_max);
    ggml_set_name(b.tensor, "asl_causal_band");
    b.buffer = allocate(buft, b.tensor);
    place(b.buffer.get(), b.tensor);
    if (type == GGML_TYPE_F16) {
        fill_band<ggml_fp16_t>(b.tensor, n_past_max, n_swa, ggml_fp32_to_fp16(0.0f), ggml_fp32_to_fp16(-INFINITY));
    } else {
        fill_band<float>(b.tensor, n_past_max, n_swa, 0.0f, -INFINITY);
    }
    bands.push_back(std::move(b));
    return bands.back();
}

ggml_tensor * asl_causal_mask::build(
        ggml_context * ctx, const ggml_tensor * mask, int32_t n_past, int32_t n_swa, ggml_backend_buffer_type_t buft, size_t view_align) {
    const int64_t n_kv = mask->ne[0];
    if ((mask->type != GGML_TYPE_F32 && mask->type != GGML_TYPE_F16) || ggml_nrows(mask) != mask->ne[1]) {
        throw std::runtime_error("the attention mask has an unexpected form");
    }
    band & b = get_band(buft, mask->type, n_swa);
    const int64_t begin = n_past_max - n_past;
    if (begin < 0 || begin + n_kv > b.tensor->ne[0] || mask->ne[1] > b.tensor->ne[1]) {
        throw std::runtime_error("a chunk of " + std::to_string(mask->ne[1]) + " tokens after " + std::to_string(n_past) +
                                 " needs a wider attention mask than was prepared");
    }
    const size_t n_skipped = begin * ggml_element_size(b.tensor);
    ggml_tensor * view = ggml_view_2d(ctx, b.tensor, n_kv, mask->ne[1], b.tensor->nb[1], n_skipped);
    if (view_align > 0 && n_skipped % view_align == 0 && b.tensor->nb[1] % view_align == 0) {
        return view;
    }
    // Memory of its own: a graph's would grow with n_kv, and be planned anew for every chunk
    if (!b.copy) {
        b.copy = allocate(buft, b.tensor);
    }
    ggml_tensor * copy = ggml_new_tensor_2d(ctx, mask->type, n_kv, mask->ne[1]);
    place(b.copy.get(), copy);
    return ggml_cpy(ctx, view, copy);
}

size_t asl_causal_mask::size_bytes(bool host) const {
    size_t result = 0;
    for (const band & b : bands) {
        const size_t n_bytes = ggml_backend_buffer_get_size(b.buffer.get()) + (b.copy ? ggml_backend_buffer_get_size(b.copy.get()) : 0);
        result += ggml_backend_buffer_is_host(b.buffer.get()) == host ? n_bytes : 0;
    }
    return result;
}
