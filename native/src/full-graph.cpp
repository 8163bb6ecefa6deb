#include "full-graph.h"

#include "graph.h"

#include <algorithm>

void asl_full_graph::reset() {
    gf = nullptr;
    saved.clear();
    placed.clear();
    dependents.reset();
    res.reset();
}

void asl_full_graph::note(const llm_graph_params & params) {
    gf = res.get_gf();
    cells = params.mctx;
    n_inputs = res.inputs.size();
    index = asl_index_graph(res);
    if (ggml_backend_sched_get_n_backends(params.sched) == 1) {
        return;
    }
    for (int i = 0; i < ggml_graph_n_nodes(gf); ++i) {
        ggml_tensor * node = ggml_graph_node(gf, i);
        if (ggml_backend_t backend = ggml_backend_sched_get_tensor_backend(params.sched, node)) {
            placed.emplace_back(node, backend);
        }
    }
}

const asl_layer_of & asl_full_graph::get_dependents(llama_context & ctx) {
    if (!dependents) {
        dependents = std::make_unique<asl_layer_of>(asl_find_dependents(gf, ggml_graph_n_nodes(gf), asl_memory_tensors(ctx)));
    }
    return *dependents;
}

void asl_full_graph::save(int first, int last) {
    for (int i = first; i <= last; ++i) {
        save(ggml_graph_node(gf, i));
    }
}

void asl_full_graph::save_unplaced(ggml_cgraph * part, const std::vector<ggml_tensor *> & inputs) {
    const uint8_t * begin = res.buf_compute_meta.data();
    const uint8_t * end = begin + res.buf_compute_meta.size();
    // weights and memory of the context have their place
    auto save_own = [&](ggml_tensor * t) {
        if (t && !t->buffer && (const uint8_t *) t >= begin && (const uint8_t *) t < end) {
            save(t);
        }
    };
    std::for_each(inputs.begin(), inputs.end(), save_own);
    for (int i = 0; i < ggml_graph_n_nodes(part); ++i) {
        ggml_tensor * node = ggml_graph_node(part, i);
        save_own(node);
        std::for_each(std::begin(node->src), std::end(node->src), save_own);
    }
}

void asl_full_graph::take_back() {
    // the first copy of a tensor is the oldest
    for (auto it = saved.rbegin(); it != saved.rend(); ++it) {
        *it->first = it->second;
    }
    saved.clear();
    if (gf) {
        res.gf = gf;
        res.inputs.resize(n_inputs);
    }
}

void asl_full_graph::place(ggml_backend_sched_t sched) const {
    for (const auto & [node, backend] : placed) {
        ggml_backend_sched_set_tensor_backend(sched, node, backend);
    }
}

void asl_full_graphs::reset(size_t n_bytes) {
    n_bytes_max = n_bytes;
    chunks.clear();
    unused.clear();
    shared.reset();
}

void asl_full_graphs::clear() {
    for (auto & [begin, graph] : chunks) {
        graph->reset();
        unused.push_back(std::move(graph));
    }
    chunks.clear();
    shared.reset();
}

static asl_full_graph & make(std::unique_ptr<asl_full_graph> & graph, int64_t max_nodes) {
    if (!graph || graph->get().get_max_nodes() < max_nodes) {
        graph = std::make_unique<asl_full_graph>(max_nodes);
    }
    return *graph;
}

asl_full_graph & asl_full_graphs::get(int32_t begin, int64_t max_nodes) {
    if (!chunks.count(begin)) {
        if (!unused.empty()) {
            chunks[begin] = std::move(unused.back());
            unused.pop_back();
        } else if (!chunks.empty() && (chunks.size() + 1) * chunks.begin()->second->size_bytes() > n_bytes_max) {
            return make(shared, max_nodes);
        }
    }
    return make(chunks[begin], max_nodes);
}
