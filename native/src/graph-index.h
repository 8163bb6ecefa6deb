// Where the nodes of a full graph are by which parts are cut out: the same for every layer.

#pragma once

#include "ggml.h"

#include <cstdint>
#include <map>
#include <vector>

class llm_graph_result;

struct asl_graph_index {
    std::map<int32_t, int> outputs;             // by layer: the node that is its output
    std::map<int32_t, ggml_tensor *> attention; // by layer: soft max or flash attention
    std::map<int32_t, ggml_tensor *> indexers;  // by layer: scores of what chooses the tokens that it attends to (sparse attention)
    std::vector<ggml_tensor *> inputs;          // what is read and neither computed nor in memory yet, in the order in which nodes read it
};

// Of a graph as it was built.
asl_graph_index asl_index_graph(const llm_graph_result & res);
