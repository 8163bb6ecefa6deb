#include "attend-node.h"

#include "graph.h"

#include "ggml-backend.h"

#include <algorithm>
#include <cstring>

// elements of a head: what is worked on at once should stay in the second-level cache
static const int64_t N_EMBD_MAX = 1024;

std::string asl_attention_use::describe() const {
    if (n_own == 0) {
        return reason.empty() ? "" : "llama.cpp's: " + reason;
    }
    std::string text = std::string("own, ") + asl_attend_kernel_in_force().name + (is_rounded ? ", integers of 16 bits" : "");
    return n_stock == 0 ? text : text + "; in " + std::to_string(n_stock) + " layers llama.cpp's: " + reason;
}

// Before K and V of type F32 were rounded to F16 for llama.cpp's flash attention, or brought into another order.
static ggml_tensor * take_off_copy(ggml_tensor * t, std::vector<const ggml_tensor *> & replaced) {
    const bool is_copy = (t->op == GGML_OP_CPY && t->src[0]->type == GGML_TYPE_F32) || t->op == GGML_OP_CONT;
    if (!is_copy || !ggml_are_same_shape(t, t->src[0])) {
        return t;
    }
    replaced.push_back(t);
    return t->src[0];
}

bool asl_attend_node::find_flash(const asl_attention & att) {
    out = att.node;
    read = { att.q, take_off_copy(att.node->src[1], replaced), take_off_copy(att.node->src[2], replaced) };
    return true;
}

// The softmax, the products on both sides of it, and the copy that puts the heads of a token side by side.
bool asl_attend_node::find_soft_max(const asl_attention & att, const std::vector<ggml_tensor *> & nodes) {
    auto find_reader = [&](const ggml_tensor * t, ggml_op op, int i_src) -> ggml_tensor * {
        for (ggml_tensor * node : nodes) {
            if (node->op == op && node->src[i_src] == t) {
                return node;
            }
        }
        return nullptr;
    };
    ggml_tensor * kqv = find_reader(att.node, GGML_OP_MUL_MAT, 1);
    ggml_tensor * heads = kqv ? find_reader(kqv, GGML_OP_PERMUTE, 0) : nullptr;
    out = heads ? find_reader(heads, GGML_OP_CONT, 0) : nullptr;
    if (!out || out->ne[0] != kqv->ne[0] * kqv->ne[2] || out->ne[1] != att.q->ne[1] || heads->ne[1] != kqv->ne[2]) {
        return false;
    }
    const ggml_tensor * kq = att.node;
    do {
        replaced.push_back(kq);
        kq = kq->src[0];
    } while (kq->op != GGML_OP_MUL_MAT);
    replaced.insert(replaced.end(), { kq, kqv, heads });
    // V is [cells, n_embd, n_head_kv] here
    read = { att.q, kq->src[0], take_off_copy(kqv->src[0], replaced) };
    return true;
}

// Of a view [n_embd, cells, n_head_kv], or [cells, n_embd, n_head_kv].
static asl_head_rows describe_rows(const ggml_tensor * t, bool cells_first) {
    asl_head_rows rows;
    rows.type = t->type;
    rows.n_embd = t->ne[cells_first];
    rows.nb_cell = t->nb[!cells_first];
    rows.nb_embd = t->nb[cells_first];
    rows.nb_head = t->nb[2];
    rows.transposed = rows.nb_embd != ggml_type_size(t->type);
    return rows;
}

static bool can_read(const asl_head_rows & rows) {
    const bool is_float = rows.type == GGML_TYPE_F16 || rows.type == GGML_TYPE_F32;
    const bool has_rows = rows.transposed ? is_float && rows.nb_cell == ggml_type_size(rows.type)
                                          : rows.n_embd % ggml_blck_size(rows.type) == 0;
    return has_rows && rows.n_embd <= N_EMBD_MAX && (rows.type == GGML_TYPE_F32 || ggml_get_type_traits(rows.type)->to_float);
}

std::string asl_attend_node::check(const std::vector<ggml_tensor *> & nodes, int64_t n_past) const {
    const ggml_tensor *q = read[0], *k = read[1], *v = read[2];
    const int64_t n_keys = n_past + q->ne[1];
    if (q->nb[0] != sizeof(float) || out->type != GGML_TYPE_F32 || !ggml_is_contiguous(out) || k->ne[2] != v->ne[2] ||
            k->ne[1] < n_keys || ggml_nelements(out) != a.v.n_embd * q->ne[1] * q->ne[2]) {
        return "its nodes have an unexpected form";
    }
    if (!can_read(a.k) || a.k.transposed || !can_read(a.v)) {
        return std::string("K/V of ") + std::to_string(a.k.n_embd) + " and " + std::to_string(a.v.n_embd) + " elements a head, " +
               ggml_type_name(a.k.type) + " and " + ggml_type_name(a.v.type);
    }
    auto is_replaced = [this](const ggml_tensor * t) { return std::find(replaced.begin(), replaced.end(), t) != replaced.end(); };
    for (const ggml_tensor * node : nodes) {
        const bool reads = std::any_of(std::begin(node->src), std::end(node->src), is_replaced) || is_replaced(node->view_src);
        if (reads && node != out && !is_replaced(node)) {
            return "another node reads what it computes on the way";
        }
    }
    return "";
}

