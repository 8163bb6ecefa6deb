// C functions of asl.h about kernels: what this processor runs, how fast, and each kernel by itself for tests.

#include "asl.h"

#include "attend.h"
#include "error.h"
#include "experts.h"
#include "kernels.h"
#include "packed.h"
#include "peak.h"
#include "recurrent.h"
#include "row-product.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

const char * asl_kernel_rule(void) {
    return asl_kernel_rule_line().c_str();
}

const char * asl_kernel_type_name(int32_t type) {
    return asl_is_weight_type(type) ? ggml_type_name((ggml_type) type) : nullptr;
}

bool asl_kernel_expands(int32_t type, char * reason, size_t n_reason) {
    if (!asl_is_weight_type(type)) {
        asl_copy_message(reason, n_reason, "no type of model weights");
        return false;
    }
    asl_copy_message(reason, n_reason, asl_kernel_reason((ggml_type) type).c_str());
    asl_weight_use use;
    use.type = (ggml_type) type;
    use.can_pack = true;
    use.n_tokens = INT64_MAX;
    return asl_choose_held(ASL_DEQUANT_AUTO, use) != asl_held::stored;
}

bool asl_kernel_repacked(int32_t type, int32_t * rows, int32_t * chunk) {
    const asl_repacked_form form = asl_is_weight_type(type) ? asl_repacked_here((ggml_type) type) : asl_repacked_form();
    *rows = form.rows;
    *chunk = form.chunk;
    return form.rows > 0;
}

bool asl_kernel_measure(int32_t type, int32_t held, int32_t n_out, int32_t n_tokens, int32_t n_in, int32_t n_threads,
        float * gflops, float * pack_ns, char * buffer, size_t n_buffer) {
    try {
        const asl_measured m = asl_measure_product({ (ggml_type) type, held, n_out, n_tokens, n_in, n_threads });
        *gflops = (float) m.gflops;
        *pack_ns = (float) m.pack_ns;
        asl_copy_message(buffer, n_buffer, m.gflops > 0 ? m.buffer_name.c_str() : "not held so");
        return m.gflops > 0;
    } catch (const std::exception & err) {
        asl_copy_message(buffer, n_buffer, err.what());
        return false;
    }
}

float asl_kernel_peak(int32_t n_bits) {
    return (float) asl_measure_peak(n_bits);
}

const char * asl_packed_kernel_name(void) {
    return asl_packed_kernel_in_force().name;
}

bool asl_packed_product(const char * kernel, int32_t type, const void * weights, int32_t rows, int32_t chunk, int32_t n_out,
        int32_t n_in, int32_t act_bits, const float * x, int32_t n_tokens, float * y) {
    const asl_packed_kernel * k = asl_find_packed_kernel(kernel);
    if (!k || !asl_is_weight_type(type) || (act_bits != 8 && act_bits != 16)) {
        return false;
    }
    return asl_compute_packed(*k, (ggml_type) type, weights, { rows, chunk }, n_out, n_in, act_bits, x, n_tokens, y);
}

bool asl_packed_experts(const char * kernel, int32_t type, const void * weights, int32_t rows, int32_t chunk, int32_t n_expert,
        int32_t n_out, int32_t n_in, int32_t act_bits, const int32_t * ids, int32_t n_used, const float * x, int32_t n_acts,
        int32_t n_tokens, int32_t n_threads, float * y) {
    const asl_packed_kernel * k = asl_find_packed_kernel(kernel);
    if (!k || !asl_is_weight_type(type) || (act_bits != 8 && act_bits != 16) || n_used < 1 || n_threads < 1 ||
            (n_acts != 1 && n_acts != n_used) || std::any_of(ids, ids + n_tokens * n_used, [&](int32_t id) { return id < 0 || id >= n_expert; })) {
        return false;
    }
    asl_expert_product p;
    p.source = { (ggml_type) type, (const uint8_t *) weights, { rows, chunk } };
    p.n_expert = n_expert;
    p.n_tokens = n_tokens;
    p.n_used = n_used;
    p.ids = (const char *) ids;
    p.nb_used = sizeof(int32_t);
    p.nb_token = n_used * sizeof(int32_t);
    p.n_acts = n_acts;
    p.y = y;
    return asl_compute_experts(*k, p, n_out, n_in, act_bits, x, n_threads);
}

bool asl_row_product(const char * kernel, int32_t type, const void * weights, int32_t n_out, int32_t n_in, const float * x,
        int32_t n_rows, float * y) {
    const asl_row_kernel * k = asl_find_row_kernel(kernel);
    return k && asl_is_weight_type(type) &&
           asl_compute_rows(*k, (ggml_type) type, (const uint8_t *) weights, n_out, n_in, x, n_rows, y);
}

void asl_context_set_dequant(llama_context * ctx, asl_dequant mode) {
    asl_set_row_products(*ctx, mode);
}

const char * asl_attention_kernel_name(void) {
    return asl_attend_kernel_in_force().name;
}

