// How far rows stand before the positions of their cells, where a bias follows positions (ALiBi).

#include "cache.h"

#include "asl-hooks.h"

#include "llama-context.h"
#include "llama-kv-cache.h"
#include "llama-model.h"

#include "ggml-backend.h"

#include <stdexcept>

struct shift_memory {
    ggml_context_ptr ctx;
    std::vector<ggml_backend_buffer_ptr> buffers;
};

// One tensor a layer beside its keys, all 0.
static void allocate(llama_context & ctx, llama_kv_cache & kv, asl_kv_layout & layout) {
    const auto & hparams = ctx.get_model().hparams;
    const std::vector<uint32_t> layers = kv.get_layer_ids();
    auto memory = std::make_shared<shift_memory>();
    memory->ctx.reset(ggml_init({ layers.size() * ggml_tensor_overhead(), nullptr, true }));
    for (const uint32_t il : layers) {
        ggml_tensor * t = ggml_new_tensor_3d(memory->ctx.get(), GGML_TYPE_F32, kv.get_size(), 1, hparams.n_head(il));
        ggml_backend_buffer_type_t buft = ggml_backend_buffer_get_type(kv.get_k_storage(il)->buffer);
        ggml_backend_buffer_ptr buffer { ggml_backend_buft_alloc_buffer(buft, ggml_backend_buft_get_alloc_size(buft, t)) };
        if (!buffer) {
            throw std::bad_alloc();
        }
        ggml_backend_tensor_alloc(buffer.get(), t, ggml_backend_buffer_get_base(buffer.get()));
        ggml_backend_buffer_clear(buffer.get(), 0);
        layout.shifts.push_back(t);
        memory->buffers.push_back(std::move(buffer));
    }
    layout.shifts_owner = memory;
    ++layout.version;
}

static ggml_tensor * get_tensor(llama_context & ctx, int32_t il) {
    llama_kv_cache & kv = asl_get_kv_cache(ctx);
    asl_kv_layout & layout = asl_get_layout(kv);
    if (layout.shifts.empty()) {
        allocate(ctx, kv, layout);
    }
    const std::vector<uint32_t> layers = kv.get_layer_ids();
    for (size_t i = 0; i < layers.size(); ++i) {
        if ((int32_t) layers[i] == il) {
            return layout.shifts[i];
        }
    }
    throw std::runtime_error("layer " + std::to_string(il) + " has no cells");
}

void asl_set_shifts(llama_context & ctx, int32_t il, uint32_t first, const std::vector<float> & shifts) {
    ggml_tensor * t = get_tensor(ctx, il);
    const int64_t n_head_kv = ctx.get_model().hparams.n_head_kv(il);
    const int64_t n_rows = shifts.size() / n_head_kv;
    for (int64_t h = 0; h < t->ne[2]; ++h) {
        const float * of_head = shifts.data() + h / (t->ne[2] / n_head_kv) * n_rows;
        ggml_backend_tensor_set(t, of_head, h * t->nb[2] + first * sizeof(float), n_rows * sizeof(float));
    }
}

static std::vector<uint32_t> find_used(llama_context & ctx) {
    const auto & cells = asl_get_kv_cache(ctx).get_cells(0);
    std::vector<uint32_t> used;
    for (uint32_t i = 0; i < cells.used_max_p1(); ++i) {
        if (!cells.is_empty(i)) {
            used.push_back(i);
        }
    }
    return used;
}

std::vector<float> asl_get_shifts(llama_context & ctx) {
    std::vector<float> result;
    const std::vector<uint32_t> used = find_used(ctx);
    for (const ggml_tensor * t : asl_get_layout(asl_get_kv_cache(ctx)).shifts) {
        std::vector<float> row(t->ne[0]);
        for (int64_t h = 0; h < t->ne[2]; ++h) {
            ggml_backend_tensor_get(t, row.data(), h * t->nb[2], row.size() * sizeof(float));
            for (const uint32_t i : used) {
                result.push_back(row[i]);
            }
        }
    }
    return result;
}

bool asl_put_shifts(llama_context & ctx, const std::vector<float> & shifts) {
    llama_kv_cache & kv = asl_get_kv_cache(ctx);
    const std::vector<uint32_t> used = find_used(ctx);
    const auto & hparams = ctx.get_model().hparams;
    size_t n_expected = 0;
    for (const uint32_t il : kv.get_layer_ids()) {
        n_expected += used.size() * hparams.n_head(il);
    }
    if (!hparams.use_alibi || shifts.size() != n_expected) {
        return false;
    }
    const float * src = shifts.data();
    for (const uint32_t il : kv.get_layer_ids()) {
        ggml_tensor * t = get_tensor(ctx, il);
        for (int64_t h = 0; h < t->ne[2]; ++h) {
            std::vector<float> row(t->ne[0], 0.0f);
            for (const uint32_t i : used) {
                row[i] = *src++;
            }
            ggml_backend_tensor_set(t, row.data(), h * t->nb[2], row.size() * sizeof(float));
        }
    }
    return true;
}
