// The part of a model's graph between two layers, and the window's attention scores as nodes in it.

#pragma once

#include "asl-hooks.h"
#include "attend-node.h"
#include "carried.h"
#include "dequant.h"
#include "graph-index.h"
#include "hidden.h"
#include "inputs.h"
#include "mask.h"
#include "memory.h"
#include "parts.h"

#include "ggml-cpp.h"
#include "ggml.h"

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <unordered_set>
#include <vector>

class asl_full_graph;

struct llama_context;

// Layers [first, last] over one chunk of the current tokens.
struct asl_layer_range {
    int32_t first = 0; // 0: from token ids. else: from the output of layer first - 1. n_layer: the head alone
    int32_t last = 0;
    bool head = false; // run on to the logits

    // ends with the model's last layer, whose rows are the batch's outputs
    bool is_last(int32_t n_layer) const { return last == n_layer - 1; }
};

// What a chunk asks for, and receives, beside the range.
struct asl_chunk {
    int32_t n_tokens = 0;
    int32_t n_past = 0;       // current tokens before the chunk
    int32_t n_queries = 0;       // last tokens of the chunk that belong to the window
    bool scores = false;
    bool by_indexer = false; // scores are those of the layer's indexer
    const float * weights = nullptr; // [n_queries] factors on the queries' attention, NULL for 1
    bool has_gaps = false;   // positions do not follow each other: tokens were dropped
    bool first = false;   // first chunk of the range: weights are expanded, the cut is verified
    bool rows_only = false;   // nothing after the chunk reads its output, only its K/V

    std::vector<float> queries;                // [n_queries, n_head, n_embd_head_k]
    std::vector<std::vector<float>> scores_kv; // [n_head_kv or 1][n_past + n_tokens]: (weighted) sum over the chunk's window queries
    std::vector<float> output;                 // [asl_n_head_rows, n_hidden] of the last tokens, if the range ends with the model's last layer
};

// The Q, K and mask of one layer's attention, read off its node.
struct asl_attention {
    ggml_tensor * node = nullptr; // soft max or flash attention
    ggml_tensor * q = nullptr; // F32 [n_embd_head_k, n_tokens, n_head] (permuted view)
    ggml_tensor * k = nullptr; // KV cache tensor [n_embd_k_gqa, n_cells, n_stream]
    ggml_tensor * mask = nullptr; // F16 or F32 [n_kv, n_tokens]
    ggml_tensor * sinks = nullptr; // F32 [n_head], may be NULL
    float scale = 1.0f;
    float cap = 0.0f; // of the logits: cap*tanh(cap_scale*kq) before the softmax, 0 for none
    float cap_scale = 1.0f;
    float max_bias = 0.0f; // of ALiBi: the mask holds distances, and each head has a slope; 0 for none
    int64_t n_head_kv = 0;
};

class asl_layer_cutter : public asl_graph_hook {
public:
    // hidden: of the current tokens: read where the range does not begin with layer 0, written where it does not end
    // with the model's last
    // inputs: of the chunks of ctx, NULL to take them from the host
    // parts: of the prefill
    // full: what is cut, if it will be cut again; NULL if not
    asl_layer_cutter(llama_context & ctx, asl_dequantiser & dequantiser, asl_attention_use & attention, asl_causal_mask & mask,
            const asl_hidden & hidden, asl_chunk_inputs * inputs, const asl_layer_range & range, asl_chunk & chunk, asl_parts & parts, asl_full_graph * full);

    ggml_cgraph * cut(llm_graph_result & res, const llama_ubatch & ubatch) override;
    void read(const llama_ubatch & ubatch) override;

    const std::string & get_error() const { return error; }

    // microseconds of this thread that packing or expanding weights took
    int64_t get_prepare_us() const { return prepare_us; }

private:
    ggml_cgraph * cut_impl(llm_graph_result & res, const llama_ubatch & ubatch);

