// The hidden states of the current tokens between two layers, F32 in host memory. Graphs read them where they lie.

#pragma once

#include "ggml-cpp.h"
#include "ggml.h"

#include <cstddef>
#include <cstdint>

struct llama_model;

// Memory that graphs read in place on CPUs and that other devices copy fast.
ggml_backend_buffer_type_t asl_host_buffer_type(const llama_model & model);

class asl_hidden {
public:
    // Room for tokens begin..end-1, n_embd values each. What was there is lost.
    //   buft: of host memory
    void reset(int64_t n_embd, int64_t begin, int64_t end, ggml_backend_buffer_type_t buft);

    void release();

    float * row(int64_t i);
    const float * row(int64_t i) const;

    // A tensor F32 [n_embd, n_tokens]: the tokens from begin on.
    ggml_tensor * view(ggml_context * ctx, int64_t begin, int64_t n_tokens) const;

    // Has a node of a graph without memory yet write its result to the tokens from begin on.
    void take(ggml_tensor * node, int64_t begin) const;

    size_t size_bytes() const;

private:
    ggml_context_ptr        ctx;
    ggml_backend_buffer_ptr buffer;
    ggml_tensor * tensor = nullptr; // [n_embd, n_tokens]

    int64_t first = 0; // the token of row 0
};
