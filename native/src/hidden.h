// The hidden states of the current tokens between two layers, F32: where the layers run, if that is one place with
// room for them, else in host memory. Graphs read and write them where they lie.

#pragma once

#include "ggml-cpp.h"
#include "ggml.h"

#include <cstddef>
#include <cstdint>
#include <vector>

struct llama_context;

// Where n_bytes of hidden states of a context should lie.
ggml_backend_buffer_type_t asl_hidden_buffer_type(llama_context & ctx, size_t n_bytes);

class asl_hidden {
public:
    // Room for tokens begin..end-1, n_hidden values each. What was there is lost.
    void reset(int64_t n_hidden, int64_t begin, int64_t end, ggml_backend_buffer_type_t buft);

    void release();

    // All values are 0.
    void clear();

    // Rows of tokens begin..end-1: float [end - begin, n_hidden].
    void get(int64_t begin, int64_t end, float * dst) const;
    void set(int64_t begin, int64_t end, const float * src);

    // Row index[i] becomes row i; the index increases.
    //   ctx: whose devices compute
    void gather(llama_context & ctx, const std::vector<int32_t> & index);

    // A tensor F32 [n_hidden, n_tokens]: the tokens from begin on.
    ggml_tensor * view(ggml_context * ctx, int64_t begin, int64_t n_tokens) const;

    // Has a node of a graph without memory yet write its result to the tokens from begin on.
    void take(ggml_tensor * node, int64_t begin) const;

    ggml_backend_buffer_type_t get_type() const;

    int64_t width() const { return tensor->ne[0]; }

    // bytes in host memory, or in memory of other devices
    size_t size_bytes(bool host) const;

private:
    void gather_on_device(llama_context & ctx, const std::vector<int32_t> & index);

    size_t offset(int64_t i) const { return (i - first) * tensor->nb[1]; }

    ggml_context_ptr ctx;
    ggml_backend_buffer_ptr buffer;
    ggml_tensor * tensor = nullptr; // [n_hidden, n_tokens]

    int64_t first = 0; // the token of row 0
};
