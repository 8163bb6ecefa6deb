// What the patched files of llama.cpp see of asl: declarations only.

#pragma once

#include "ggml.h"

#include <cstdint>

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
        if (!layer.k || !layer.v || layer.k->ne[0] != n_embd_k || layer.v->ne[0] != n_embd_v) {
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