    std::vector<ggml_tensor *> own_nodes(ggml_cgraph * gf, int begin, std::vector<ggml_tensor *> nodes) const;
    // graph-hidden.cpp
    std::vector<asl_carried> find_carried(ggml_cgraph * gf, int32_t il) const;
    void build_inputs(ggml_cgraph * gf);
    void keep_output(llm_graph_result & res, ggml_cgraph * part);
    void put_output(ggml_cgraph * part);
    void read_output();
    std::unordered_set<const ggml_tensor *> replace_masks(const std::vector<ggml_tensor *> & nodes);
    bool find_own_attention(const asl_attention & att, int32_t il, const std::vector<ggml_tensor *> & nodes, bool has_own_mask);
    void find_dependents(ggml_cgraph * gf);
    void verify(ggml_cgraph * gf, ggml_cgraph * part, int begin, int last) const;
    // scores.cpp
    size_t n_score_nodes(int64_t n_head_kv) const;
    void add_scores(llm_graph_result & res, ggml_cgraph * part);
    ggml_tensor * build_input(llm_graph_result & res, std::vector<float> data, int64_t ne0, int64_t ne1, int64_t ne2);
    ggml_tensor * build_weights(llm_graph_result & res);
    ggml_tensor * build_slopes(llm_graph_result & res, const asl_attention & att);
    ggml_tensor * build_scores(const asl_attention & att, ggml_tensor * weights, ggml_tensor * slopes, int64_t head_kv, int64_t begin, int64_t end);
    ggml_tensor * build_indexer_scores(ggml_tensor * of_indexer, ggml_tensor * weights);

    llama_context & ctx;
    asl_dequantiser & dequantiser;
    asl_attention_use & attention;
    asl_causal_mask & mask;
    const asl_hidden & hidden;
    asl_chunk_inputs * inputs;
    asl_parts & parts;
    asl_full_graph * full;

    const asl_layer_range range;
    asl_chunk & chunk;

    asl_graph_index own_index; // of a graph that is cut once
    const asl_graph_index * index = nullptr;
    asl_layer_of own_dependents;
    const asl_layer_of * dependents = nullptr; // found where they are asked for
    ggml_context_ptr ctx_part; // the cut graph and the score nodes

    std::map<const ggml_tensor *, ggml_tensor *> replaced; // nodes of earlier layers, by what is read in their place
    std::vector<ggml_tensor *> copies; // what comes before the part's nodes: of these, those made before the rows of the hidden states change
    std::vector<asl_carried> going_on; // what the part leaves
    std::vector<asl_carried> outputs; // of the model's last layer, which are read
    ggml_tensor * queries = nullptr;
    std::vector<ggml_tensor *> scores; // per KV head: F32 [1, n_kv]; of our own attention: F32 [n_keys, n_head_kv]
    asl_attention scored;              // attention of the last layer, before it became our own
    std::map<int32_t, std::unique_ptr<asl_attend_node>> own; // by layer: attention of our own

    int64_t prepare_us = 0;
    std::string error;
};

// Finds the attention of a layer in a full graph. Throws std::runtime_error with the reason if there is
// none of a form whose scores can be computed.
asl_attention asl_find_attention(const asl_graph_index & index, int32_t il);

// The node of a layer's indexer: F32 [n_kv, n_tokens], -INFINITY where a token does not see another. Throws std::runtime_error
// if it has none.
ggml_tensor * asl_find_indexer(const asl_graph_index & index, int32_t il);

// The node that is a layer's output. Throws std::runtime_error if the model does not name it.
int asl_find_layer_output(const asl_graph_index & index, int32_t il);

// Of the first n nodes, those that depend on what a context remembers: on that of one layer, or ASL_MIXED.
asl_layer_of asl_find_dependents(ggml_cgraph * gf, int n, const asl_layer_of & memory);

// Throws std::runtime_error with the reason if the full graph of a decode context cannot be cut after every layer. Returns the
// most rows of n_embd elements per token that go from one layer to the next.
int64_t asl_check_graph(const llm_graph_result & res, llama_context & ctx);
