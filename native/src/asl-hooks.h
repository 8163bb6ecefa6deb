// What the patched files of llama.cpp see of asl: declarations only.

#pragma once

#include "ggml-backend.h"
#include "ggml.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <vector>

struct llama_ubatch;

class llm_graph_result;

// Attached to a llama_context while a session runs a range of layers in it.
struct asl_graph_hook {
    virtual ~asl_graph_hook() = default;

    // called by llama_context::process_ubatch after the graph was built
    // returns the graph to compute instead (stored in res as well), or nullptr on failure
    virtual ggml_cgraph * cut(llm_graph_result & res, const llama_ubatch & ubatch) = 0;

    // called after the graph was computed
    virtual void read(const llama_ubatch & ubatch) = 0;
};

// The output of each layer.
using asl_layer_outputs = std::map<int32_t, ggml_tensor *>;

// Called whenever a model names a tensor. The tensor counts, not its name: later calls may rename it. Where an inner result
// has that name too (nemotron-h, plamo3), the later one counts.
inline void asl_note_output(asl_layer_outputs & outputs, ggml_tensor * tensor, const char * name, int32_t il) {
    for (const char * known : { "l_out", "nemotron_h_block_out", "ffn_residual" }) {
        if (strcmp(name, known) == 0) {
            outputs[il] = tensor;
        }
    }
}

// true on a thread that constructs a prefill context (see asl_shared_kv_scope)
bool asl_kv_slots_are_shared();

// Called by the constructor of llama_kv_cache before it creates the tensors of a layer.
// Returns an earlier layer whose tensors (same buffer type, same row sizes) serve this layer too.
template <typename Layers>
const typename Layers::value_type * asl_find_kv_slot(
        const Layers & layers, const ggml_context * ctx, int64_t n_embd_k, int64_t n_embd_v) {
    if (!asl_kv_slots_are_shared()) {
        return nullptr;
    }
    for (const auto & layer : layers) {
        // without V where it is a part of K (multi-head latent attention)
        if (!layer.k || layer.k->ne[0] != n_embd_k || (layer.v && layer.v->ne[0] != n_embd_v)) {
            continue;
        }
        for (ggml_tensor * t = ggml_get_first_tensor(ctx); t; t = ggml_get_next_tensor(ctx, t)) {
            if (t == layer.k) {
                return &layer;
            }
        }
    }
    return nullptr;
}

// Which cells the layers of a KV cache have: all of them, unless layers keep different numbers of rows. A layer with
// fewer rows holds them in the last of the prompt's cells and attends to the cells from its first one on.
struct asl_kv_layout {
    std::vector<uint32_t> first; // per layer of the cache; empty: 0

    // Where a bias follows positions (ALiBi), per layer of the cache: F32 [n_cells, 1, n_head], how far a row's token stands
    // before its cell's position, as a number <= 0. Empty: every row's token stands there.
    std::vector<ggml_tensor *> shifts;
    std::shared_ptr<void> shifts_owner;

    // changes with `first` and `shifts`: a graph built for another layout reads other cells
    uint32_t version = 0;

    uint32_t get_first(size_t ikv) const { return first.empty() ? 0 : first[ikv]; }

    void set_first(size_t n_layers, size_t ikv, uint32_t cell) {
        first.resize(n_layers, 0);
        first[ikv] = cell;
        ++version;
    }

    void clear() {
        if (!first.empty() || !shifts.empty()) {
            first.clear();
            shifts.clear();
            shifts_owner.reset();
            ++version;
        }
    }

    // That of a layer, [n_kv - first, 1, n_head]; NULL if its rows' tokens stand where their cells do.
    ggml_tensor * build_shift(ggml_context * ctx, size_t ikv, int64_t n_kv) const {
        if (shifts.empty()) {
            return nullptr;
        }
        ggml_tensor * t = shifts[ikv];
        return ggml_view_3d(ctx, t, n_kv - get_first(ikv), 1, t->ne[2], t->nb[1], t->nb[2], get_first(ikv) * sizeof(float));
    }

    // New tokens will take this cell.
    void forget_shifts(uint32_t cell) {
        for (ggml_tensor * t : shifts) {
            for (int64_t h = 0; h < t->ne[2]; ++h) {
                ggml_backend_tensor_memset(t, 0, h * t->nb[2] + cell * sizeof(float), sizeof(float));
            }
        }
    }

    // Called before the positions [p0, p1) of a sequence (-1: of all) are removed. New tokens take the cells that
    // become free, so each layer must have them: from the lowest one on. Returns false if used cells would stay
    // behind it, whose rows only some layers hold.
    template <typename Cells>
    bool may_remove(const Cells & cells, int32_t seq_id, int32_t p0, int32_t p1) {
        const uint32_t n = first.empty() && shifts.empty() ? 0 : cells.used_max_p1();
        uint32_t lowest = n;
        auto is_freed = [&](uint32_t i) {
            return !cells.is_empty(i) && cells.pos_in(i, p0, p1) &&
                   (seq_id < 0 || (cells.seq_has(i, seq_id) && cells.seq_count(i) == 1));
        };
        for (uint32_t i = 0; i < n && !first.empty(); ++i) {
            if (is_freed(i)) {
                lowest = std::min(lowest, i);
            } else if (lowest < n && !cells.is_empty(i)) {
                return false;
            }
        }
        for (uint32_t i = 0; i < n && !shifts.empty(); ++i) {
            if (is_freed(i)) {
                forget_shifts(i);
            }
        }
        for (uint32_t & cell : first) {
            cell = std::min(cell, lowest);
        }
        version += !first.empty() || !shifts.empty();
        return true;
    }
};

// The last n_kv columns of an attention mask: a layer that keeps fewer tokens attends to a tail of the cells.
inline ggml_tensor * asl_trim_mask(ggml_context * ctx, ggml_tensor * mask, int64_t n_kv) {
    if (mask->ne[0] == n_kv) {
        return mask;
    }
    return ggml_cont(ctx, ggml_view_4d(ctx, mask, n_kv, mask->ne[1], mask->ne[2], mask->ne[3],
                                  mask->nb[1], mask->nb[2], mask->nb[3], (mask->ne[0] - n_kv) * ggml_element_size(mask)));
}

// A mask of distances, from a layer's rows and not from their cells; per head, since each may hold another token there.
inline ggml_tensor * asl_shift_mask(ggml_context * ctx, ggml_tensor * mask, ggml_tensor * shift) {
    if (!shift) {
        return mask;
    }
    ggml_tensor * wide = mask->type == GGML_TYPE_F32 ? mask : ggml_cast(ctx, mask, GGML_TYPE_F32);
    wide = ggml_add(ctx, ggml_repeat_4d(ctx, wide, mask->ne[0], mask->ne[1], shift->ne[2], 1), shift);
    return mask->type == GGML_TYPE_F32 ? wide : ggml_cast(ctx, wide, mask->type);
}
