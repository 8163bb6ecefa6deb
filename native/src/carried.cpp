#include "carried.h"

#include "graph.h"
#include "support.h"

#include "llama-graph.h"
#include "llama-model.h"

#include <algorithm>
#include <stdexcept>
#include <unordered_set>

ggml_tensor * asl_carried::view(ggml_context * ctx, ggml_tensor * hidden, int64_t first_row) const {
    const size_t nb_row = node->ne[0] * sizeof(float);
    if (rows_first) {
        return ggml_view_3d(ctx, hidden, node->ne[0], n_rows, hidden->ne[1], nb_row, hidden->nb[1], first_row * nb_row);
    }
    return ggml_view_3d(ctx, hidden, node->ne[0], hidden->ne[1], n_rows, hidden->nb[1], nb_row, first_row * nb_row);
}

asl_carried asl_describe_output(ggml_tensor * node, int32_t il, const llama_model & model) {
    const int64_t n_streams = asl_n_streams(model);
    if (node->type != GGML_TYPE_F32 || node->ne[0] != model.hparams.n_embd || node->ne[2] != n_streams || node->ne[3] != 1) {
        throw std::runtime_error("the output of layer " + std::to_string(il) + " is not " + std::to_string(n_streams) + " rows of " +
                                 std::to_string(model.hparams.n_embd) + " elements per token, F32 (several residual streams)");
    }
    return { node, n_streams, false };
}

// Nodes that change no value lie where another does: what reads them would have to follow.
static bool is_part_of_another(const ggml_tensor * reader, const ggml_tensor * t) {
    return reader->view_src && t->view_src;
}

std::vector<asl_carried> asl_find_carried(ggml_cgraph * gf, const asl_graph_index & index, int32_t il, const llama_model & model, const asl_layer_of & dependents) {
    const int end = asl_find_layer_output(index, il) + 1;
    const ggml_tensor * out = ggml_graph_node(gf, end - 1);
    const int64_t n_tokens = ggml_graph_node(gf, asl_find_layer_output(index, 0))->ne[1];
    std::unordered_set<const ggml_tensor *> earlier;
    for (int i = 0; i < end - 1; ++i) {
        earlier.insert(ggml_graph_node(gf, i));
    }
    std::vector<asl_carried> result;
    for (int i = end; i < ggml_graph_n_nodes(gf); ++i) {
        const ggml_tensor * reader = ggml_graph_node(gf, i);
        for (ggml_tensor * src : reader->src) {
            const auto found = src && src != out && earlier.count(src) ? dependents.find(src) : dependents.end();
            // states of deeper layers are read before the layer begins
            if (found == dependents.end() || found->second > il) {
                continue;
            }
            if (std::any_of(result.begin(), result.end(), [src](const asl_carried & c) { return c.node == src; })) {
                continue;
            }
            const bool is_row = ggml_nrows(src) == n_tokens && src->ne[1] == n_tokens;
            const bool is_stack = ggml_nrows(src) == src->ne[1] * n_tokens && src->ne[2] == n_tokens; // Kimi K3's checkpoints
            if (src->type != GGML_TYPE_F32 || src->ne[0] != model.hparams.n_embd || (!is_row && !is_stack) || is_part_of_another(reader, src)) {
                throw std::runtime_error("layers after " + std::to_string(il) + " read '" + src->name + "' of an earlier layer, beside its output");
            }
            result.push_back({ src, is_row ? 1 : src->ne[1], !is_row });
        }
    }
    return result;
}

int64_t asl_count_rows(const std::vector<asl_carried> & carried) {
    int64_t n = 0;
    for (const asl_carried & c : carried) {
        n += c.n_rows;
    }
    return n;
}
