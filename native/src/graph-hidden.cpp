// Where a part of a graph begins and ends: the hidden states that it reads and leaves.

#include "carried.h"
#include "graph.h"
#include "support.h"

#include "llama-context.h"
#include "llama-graph.h"
#include "llama-model.h"

#include "ggml-backend.h"

#include <stdexcept>

// What goes on after a layer; empty before the first one.
std::vector<asl_carried> asl_layer_cutter::find_carried(ggml_cgraph * gf, int32_t il) const {
    if (il < 0) {
        return {};
    }
    const auto & model = ctx.get_model();
    std::vector<asl_carried> result = { asl_describe_output(ggml_graph_node(gf, asl_find_layer_output(*index, il)), il, model) };
    if (hidden.width() > result[0].n_rows * model.hparams.n_embd) {
        const auto more = asl_find_carried(gf, *index, il, model, *dependents);
        result.insert(result.end(), more.begin(), more.end());
    }
    return result;
}

// What the part reads in place of nodes of earlier layers, and which nodes go on: to be called before nodes change.
void asl_layer_cutter::build_inputs(ggml_cgraph * gf) {
    going_on = range.head || chunk.rows_only ? std::vector<asl_carried>() : find_carried(gf, range.last);
    const std::vector<asl_carried> carried = find_carried(gf, range.first - 1);
    if (carried.empty()) {
        return;
    }
    ggml_tensor * rows = hidden.view(ctx_part.get(), chunk.n_past, chunk.n_tokens);
    // devices must copy it before the graph goes on: the layer's output takes the same rows
    ggml_set_input(rows);
    if (hidden.width() == carried[0].node->ne[0]) {
        replaced[carried[0].node] = rows;
        return;
    }
    int64_t i_row = 0;
    for (const asl_carried & c : carried) {
        // a copy in the form of the node: the rows take the output while it is still read
        ggml_tensor * copy = ggml_cont(ctx_part.get(), c.view(ctx_part.get(), rows, i_row));
        if (!ggml_are_same_shape(copy, c.node)) {
            throw std::runtime_error("'" + std::string(c.node->name) + "' of layer " + std::to_string(range.first - 1) + " is not one row of F32 per token");
        }
        replaced[c.node] = copy;
        copies.push_back(copy);
        i_row += c.n_rows;
    }
}

// The output of the part, which ends before the logits.
void asl_layer_cutter::keep_output(llm_graph_result & res, ggml_cgraph * part) {
    for (asl_carried & c : going_on) { // some may have come as they are
        const auto found = replaced.find(c.node);
        c.node = found != replaced.end() ? found->second : c.node;
    }
    if (range.is_last(ctx.get_model().hparams.n_layer())) {
        for (const asl_carried & c : going_on) {
            ggml_set_output(c.node);
            outputs.push_back(c);
        }
    } else if (!going_on.empty()) {
        put_output(part);
    }
    res.t_logits = nullptr;
    res.t_embd = nullptr;
    res.t_sampled.clear();
    res.t_sampled_probs.clear();
    res.t_sampled_logits.clear();
    res.t_candidates.clear();
}

void asl_layer_cutter::put_output(ggml_cgraph * part) {
    ggml_tensor * node = going_on[0].node;
    if ((going_on[0].n_rows == 1 ? ggml_nrows(node) : node->ne[1]) != chunk.n_tokens) {
        throw std::runtime_error("the output of layer " + std::to_string(range.last) + " is not one row of F32 per token");
    }
    const bool is_whole = hidden.width() == node->ne[0];
    const bool is_here = hidden.get_type() == asl_layer_buffer_type(ctx, range.last);
    // the last node may overwrite the rows that the layer read, if it adds element by element
    if (is_whole && is_here && node->op == GGML_OP_ADD && !node->view_src) {
        ggml_set_output(node);
        hidden.take(node, chunk.n_past);
        return;
    }
    ggml_tensor * rows = hidden.view(ctx_part.get(), chunk.n_past, chunk.n_tokens);
    int64_t i_row = 0;
    for (const asl_carried & c : going_on) {
        ggml_build_forward_expand(part, ggml_cpy(ctx_part.get(), c.node, is_whole ? rows : c.view(ctx_part.get(), rows, i_row)));
        i_row += c.n_rows;
    }
}

// Rows of the last tokens, those of each one after the other.
void asl_layer_cutter::read_output() {
    const int64_t n_embd = ctx.get_model().hparams.n_embd;
    const int64_t n_tokens = asl_n_head_rows(ctx.get_model(), outputs[0].node->ne[1]);
    chunk.output.assign(n_tokens * hidden.width(), 0.0f);
    for (int64_t i = 0; i < n_tokens; ++i) {
        float * dst = chunk.output.data() + i * hidden.width();
        for (const asl_carried & c : outputs) {
            const int of_token = c.rows_first ? 2 : 1, of_row = c.rows_first ? 1 : 2;
            const int64_t i_token = c.node->ne[of_token] - n_tokens + i;
            for (int64_t j = 0; j < c.n_rows; ++j, dst += n_embd) {
                ggml_backend_tensor_get(c.node, dst, i_token * c.node->nb[of_token] + j * c.node->nb[of_row], n_embd * sizeof(float));
            }
        }
    }
}
