// What a control vector adds to each layer of a graph.

#pragma once

#include "ggml.h"

#include <vector>

struct llm_graph_params;

// By layer, NULL where nothing is added; empty without a control vector. llama.cpp's rule for graphs that it reuses asks only
// whether it is the same object, whose layers may have changed.
std::vector<const ggml_tensor *> asl_find_steering(const llm_graph_params & params);
