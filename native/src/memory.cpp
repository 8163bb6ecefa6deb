#include "memory.h"

#include "cache.h"
#include "chunks.h"
#include "error.h"
#include "support.h"

#include "llama-context.h"
#include "llama-memory-hybrid-idx.h"
#include "llama-memory-hybrid-iswa.h"
#include "llama-memory-hybrid.h"
#include "llama-memory-recurrent.h"
#include "llama-model.h"

#include <cstring>

llama_memory_i * asl_attention_memory(llama_context & ctx) {
    if (dynamic_cast<llama_memory_hybrid_idx *>(ctx.get_memory())) {
        return nullptr; // keys of an indexer beside
    }
    if (auto * hybrid = dynamic_cast<llama_memory_hybrid *>(ctx.get_memory())) {
        return hybrid->get_mem_attn();
    }
    if (auto * hybrid = dynamic_cast<llama_memory_hybrid_iswa *>(ctx.get_memory())) {
        return hybrid->get_mem_attn();
    }
    return ctx.get_memory();
}

static llama_memory_recurrent * get_states(llama_context & ctx) {
    if (dynamic_cast<llama_memory_hybrid_idx *>(ctx.get_memory())) {
        return nullptr;
    }
    if (auto * hybrid = dynamic_cast<llama_memory_hybrid *>(ctx.get_memory())) {
        return hybrid->get_mem_recr();
    }
    if (auto * hybrid = dynamic_cast<llama_memory_hybrid_iswa *>(ctx.get_memory())) {
        return hybrid->get_mem_recr();
    }
    return nullptr;
}

bool asl_has_states(llama_context & ctx) {
    return get_states(ctx) != nullptr;
}

std::vector<ggml_tensor *> asl_state_tensors(llama_context & ctx, int32_t il) {
    std::vector<ggml_tensor *> result;
    if (llama_memory_recurrent * states = get_states(ctx)) {
        for (ggml_tensor * t : { states->r_l[il], states->s_l[il] }) {
            if (t) {
                result.push_back(t);
            }
        }
    }
    return result;
}

int64_t asl_state_bytes(llama_context & ctx) {
    int64_t n_bytes = 0;
    if (const llama_memory_recurrent * states = get_states(ctx)) {
        for (const auto & [buft, size] : states->memory_breakdown()) {
            n_bytes += size;
        }
    }
    return n_bytes;
}

size_t asl_state_size(llama_context & ctx, int32_t il) {
    size_t n_bytes = 0;
    for (const ggml_tensor * t : asl_state_tensors(ctx, il)) {
        n_bytes += t->nb[1];
    }
    return n_bytes;
}

// A memory that was cleared gives cell 0 to the first sequence.
void asl_save_state(llama_context & ctx, int32_t il, uint8_t * dst) {
    for (const ggml_tensor * t : asl_state_tensors(ctx, il)) {
        ggml_backend_tensor_get(t, dst, 0, t->nb[1]);
        dst += t->nb[1];
    }
}

void asl_load_state(llama_context & ctx, int32_t il, const uint8_t * src) {
    for (ggml_tensor * t : asl_state_tensors(ctx, il)) {
        ggml_backend_tensor_set(t, src, 0, t->nb[1]);
        src += t->nb[1];
    }
}

void asl_copy_state(llama_context & src, llama_context & dst, int32_t il) {
    std::vector<uint8_t> state(asl_state_size(src, il));
    asl_save_state(src, il, state.data());
    asl_load_state(dst, il, state.data());
}

void asl_mark_state(llama_context & ctx, llama_token token, llama_pos pos) {
    llama_memory_recurrent * states = get_states(ctx);
    if (states && !asl_place_tokens(ctx, *states, { token }, &pos)->apply()) {
        throw asl_error(ASL_ERR_INTERNAL, "the cell of the recurrent states could not be taken");
    }
}

ggml_backend_buffer_type_t asl_layer_buffer_type(llama_context & ctx, int32_t il) {
    if (asl_has_attention(ctx.get_model(), il)) {
        return ggml_backend_buffer_get_type(asl_get_kv_layer(ctx, il).k->buffer);
    }
    const auto states = asl_state_tensors(ctx, il);
    return states.empty() ? nullptr : ggml_backend_buffer_get_type(states[0]->buffer);
}

asl_layer_of asl_memory_tensors(llama_context & ctx) {
    asl_layer_of result;
    auto add = [&](const ggml_tensor * t, int32_t il) {
        const auto [entry, is_new] = result.emplace(t, il);
        entry->second = is_new ? il : ASL_MIXED;
    };
    for (uint32_t il = 0; il < ctx.get_model().hparams.n_layer(); ++il) {
        if (asl_owns_rows(ctx.get_model(), il)) {
            const asl_kv_layer layer = asl_get_kv_layer(ctx, il);
            add(layer.k, il);
            if (layer.v) {
                add(layer.v, il);
            }
        }
        for (const ggml_tensor * t : asl_state_tensors(ctx, il)) {
            add(t, il);
        }
    }
    return result;
}

void asl_compact_rows(llama_context & ctx, int32_t il, const std::vector<int32_t> & cells) {
    const size_t n_row = asl_row_bytes(ctx, il);
    std::vector<uint8_t> rows((size_t) (cells.back() + 1) * n_row);
    asl_get_rows(ctx, il, 0, cells.back() + 1, rows.data());
    for (size_t i = 0; i < cells.size(); ++i) {
        memmove(rows.data() + i * n_row, rows.data() + cells[i] * n_row, n_row);
    }
    asl_set_rows(ctx, il, 0, cells.size(), rows.data());
}