// K or V, rows of all KV heads; or, transposed, cells of each element.
static asl_head_rows rows_of(const asl_attention_case & c, int32_t type, const void * data, int64_t n_embd, bool transposed) {
    const int64_t n_cells = c.n_past + c.n_tokens;
    asl_head_rows rows;
    rows.type = (ggml_type) type;
    rows.data = (const char *) data;
    rows.n_embd = n_embd;
    rows.transposed = transposed;
    rows.nb_embd = transposed ? ggml_row_size(rows.type, n_cells) : 0;
    rows.nb_cell = transposed ? ggml_type_size(rows.type) : ggml_row_size(rows.type, n_embd) * c.n_head_kv;
    rows.nb_head = transposed ? rows.nb_embd * n_embd : ggml_row_size(rows.type, n_embd);
    return rows;
}

bool asl_attention_compute(const char * kernel, const asl_attention_case * c, float * y, float * scores) {
    const asl_attend_kernel * k = asl_find_attend_kernel(kernel);
    if (!k || (c->is_rounded && !k->attend_rounded) || !asl_is_weight_type(c->type_k) || !asl_is_weight_type(c->type_v) || c->n_tokens < 1 || c->n_past < 0 || c->n_head < 1 ||
            c->n_head_kv < 1 || c->n_head % c->n_head_kv != 0 || c->n_embd_k < 1 || c->n_embd_v < 1 || c->n_threads < 1 ||
            c->n_queries < 0 || c->n_queries > c->n_tokens || c->n_embd_k % ggml_blck_size((ggml_type) c->type_k) != 0 ||
            c->n_embd_v % ggml_blck_size((ggml_type) c->type_v) != 0) {
        return false;
    }
    std::vector<float> softmax((size_t) c->n_queries * c->n_head * 2);
    asl_attend a;
    a.n_tokens = c->n_tokens;
    a.n_past = c->n_past;
    a.n_head = c->n_head;
    a.n_head_kv = c->n_head_kv;
    a.n_swa = c->n_swa;
    a.q = (const char *) c->q;
    a.nb_q_head = c->n_embd_k * sizeof(float);
    a.nb_q_token = c->n_head * a.nb_q_head;
    a.k = rows_of(*c, c->type_k, c->k, c->n_embd_k, false);
    a.v = rows_of(*c, c->type_v, c->v, c->n_embd_v, c->v_transposed);
    a.scale = c->scale;
    a.cap = c->cap;
    a.cap_scale = c->cap_scale;
    a.sinks = c->sinks;
    a.mask = (const char *) c->mask;
    a.nb_mask = a.n_keys() * sizeof(float);
    a.is_rounded = c->is_rounded;
    a.y = y;
    a.n_queries = c->n_queries;
    a.softmax = softmax.data();
    a.weights = c->weights;
    for (int i = 0; i < c->n_threads; ++i) {
        asl_attend_part(*k, a, i, c->n_threads);
    }
    for (int i = 0; i < c->n_threads && c->n_queries > 0; ++i) {
        asl_score_part(*k, a, scores, a.n_keys(), i, c->n_threads);
    }
    return true;
}

bool asl_short_convolution(const char * kernel, const float * past, const float * x, const float * w, int32_t n_channels,
        int32_t n_tokens, int32_t n_taps, int32_t n_threads, float * joined, float * y) {
    const asl_recurrent_kernel * k = asl_find_recurrent_kernel(kernel);
    if (!k || n_channels < 1 || n_tokens < 1 || n_taps < 1 || n_taps > ASL_TAPS_MAX || n_threads < 1) {
        return false;
    }
    for (int i = 0; i < n_threads; ++i) {
        asl_join_part(*k, { n_channels, n_tokens, n_taps - 1, past, x, n_channels, joined }, i, n_threads);
    }
    for (int i = 0; i < n_threads; ++i) {
        asl_convolve_part(*k, { n_channels, n_tokens, n_taps, joined, w, y }, i, n_threads);
    }
    return true;
}

bool asl_delta_nets(const char * kernel, const float * q, const float * k, const float * v, const float * g,
        const float * beta, const float * state, int32_t n, int32_t n_head, int32_t n_head_k, int32_t n_g, int32_t n_tokens,
        int32_t n_threads, float * new_state, float * y) {
    const asl_recurrent_kernel * found = asl_find_recurrent_kernel(kernel);
    if (!found || n < 1 || n % ASL_DELTA_BLOCK != 0 || n > ASL_DELTA_MAX || n_head < 1 || n_head_k < 1 || (n_g != 1 && n_g != n) ||
            n_tokens < 1 || n_threads < 1) {
        return false;
    }
    auto get = [&](int64_t head) {
        asl_delta_net net;
        net.n = n;
        net.n_tokens = n_tokens;
        net.q = q + head % n_head_k * n;
        net.k = k + head % n_head_k * n;
        net.v = v + head * n;
        net.g = g + head * n_g;
        net.beta = beta + head;
        net.ldq = net.ldk = (int64_t) n_head_k * n;
        net.ldv = net.ldy = (int64_t) n_head * n;
        net.ldg = (int64_t) n_head * n_g;
        net.ldbeta = n_head;
        net.g_of_each = n_g == n;
        net.state = state + head * n * n;
        net.new_state = new_state + head * n * n;
        net.y = y + head * n;
        return net;
    };
    for (int i = 0; i < n_threads; ++i) {
        asl_delta_part(*found, n_head, n, get, i, n_threads);
    }
    return true;
}
