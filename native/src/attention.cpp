// Where a model's graph has the attention of a layer, and of what form it is. Depends on how llama.cpp names and orders nodes.

#include "graph.h"

#include "ggml-backend.h"

#include <cstring>
#include <stdexcept>

static float get_op_param_f32(const ggml_tensor * t, int i) {
    float value;
    memcpy(&value, t->op_params + i, sizeof(value));
    return value;
}

// the KV cache tensor behind a view of it, possibly through the cast that build_attn_mha adds for F32 caches
static ggml_tensor * find_cache_tensor(ggml_tensor * t) {
    while (t->view_src == nullptr && (t->op == GGML_OP_CPY || t->op == GGML_OP_PERMUTE) && t->src[0]) {
        t = t->src[0];
    }
    if (t->op == GGML_OP_CPY) {
        t = t->src[0];
    }
    return t->view_src ? t->view_src : t;
}

static asl_attention read_flash_attention(ggml_tensor * node) {
    asl_attention att;
    att.q = node->src[0];
    att.k = find_cache_tensor(node->src[1]);
    att.mask = node->src[3];
    att.sinks = node->src[4];
    att.scale = get_op_param_f32(node, 0);
    att.n_head_kv = node->src[1]->ne[2];
    att.cap = get_op_param_f32(node, 2);
    if (att.cap != 0.0f) { // softmax(cap*tanh(scale/cap*kq))
        att.cap_scale = att.scale / att.cap;
        att.scale = 1.0f;
    }
    return att;
}

// The tanh of logits that are capped before the softmax: scale(tanh(scale(kq))); NULL if they are not.
static const ggml_tensor * find_soft_cap(const ggml_tensor * logits) {
    const ggml_tensor * tanh = logits->op == GGML_OP_SCALE ? logits->src[0] : nullptr;
    const bool is_tanh = tanh && tanh->op == GGML_OP_UNARY && ggml_get_unary_op(tanh) == GGML_UNARY_OP_TANH;
    return is_tanh && tanh->src[0]->op == GGML_OP_SCALE ? tanh : nullptr;
}

static asl_attention read_soft_max(ggml_tensor * node) {
    const ggml_tensor * kq = node->src[0];
    asl_attention att;
    if (const ggml_tensor * tanh = find_soft_cap(kq)) {
        att.cap = get_op_param_f32(kq, 0);
        att.cap_scale = get_op_param_f32(tanh->src[0], 0);
        kq = tanh->src[0]->src[0];
    }
    if (kq->op != GGML_OP_MUL_MAT) {
        throw std::runtime_error("attention whose logits are changed before the softmax (a bias) is not supported");
    }
    att.q = kq->src[1];
    att.k = find_cache_tensor(kq->src[0]);
    att.mask = node->src[1];
    att.sinks = node->src[2];
    att.scale = get_op_param_f32(node, 0);
    att.n_head_kv = kq->src[0]->ne[2];
    return att;
}

ggml_tensor * asl_find_indexer(const asl_graph_index & index, int32_t il) {
    const auto found = index.indexers.find(il);
    ggml_tensor * node = found == index.indexers.end() ? nullptr : found->second;
    if (!node || node->type != GGML_TYPE_F32 || ggml_nrows(node) != node->ne[1]) {
        throw std::runtime_error("layer " + std::to_string(il) + " has no indexer whose scores can be read");
    }
    return node;
}

asl_attention asl_find_attention(const asl_graph_index & index, int32_t il) {
    const auto found = index.attention.find(il);
    if (found == index.attention.end()) {
        throw std::runtime_error("layer " + std::to_string(il) + " has no attention");
    }
    ggml_tensor * node = found->second;
    asl_attention att = node->op == GGML_OP_FLASH_ATTN_EXT ? read_flash_attention(node) : read_soft_max(node);
    att.max_bias = get_op_param_f32(node, 1);
    att.node = node;
    if (!att.mask || att.q->type != GGML_TYPE_F32 || att.q->ne[3] != 1 || att.q->ne[2] % att.n_head_kv != 0) {
        throw std::runtime_error("the attention of layer " + std::to_string(il) + " has an unexpected form");
    }
    if (!att.k->buffer || ggml_backend_buffer_get_usage(att.k->buffer) == GGML_BACKEND_BUFFER_USAGE_WEIGHTS) {
        throw std::runtime_error("layer " + std::to_string(il) + " does not attend to the KV cache");
    }
    return att;
}
