#include "memory.h"

#include "cache.h"
#include "error.h"
#include "support.h"

#include "llama-batch.h"
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

asl_state_cell asl_find_state(llama_context & ctx, int32_t seq_id) {
    asl_state_cell found;
    const llama_memory_recurrent * states = get_states(ctx);
    if (!states || seq_id < 0 || seq_id >= (int32_t) states->size || states->cells[seq_id].tail < 0) {
        return found;
    }
    const auto & cell = states->cells[states->cells[seq_id].tail];
    found.row = cell.src >= 0 ? cell.src : states->cells[seq_id].tail;
    found.pos = cell.pos;
    found.is_shared = cell.seq_id.size() != 1;
    return found;
}

int32_t asl_take_state(llama_context & ctx, int32_t seq_id, llama_pos pos) {
    llama_memory_recurrent * states = get_states(ctx);
    if (!states) {
        return ASL_NONE;
    }
    llama_batch_allocr balloc(1);
    llama_ubatch ubatch = balloc.ubatch_reserve(1, 1);
    ubatch.pos[0] = pos;
    ubatch.n_seq_id[0] = 1;
    ubatch.seq_id[0] = &seq_id;
    ubatch.seq_id_unq[0] = seq_id;
    if (!states->find_slot(ubatch)) {
        throw asl_error(ASL_ERR_INTERNAL, "the cell of the recurrent states could not be taken");
    }
    return asl_find_state(ctx, seq_id).row;
}

void asl_advance_state(llama_context & ctx, int32_t seq_id, llama_pos pos) {
    llama_memory_recurrent * states = get_states(ctx);
    if (states && states->cells[seq_id].tail >= 0) {
        states->cells[states->cells[seq_id].tail].pos = pos;
    }
}

void asl_save_state(llama_context & ctx, int32_t il, int32_t row, uint8_t * dst) {
    for (const ggml_tensor * t : asl_state_tensors(ctx, il)) {
        ggml_backend_tensor_get(t, dst, row * t->nb[1], t->nb[1]);
        dst += t->nb[1];
    }
}

void asl_load_state(llama_context & ctx, int32_t il, int32_t row, const uint8_t * src) {
    for (ggml_tensor * t : asl_state_tensors(ctx, il)) {
        ggml_backend_tensor_set(t, src, row * t->nb[1], t->nb[1]);
        src += t->nb[1];
    }
}

void asl_copy_state(llama_context & src, int32_t src_row, llama_context & dst, int32_t dst_row, int32_t il) {
    std::vector<uint8_t> state(asl_state_size(src, il));
    asl_save_state(src, il, src_row, state.data());
    asl_load_state(dst, il, dst_row, state.data());
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
