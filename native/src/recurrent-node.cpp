#include "recurrent-node.h"

#include "recurrent.h"

#include <algorithm>
#include <cstring>

static bool is_f32(const ggml_tensor * t) { return t->type == GGML_TYPE_F32; }

// Rows of numbers that follow each other, in a chunk of one sequence.
static bool has_rows(const ggml_tensor * t) { return is_f32(t) && t->nb[0] == sizeof(float) && t->ne[3] == 1; }

static int64_t floats(size_t n_bytes) { return (int64_t) (n_bytes / sizeof(float)); }

// Short convolutions: of inputs [taps - 1 + n_tokens, n_channels], and weights [taps, n_channels].

static bool can_convolve(const ggml_tensor * node) {
    const ggml_tensor *x = node->src[0], *w = node->src[1];
    return is_f32(x) && is_f32(w) && is_f32(node) && ggml_is_contiguous(x) && ggml_is_contiguous(w) && ggml_is_contiguous(node) &&
           node->ne[2] == 1 && w->ne[0] <= ASL_TAPS_MAX;
}

static void convolve(ggml_tensor * dst, int ith, int nth, void *) {
    asl_short_conv conv;
    conv.n_channels = dst->ne[0];
    conv.n_tokens = dst->ne[1];
    conv.n_taps = dst->src[1]->ne[0];
    conv.x = (const float *) dst->src[0]->data;
    conv.w = (const float *) dst->src[1]->data;
    conv.y = (float *) dst->data;
    asl_convolve_part(asl_recurrent_kernel_in_force(), conv, ith, nth);
}

// What a state remembers of the inputs, [taps - 1, n_channels], and the chunk's, transposed: llama.cpp joins them number by number.

static bool can_join(const ggml_tensor * node) {
    const ggml_tensor *past = node->src[0], *x = node->src[1];
    return node->op_params[0] == 0 && is_f32(past) && is_f32(x) && is_f32(node) && ggml_is_contiguous(past) && ggml_is_contiguous(node) &&
           node->ne[2] == 1 && node->ne[3] == 1 && x->nb[1] == sizeof(float) && x->nb[0] >= x->ne[1] * sizeof(float);
}

static void join(ggml_tensor * dst, int ith, int nth, void *) {
    const ggml_tensor *past = dst->src[0], *x = dst->src[1];
    asl_joined_inputs inputs;
    inputs.n_channels = dst->ne[1];
    inputs.n_tokens = x->ne[0];
    inputs.n_past = past->ne[0];
    inputs.past = (const float *) past->data;
    inputs.x = (const float *) x->data;
    inputs.ldx = floats(x->nb[0]);
    inputs.y = (float *) dst->data;
    asl_join_part(asl_recurrent_kernel_in_force(), inputs, ith, nth);
}

// Gated delta nets: q, k, v [n, n_head, n_tokens], g [1 or n, n_head, n_tokens], beta [1, n_head, n_tokens], state [n, n, n_head].
// Their output is that of all tokens, and behind it the states.

static bool can_run_delta(const ggml_tensor * node) {
    const ggml_tensor *q = node->src[0], *k = node->src[1], *v = node->src[2];
    const int64_t n = v->ne[0];
    return node->op_params[0] == 1 && has_rows(q) && has_rows(k) && has_rows(v) && is_f32(node) && n % ASL_DELTA_BLOCK == 0 && n <= ASL_DELTA_MAX &&
           q->ne[0] == n && k->ne[0] == n &&
           std::all_of(node->src + 3, node->src + 6, [](const ggml_tensor * t) { return is_f32(t) && ggml_is_contiguous(t); });
}

static void run_delta(ggml_tensor * dst, int ith, int nth, void *) {
    const ggml_tensor *q = dst->src[0], *k = dst->src[1], *v = dst->src[2], *g = dst->src[3], *beta = dst->src[4], *state = dst->src[5];
    const int64_t n = v->ne[0], n_head = v->ne[1], n_tokens = v->ne[2];
    auto row = [](const ggml_tensor * t, int64_t head) { return (const float *) ((const char *) t->data + head % t->ne[1] * t->nb[1]); };
    auto get = [&](int64_t head) {
        asl_delta_net net;
        net.n = n;
        net.n_tokens = n_tokens;
        net.q = row(q, head);
        net.k = row(k, head);
        net.v = row(v, head);
        net.g = row(g, head);
        net.beta = row(beta, head);
        net.ldq = floats(q->nb[2]);
        net.ldk = floats(k->nb[2]);
        net.ldv = floats(v->nb[2]);
        net.ldg = floats(g->nb[2]);
        net.ldbeta = floats(beta->nb[2]);
        net.g_of_each = g->ne[0] == n;
        net.state = (const float *) state->data + head * n * n;
        net.y = (float *) dst->data + head * n;
        net.ldy = n * n_head;
        net.new_state = (float *) dst->data + n_tokens * n_head * n + head * n * n;
        return net;
    };
    asl_delta_part(asl_recurrent_kernel_in_force(), n_head, n, get, ith, nth);
}

static ggml_custom_op_t find_function(const ggml_tensor * node) {
    switch (node->op) {
    case GGML_OP_SSM_CONV:
        return can_convolve(node) ? convolve : nullptr;
    case GGML_OP_CONCAT:
        return can_join(node) ? join : nullptr;
    case GGML_OP_GATED_DELTA_NET:
        return can_run_delta(node) ? run_delta : nullptr;
    default:
        return nullptr;
    }
}

size_t asl_count_recurrent(ggml_cgraph * gf, int first, int last) {
    size_t n = 0;
    for (int i = first; i <= last; ++i) {
        n += find_function(ggml_graph_node(gf, i)) != nullptr;
    }
    return n;
}

void asl_replace_recurrent(const std::vector<ggml_tensor *> & nodes, ggml_context * ctx) {
    if (&asl_recurrent_kernel_in_force() == asl_find_recurrent_kernel("scalar")) {
        return; // llama.cpp's are faster
    }
    for (ggml_tensor * node : nodes) {
        ggml_custom_op_t function = find_function(node);
        if (!function) {
            continue;
        }
        const int n_read = (int) (std::find(std::begin(node->src), std::end(node->src), nullptr) - std::begin(node->src));
        // the node itself changes, so that whatever reads it goes on to
        const ggml_tensor * custom = ggml_custom_4d(ctx, GGML_TYPE_F32, node->ne[0], node->ne[1], node->ne[2], node->ne[3], node->src,
                n_read, function, GGML_N_TASKS_MAX, nullptr);
        node->op = custom->op;
        memcpy(node->op_params, custom->op_params, sizeof(node->op_params));
    }
}
