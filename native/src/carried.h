// What goes from one layer to the next: its output, and what deeper layers read of earlier ones beside it (the other state of
// HRM-Text, the checkpoints of Kimi K3). All of it lies in the hidden states, rows of n_embd elements of a token one after the
// other.

#pragma once

#include "memory.h"

#include "ggml.h"

#include <cstdint>
#include <vector>

struct asl_graph_index;
struct llama_model;

// A node of a graph that goes on, F32.
struct asl_carried {
    ggml_tensor * node = nullptr; // [n_embd, n_tokens, n_rows], or [n_embd, n_rows, n_tokens]
    int64_t n_rows = 0;
    bool rows_first = false; // the latter

    // Its place among hidden states, which have the rows of a token in one: a view of the node's shape.
    ggml_tensor * view(ggml_context * ctx, ggml_tensor * hidden, int64_t first_row) const;
};

// The output of a layer as the graph has it: [n_embd, n_tokens], or [n_embd, n_tokens, n_streams] of a model with several
// residual streams. Throws std::runtime_error if it is of another form.
asl_carried asl_describe_output(ggml_tensor * node, int32_t il, const llama_model & model);

// What nodes after the output of layer il read of nodes before it, beside that: in the order in which they read it. What
// depends on the token ids alone is left out, for it is computed again. Throws std::runtime_error if something is of a form
// that cannot be carried.
//   dependents: asl_find_dependents of the whole graph
std::vector<asl_carried> asl_find_carried(ggml_cgraph * gf, const asl_graph_index & index, int32_t il, const llama_model & model, const asl_layer_of & dependents);

int64_t asl_count_rows(const std::vector<asl_carried> & carried);
