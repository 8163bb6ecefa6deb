// Attention of our own (attend.h) in place of llama.cpp's nodes in the part of a graph that a chunk runs.

#pragma once

#include "attend.h"

#include "ggml.h"

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

struct asl_attention;

// What the layers of a prefill attended with.
struct asl_attention_use {
    bool enabled = false; // our kernel may take the place of llama.cpp's
    bool is_rounded = false; // it computes with integers
    int32_t n_own = 0;  // layers
    int32_t n_stock = 0;
    std::string reason;   // of the last one that kept llama.cpp's

    void reset(bool enabled, bool may_round) {
        *this = asl_attention_use();
        this->enabled = enabled;
        is_rounded = may_round && asl_attend_kernel_in_force().attend_rounded;
    }
    std::string describe() const;
};

// One layer's attention over one chunk. Lives as long as the graph.
class asl_attend_node {
public:
    // Looks at the nodes of the part, which stay as they are. "" if their attention can be replaced, else why not.
    //   has_own_mask: llama.cpp's mask is needed, for the order of the cells does not tell what a token attends to
    std::string find(const asl_attention & att, const std::vector<ggml_tensor *> & nodes, int64_t n_past, int64_t n_swa, bool has_own_mask);

    // with integers of 16 bits
    void round() { a.is_rounded = true; }

    // After a find that succeeded: the attention becomes one custom node, and what only it read is taken off the list.
    void replace(std::vector<ggml_tensor *> & nodes, ggml_context * ctx);

    // The attention of the last n_queries tokens of the chunk: a node F32 [keys, n_head_kv].
    //   weights: [n_queries], NULL for 1; must stay as long as the graph
    ggml_tensor * build_scores(ggml_context * ctx, int64_t n_queries, const float * weights);

    // most tensors that are made in ctx
    static const size_t N_NODES = 2;

private:
    bool find_flash(const asl_attention & att);
    bool find_soft_max(const asl_attention & att, const std::vector<ggml_tensor *> & nodes);
    std::string check(const std::vector<ggml_tensor *> & nodes, int64_t n_past) const;
    asl_attend bind(const ggml_tensor * dst) const;

    static void attend(ggml_tensor * dst, int ith, int nth, void * userdata);
    static void score(ggml_tensor * dst, int ith, int nth, void * userdata);

    ggml_tensor * out = nullptr; // [n_embd_v*n_head, n_tokens] or [n_embd_v, n_head, n_tokens]
    std::vector<ggml_tensor *> read; // q, k, v, then the mask and the sinks if there are such
    std::vector<const ggml_tensor *> replaced;
    bool has_mask = false;

    const asl_attend_kernel * kernel = nullptr;
    asl_attend a; // without addresses
    std::vector<float> softmax;
};
