// The model's whole graph over a chunk, from which the parts of its layers are cut. llama.cpp builds it once: chunk by
// chunk it is the same for every layer. Cutting changes nodes, and computing gives them memory; both are taken back.

#pragma once

#include "graph-index.h"
#include "memory.h"
#include "steering.h"

#include "llama-graph.h"

#include "ggml-backend.h"
#include "ggml.h"

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <utility>
#include <vector>

class asl_full_graph {
public:
    explicit asl_full_graph(int64_t max_nodes) : res(max_nodes) {}

    llm_graph_result & get() { return res; }

    // Whether it serves a chunk with these parameters as it is: it was built for the same cells, and llama.cpp's own rule for
    // graphs that it reuses holds. (That alone compares no masks that have no memory, and no layers of control vectors.)
    bool serves(const llm_graph_params & params) {
        std::vector<const ggml_tensor *> now = asl_find_steering(params);
        now.swap(steering); // what is built next is built with it
        return gf && params.mctx == cells && now == steering && res.can_reuse(params);
    }

    // To be called before it is built, and when its cells are no longer what they were.
    void reset();

    const asl_graph_index & get_index() const { return index; }

    // asl_find_dependents of the whole graph, which must be as it was built when first asked for
    const asl_layer_of & get_dependents(llama_context & ctx);

    // To be called when it was built: what take_back restores.
    void note(const llm_graph_params & params);

    // Nodes first to last will change.
    void save(int first, int last);

    // What a graph cut from it computes and reads will be given memory, and so will these inputs.
    void save_unplaced(ggml_cgraph * part, const std::vector<ggml_tensor *> & inputs);

    // All is again as it was built.
    void take_back();

    // Has the scheduler, which was reset, compute nodes where they were put as the graph was built.
    void place(ggml_backend_sched_t sched) const;

    size_t size_bytes() const { return res.buf_compute_meta.size(); }

private:
    void save(ggml_tensor * t) { saved.emplace_back(t, *t); }

    llm_graph_result res;
    ggml_cgraph * gf = nullptr; // NULL: not built
    const llama_memory_context_i * cells = nullptr;
    std::vector<const ggml_tensor *> steering; // of each layer
    size_t n_inputs = 0;        // later ones are ours
    asl_graph_index index;
    std::unique_ptr<asl_layer_of> dependents;
    std::vector<std::pair<ggml_tensor *, ggml_backend_t>> placed;
    std::vector<std::pair<ggml_tensor *, ggml_tensor>> saved;
};

// Those of the chunks of the current tokens.
class asl_full_graphs {
public:
    // n_bytes: of graphs that wait for the next layer, at most. Chunks beyond share one graph, which is built anew
    void reset(size_t n_bytes);

    // to be called when the current tokens change
    void clear();

    // Of the chunk that begins with current token `begin`; empty when first asked for.
    asl_full_graph & get(int32_t begin, int64_t max_nodes);

private:
    size_t n_bytes_max = 0;
    std::map<int32_t, std::unique_ptr<asl_full_graph>> chunks;
    std::vector<std::unique_ptr<asl_full_graph>> unused;
    std::unique_ptr<asl_full_graph> shared;
};
