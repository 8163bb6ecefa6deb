// What a chunk reads beside hidden states and masks: positions, and the cells of its tokens. They are the same in every
// layer. Between two graphs llama.cpp waits for a device before it copies inputs there from the host; with copies that lie
// there already, a chunk is queued while the one before it runs.

#pragma once

#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml.h"

#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

class llm_graph_result;

class asl_chunk_inputs {
public:
    // Copies lie in memory of this type, n_bytes at most: what is larger comes from the host each time. What was there is lost.
    void reset(ggml_backend_buffer_type_t buft, size_t n_bytes);

    // to be called when the current tokens change
    void clear();

    // Has the nodes read the copies that an earlier layer left for the chunk that begins with current token `begin`. Where
    // there are none, llama.cpp's filling the inputs of res makes them.
    //   inputs: of the full graph, in the order in which its nodes read them
    void replace(llm_graph_result & res, int32_t begin, const std::vector<ggml_tensor *> & inputs, const std::vector<ggml_tensor *> & nodes);

    size_t size_bytes() const { return n_bytes; }

private:
    struct copy {
        ggml_context_ptr ctx;
        ggml_tensor * tensor = nullptr;
        bool filled = false;
    };

    friend class asl_input_copier;

    copy * find(int32_t begin, size_t i_input, const ggml_tensor * input);
    bool place(ggml_tensor * tensor);

    ggml_backend_buffer_type_t buft = nullptr; // NULL: nothing is copied
    size_t n_bytes_max = 0;
    size_t n_bytes = 0; // of the buffers
    size_t n_last = 0; // of the last one
    size_t n_used = 0; // of that

    std::vector<ggml_backend_buffer_ptr> buffers;

    std::map<std::pair<int32_t, size_t>, copy> copies; // by chunk and place among the inputs
};
