// Embeddings of their own for every layer (Gemma 3n, Gemma 4 E2B and E4B). llama.cpp looks them up, and projects the input
// embeddings beside them, for all layers at once before the first one. Layer by layer, that would be done as often as there
// are layers: a layer's share alone is computed here.

#pragma once

#include "ggml.h"

#include <cstddef>
#include <vector>

// most tensors that asl_take_own_share makes
static const size_t ASL_N_SHARE_NODES = 16;

// Where nodes of a layer read their slice of what was computed for all layers, they read a product, a norm and a lookup of
// that slice alone; bit for bit the same. Nodes that nobody reads any more are taken out. Does nothing where a graph has no
// such part, or has it in another form.
void asl_take_own_share(std::vector<ggml_tensor *> & nodes, ggml_context * ctx);
