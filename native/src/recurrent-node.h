// Kernels of our own (recurrent.h) in place of llama.cpp's nodes in the part of a graph that a chunk runs.

#pragma once

#include "ggml.h"

#include <vector>

// Nodes of [first, last] of a graph that asl_replace_recurrent may change: it makes a tensor for each.
size_t asl_count_recurrent(ggml_cgraph * gf, int first, int last);

// Short convolutions, what joins their inputs, and gated delta nets become custom nodes, those of a form that is known.
void asl_replace_recurrent(const std::vector<ggml_tensor *> & nodes, ggml_context * ctx);