std::string asl_attend_node::find(const asl_attention & att, const std::vector<ggml_tensor *> & nodes, int64_t n_past, int64_t n_swa, bool has_own_mask) {
    kernel = &asl_attend_kernel_in_force();
    if (kernel == asl_find_attend_kernel("scalar")) {
        return "no kernel for this processor";
    }
    if (att.max_bias != 0.0f) {
        return "it has a bias of distances (ALiBi)";
    }
    const bool is_flash = att.node->op == GGML_OP_FLASH_ATTN_EXT;
    if (!(is_flash ? find_flash(att) : find_soft_max(att, nodes))) {
        return "its nodes have an unexpected form";
    }
    a.n_tokens = att.q->ne[1];
    a.n_past = n_past;
    a.n_head = att.q->ne[2];
    a.n_head_kv = att.n_head_kv;
    a.n_swa = n_swa;
    a.k = describe_rows(read[1], false);
    a.v = describe_rows(read[2], !is_flash);
    a.scale = att.scale;
    a.cap = att.cap;
    a.cap_scale = att.cap_scale;
    has_mask = has_own_mask;
    if (has_mask) {
        read.push_back(att.mask);
        a.mask_type = att.mask->type;
    }
    if (att.sinks) {
        read.push_back(att.sinks);
    }
    return check(nodes, n_past);
}

void asl_attend_node::replace(std::vector<ggml_tensor *> & nodes, ggml_context * ctx) {
    // the node itself changes, so that whatever reads it goes on to
    const ggml_tensor * custom = ggml_custom_4d(ctx, GGML_TYPE_F32, out->ne[0], out->ne[1], out->ne[2], out->ne[3],
            read.data(), (int) read.size(), attend, GGML_N_TASKS_MAX, this);
    out->op = custom->op;
    memcpy(out->op_params, custom->op_params, sizeof(out->op_params));
    memcpy(out->src, custom->src, sizeof(out->src));
    nodes.erase(std::remove_if(nodes.begin(), nodes.end(), [this](const ggml_tensor * node) {
        return std::find(replaced.begin(), replaced.end(), node) != replaced.end();
    }),
            nodes.end());
}

ggml_tensor * asl_attend_node::build_scores(ggml_context * ctx, int64_t n_queries, const float * weights) {
    a.n_queries = n_queries;
    a.weights = weights;
    softmax.resize(n_queries * a.n_head * 2);
    std::vector<ggml_tensor *> args = read;
    args.push_back(out); // computed before: softmax comes from there
    return ggml_custom_4d(ctx, GGML_TYPE_F32, a.n_keys(), a.n_head_kv, 1, 1, args.data(), (int) args.size(), score, GGML_N_TASKS_MAX, this);
}

// With the addresses that the graph's tensors have now.
asl_attend asl_attend_node::bind(const ggml_tensor * dst) const {
    asl_attend result = a;
    const ggml_tensor * q = dst->src[0];
    result.q = (const char *) q->data;
    result.nb_q_token = q->nb[1];
    result.nb_q_head = q->nb[2];
    result.k.data = (const char *) dst->src[1]->data;
    result.v.data = (const char *) dst->src[2]->data;
    if (has_mask) {
        result.mask = (const char *) dst->src[3]->data;
        result.nb_mask = dst->src[3]->nb[1];
    }
    const size_t i_sinks = 3 + has_mask;
    result.sinks = read.size() > i_sinks ? (const float *) dst->src[i_sinks]->data : nullptr;
    result.softmax = softmax.empty() ? nullptr : const_cast<float *>(softmax.data());
    return result;
}

void asl_attend_node::attend(ggml_tensor * dst, int ith, int nth, void * userdata) {
    const asl_attend_node & node = *(const asl_attend_node *) userdata;
    asl_attend a = node.bind(dst);
    a.y = (float *) dst->data;
    asl_attend_part(*node.kernel, a, ith, nth);
}

void asl_attend_node::score(ggml_tensor * dst, int ith, int nth, void * userdata) {
    const asl_attend_node & node = *(const asl_attend_node *) userdata;
    asl_score_part(*node.kernel, node.bind(dst), (float *) dst->data, dst->ne[0], ith, nth);
}
