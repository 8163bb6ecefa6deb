// The hidden states of the current tokens between two layers, F32 in host memory. Graphs read them where they lie.

#pragma once

#include "ggml-cpp.h"
#include "ggml.h"

#include <cstddef>
#include <cstdint>

class asl_hidden {
public:
    // Room for n_tokens rows of n_embd values; 0 tokens: none. What was there is lost.
    //   buft: of host memory
    void reset(int64_t n_embd, int64_t n_tokens, ggml_backend_buffer_type_t buft);

    float * row(int64_t i);
    const float * row(int64_t i) const;

    // A tensor F32 [n_embd, n_tokens]: the rows from begin on.
    ggml_tensor * view(ggml_context * ctx, int64_t begin, int64_t n_tokens) const;

    // Has a node of a graph without memory yet write its result to the rows from begin on.
    void take(ggml_tensor * node, int64_t begin) const;

    size_t size_bytes() const;

private:
    ggml_context_ptr        ctx;
    ggml_backend_buffer_ptr buffer;
    ggml_tensor * tensor = nullptr; // [n_embd, n_tokens]
};
