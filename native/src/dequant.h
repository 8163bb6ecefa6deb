// Weights expanded to F16, or packed (packed.h), for the time their layer runs.
//
// Prefill is matrix products, and those of formats without a fast matrix kernel (Q4_1, Q5_1; which ones is measured,
// kernels.cpp) run at about half the speed of F16 on CPUs. Layer by layer, a weight is expanded once for the whole
// prompt, into one buffer that the next layer reuses.

#pragma once

#include "asl.h"
#include "kernels.h"
#include "packed-weights.h"

#include "ggml-cpp.h"
#include "ggml.h"

#include <cstdint>
#include <unordered_map>
#include <vector>

class asl_dequantiser {
public:
    void set_mode(asl_dequant mode, int n_threads);

    bool enabled() const { return mode != ASL_DEQUANT_OFF; }

    // Forget the weights of the layer before, keep the memory. n_tokens: that run through the next one
    void next_layer(int64_t n_tokens);

    // expand or pack the eligible weights of these nodes; once per layer, before the first call of replace
    void prepare(const std::vector<ggml_tensor *> & nodes);

    // let these nodes of a graph read the expanded or packed weights, where there are such; makes tensors in ctx
    void replace(const std::vector<ggml_tensor *> & nodes, ggml_context * ctx) const;

    // most tensors that replace makes
    size_t n_extra(size_t n_nodes) const { return enabled() ? asl_packed_weights::n_extra(n_nodes) : 0; }

    void release();

    size_t size_bytes() const;
    int32_t n_dequantised() const { return n_total; }

private:
    asl_held choose(const ggml_tensor * node) const;
    void prepare_expanded(const std::vector<const ggml_tensor *> & weights);
    void expand(const ggml_tensor * src, ggml_fp16_t * dst) const;

    asl_dequant mode = ASL_DEQUANT_OFF;
    int n_threads = 1;
    int64_t n_layer_tokens = 0;
    int32_t n_total = 0;

    ggml_context_ptr ctx;    // tensors of the expanded weights of the layer
    ggml_backend_buffer_ptr buffer; // their data

    std::unordered_map<const ggml_tensor *, ggml_tensor *> expanded;

    asl_packed_weights packed;
};
