#include "per-layer.h"

#include "ggml-backend.h"

#include <algorithm>
#include <cstring>

// What llama.cpp builds: view(cont(permute(scale(add(mul(rms_norm(reshape(scale(product))), weight), scale(reshape(lookup))))))).
struct per_layer_inputs {
    ggml_tensor * all = nullptr; // F32 [n_embd, n_tokens, n_layer]
    ggml_tensor * sum = nullptr; // scaled
    ggml_tensor * norm = nullptr;
    ggml_tensor * weighted = nullptr; // the norm times its weights
    ggml_tensor * projected = nullptr; // scaled
    ggml_tensor * product = nullptr;
    ggml_tensor * embedding = nullptr; // scaled
    ggml_tensor * lookup = nullptr;

    std::vector<const ggml_tensor *> chain; // these and what lies between
};

// Follows first operands through these operations; NULL if one is another.
static ggml_tensor * follow(ggml_tensor * t, std::initializer_list<ggml_op> ops, std::vector<const ggml_tensor *> & chain) {
    for (const ggml_op op : ops) {
        t = t ? t->src[0] : nullptr;
        if (!t || t->op != op) {
            return nullptr;
        }
        chain.push_back(t);
    }
    return t;
}

static bool is_in_host_memory(const ggml_tensor * weights) {
    return weights->buffer && ggml_backend_buffer_is_host(weights->buffer);
}

static bool find_inputs(ggml_tensor * all, per_layer_inputs & p) {
    p.all = all;
    p.chain = { all };
    p.sum = follow(all, { GGML_OP_PERMUTE, GGML_OP_SCALE }, p.chain);
    ggml_tensor * add = p.sum ? follow(p.sum, { GGML_OP_ADD }, p.chain) : nullptr;
    p.weighted = add ? follow(add, { GGML_OP_MUL }, p.chain) : nullptr;
    p.norm = p.weighted ? follow(p.weighted, { GGML_OP_RMS_NORM }, p.chain) : nullptr;
    p.projected = p.norm ? follow(p.norm, { GGML_OP_RESHAPE, GGML_OP_SCALE }, p.chain) : nullptr;
    p.product = p.projected ? follow(p.projected, { GGML_OP_MUL_MAT }, p.chain) : nullptr;
    p.embedding = p.product ? add->src[1] : nullptr;
    if (!p.embedding || p.embedding->op != GGML_OP_SCALE) {
        return false;
    }
    p.chain.push_back(p.embedding);
    p.lookup = follow(p.embedding, { GGML_OP_RESHAPE, GGML_OP_GET_ROWS }, p.chain);
    if (!p.lookup) {
        return false;
    }
    const int64_t n_embd = all->ne[0];
    const ggml_tensor * w = p.product->src[0];
    const ggml_tensor * rows = p.lookup->src[0];
    return w->ne[1] == n_embd * all->ne[2] && rows->ne[0] == w->ne[1] && n_embd % ggml_blck_size(rows->type) == 0 &&
           p.product->src[1]->ne[1] == all->ne[1] && is_in_host_memory(w) && is_in_host_memory(rows);
}

// The same operation on another operand, of the shape of that.
static ggml_tensor * apply(ggml_context * ctx, const ggml_tensor * node, ggml_tensor * operand) {
    ggml_tensor * result = ggml_dup_tensor(ctx, operand);
    result->op = node->op;
    result->flags = node->flags;
    memcpy(result->op_params, node->op_params, sizeof(result->op_params));
    result->src[0] = operand;
    result->src[1] = node->src[1];
    return result;
}

static ggml_tensor * build_share(ggml_context * ctx, const per_layer_inputs & p, int64_t i_layer) {
    const int64_t n_embd = p.all->ne[0];
    ggml_tensor * w = p.product->src[0];
    ggml_tensor * rows = p.lookup->src[0];
    ggml_tensor * own_w = ggml_view_2d(ctx, w, w->ne[0], n_embd, w->nb[1], i_layer * n_embd * w->nb[1]);
    ggml_tensor * own_rows = ggml_view_2d(ctx, rows, n_embd, rows->ne[1], rows->nb[1], i_layer * ggml_row_size(rows->type, n_embd));

    ggml_tensor * product = ggml_mul_mat(ctx, own_w, p.product->src[1]);
    memcpy(product->op_params, p.product->op_params, sizeof(product->op_params));
    ggml_tensor * normed = apply(ctx, p.norm, apply(ctx, p.projected, product));
    ggml_tensor * embedding = apply(ctx, p.embedding, ggml_get_rows(ctx, own_rows, p.lookup->src[1]));
    return apply(ctx, p.sum, ggml_add(ctx, apply(ctx, p.weighted, normed), embedding));
}

void asl_take_own_share(std::vector<ggml_tensor *> & nodes, ggml_context * ctx) {
    for (size_t i = 0; i < nodes.size(); ++i) {
        ggml_tensor * slice = nodes[i];
        ggml_tensor * all = slice->op == GGML_OP_VIEW ? slice->src[0] : nullptr;
        per_layer_inputs p;
        if (!all || all->op != GGML_OP_CONT || slice->ne[0] != all->ne[0] || slice->ne[1] != all->ne[1] || !find_inputs(all, p)) {
            continue;
        }
        ggml_tensor * share = build_share(ctx, p, slice->view_offs / all->nb[2]);
        for (ggml_tensor * node : nodes) {
            std::replace(std::begin(node->src), std::end(node->src), slice, share);
        }
        p.chain.push_back(slice);
        nodes.erase(std::remove_if(nodes.begin(), nodes.end(), [&p](const ggml_tensor * node) {
            return std::find(p.chain.begin(), p.chain.end(), node) != p.chain.end();
        }),
                nodes.end());
        return;
    }
}
