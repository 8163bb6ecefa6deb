#include "graph-index.h"

#include "llama-graph.h"

#include <cstdlib>
#include <cstring>
#include <unordered_map>
#include <unordered_set>

// Of a node that the model calls so, from its name; -1 for another one.
static int32_t layer_of(const char * name, const char * called) {
    const size_t n = strlen(called);
    if (strncmp(name, called, n) != 0) {
        return -1;
    }
    char * end = nullptr;
    const long il = strtol(name + n, &end, 10);
    return *end == '\0' ? (int32_t) il : -1;
}

asl_graph_index asl_index_graph(const llm_graph_result & res) {
    asl_graph_index index;
    std::unordered_multimap<const ggml_tensor *, int32_t> layers;
    for (const auto & [il, output] : res.asl_outputs) {
        layers.emplace(output, il);
    }
    std::unordered_set<const ggml_tensor *> seen;
    ggml_cgraph * gf = res.get_gf();
    for (int i = 0; i < ggml_graph_n_nodes(gf); ++i) {
        ggml_tensor * node = ggml_graph_node(gf, i);
        const auto [begin, end] = layers.equal_range(node);
        for (auto it = begin; it != end; ++it) {
            index.outputs[it->second] = i;
        }
        if (const int32_t il = layer_of(node->name, "kq_soft_max-"); il >= 0) {
            index.attention[il] = node;
        }
        if (const int32_t il = layer_of(node->name, "indexer_score-"); il >= 0) {
            index.indexers[il] = node; // the last of those with the name
        }
        for (ggml_tensor * src : node->src) {
            if (src && !src->data && (src->flags & GGML_TENSOR_FLAG_INPUT) && seen.insert(src).second) {
                index.inputs.push_back(src);
            }
        }
    }
    for (const auto & fused : res.get_fused_nodes()) {
        if (fused.op == LLM_FUSED_OP_FLASH_ATTN) {
            index.attention[fused.il] = fused.tensor;
        }
    }
    return index;
}
