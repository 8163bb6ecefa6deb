// Whether a full graph can be cut after every layer: what a session is refused for before any prompt comes.

#include "graph.h"

#include "cache.h"
#include "support.h"

#include "llama-context.h"
#include "llama-graph.h"
#include "llama-model.h"

#include <algorithm>
#include <stdexcept>
#include <unordered_map>

static std::string str(int64_t value) { return std::to_string(value); }

asl_layer_of asl_find_dependents(ggml_cgraph * gf, int n, const asl_layer_of & memory) {
    asl_layer_of result;
    for (int i = 0; i < n; ++i) {
        const ggml_tensor * node = ggml_graph_node(gf, i);
        int32_t layer = ASL_NONE;
        auto read = [&](const ggml_tensor * t) {
            if (!t) {
                return;
            }
            for (const asl_layer_of * known : { &memory, const_cast<const asl_layer_of *>(&result) }) {
                const auto found = known->find(t);
                if (found != known->end()) {
                    layer = layer == ASL_NONE || layer == found->second ? found->second : ASL_MIXED;
                }
            }
        };
        read(node->view_src);
        for (const ggml_tensor * src : node->src) {
            read(src);
        }
        if (layer != ASL_NONE) {
            result[node] = layer;
        }
    }
    return result;
}

// Nodes begin to end - 1, of a layer or the head, may read of earlier nodes: the output of the layer before, what depends on
// the token ids alone, their own state, which llama.cpp clears and reads before the layer begins, and what is carried.
static void check_reads(ggml_cgraph * gf, int begin, int end, int32_t il, const std::string & what,
        const std::unordered_map<const ggml_tensor *, int> & places, const asl_layer_of & dependents) {
    const ggml_tensor * prev = begin > 0 ? ggml_graph_node(gf, begin - 1) : nullptr;
    for (int i = begin; i < end; ++i) {
        for (const ggml_tensor * src : ggml_graph_node(gf, i)->src) {
            const auto place = places.find(src);
            const auto memory = dependents.find(src);
            const bool is_earlier = src != prev && place != places.end() && place->second < begin;
            if (is_earlier && memory != dependents.end() && memory->second > il) {
                throw std::runtime_error(what + " reads '" + src->name + "' that another layer's state is read for");
            }
        }
    }
}

// In a decode context every layer has tensors of its own, so that it shows which one a layer attends to.
static void check_attention(const asl_graph_index & index, llama_context & ctx, int32_t il) {
    const asl_attention att = asl_find_attention(index, il);
    const int32_t owner = asl_row_owner(ctx.get_model(), il);
    if (att.k != asl_get_kv_layer(ctx, owner).k) {
        throw std::runtime_error("layer " + str(il) + " does not attend to the K/V of layer " + str(owner));
    }
}

int64_t asl_check_graph(const llm_graph_result & res, llama_context & ctx) {
    const llama_model & model = ctx.get_model();
    const int32_t n_layer = model.hparams.n_layer();
    ggml_cgraph * gf = res.get_gf();
    const asl_graph_index index = asl_index_graph(res);
    const int n_nodes = ggml_graph_n_nodes(gf);

    std::unordered_map<const ggml_tensor *, int> places;
    for (int i = 0; i < n_nodes; ++i) {
        places[ggml_graph_node(gf, i)] = i;
    }
    const auto dependents = asl_find_dependents(gf, n_nodes, asl_memory_tensors(ctx));
    int64_t n_rows = 1;
    int begin = 0;
    for (int32_t il = 0; il <= n_layer; ++il) {
        const int end = il < n_layer ? asl_find_layer_output(index, il) + 1 : n_nodes;
        if (end <= begin) {
            throw std::runtime_error("the output of layer " + str(il) + " comes before that of layer " + str(il - 1));
        }
        if (il < n_layer) {
            const asl_carried out = asl_describe_output(ggml_graph_node(gf, end - 1), il, model);
            n_rows = std::max(n_rows, out.n_rows + asl_count_rows(asl_find_carried(gf, index, il, model, dependents)));
        }
        if (il < n_layer && asl_has_attention(model, il)) {
            check_attention(index, ctx, il);
        }
        check_reads(gf, begin, end, il, il < n_layer ? "layer " + str(il) : "the output head", places, dependents);
        begin = end;
    }
    return n_rows;
}
