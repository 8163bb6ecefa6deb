#include "graph-index.h"

#include "llama-graph.h"

#include <cstdlib>
#include <cstring>
#include <unordered_map>
#include <unordered_set>

static const char SOFT_MAX[] = "kq_soft_max-";

// Of a softmax, from its name; -1 for another node.
static int32_t layer_of_soft_max(const char * name) {
    const size_t n = strlen(SOFT_MAX);
    if (strncmp(name, SOFT_MAX, n) != 0) {
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
        const int32_t il = layer_of_soft_max(node->name);
        if (il >= 0) {
            index.attention[il] = node;
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
