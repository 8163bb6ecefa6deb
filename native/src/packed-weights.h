// Weight matrices in packed form (packed.h) for the time their layer runs, and their products as nodes of its graph.

#pragma once

#include "packed.h"

#include "ggml-cpp.h"
#include "ggml.h"

#include <cstdint>
#include <map>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

class asl_packed_weights {
public:
    // Whether the product of this node can be computed with packed weights.
    static bool can_pack(const ggml_tensor * node);

    struct wanted {
        const ggml_tensor * weights; // as stored in host memory, or repacked in a form that is known (repacked.h)
        int act_bits;
        bool as_multiplied; // panels are packed where they are multiplied, and take no memory. Always so of experts
    };

    // Packs these weights in place of those before, whose memory is used again.
    void prepare(const std::vector<wanted> & list, int n_threads);

    // most tensors that replace makes for as many nodes
    static size_t n_extra(size_t n_nodes) { return 2 * n_nodes; }

    // Nodes of one graph that multiply packed weights become custom ones. What they read, rounded activations, is made
    // in ctx, once for all products of the same activations.
    void replace(const std::vector<ggml_tensor *> & nodes, ggml_context * ctx) const;

    void clear();   // keeps the memory
    void release();

    size_t size_bytes() const { return buffer ? ggml_backend_buffer_get_size(buffer.get()) : 0; }

private:
    // what a node's function is given; lives as long as the graphs that have it
    struct product {
        const asl_packed_kernel * kernel;
        asl_packed_matrix weights;
        asl_act_form form;
        asl_packed_source source;
        int64_t n_expert;
    };

    void pack(const std::vector<const ggml_tensor *> & list, int n_threads);

    static void quantise(ggml_tensor * dst, int ith, int nth, void * userdata);
    static void multiply(ggml_tensor * dst, int ith, int nth, void * userdata);
    static void multiply_experts(ggml_tensor * dst, int ith, int nth, void * userdata);

    ggml_backend_buffer_ptr buffer;
    std::unordered_map<const ggml_tensor *, std::unique_ptr<product>> products; // by weight
};
