#include "row-product.h"

#include "access.h"
#include "blocks.h"
#include "kernels.h"
#include "packed.h"

#include "ggml-backend.h"
#include "ggml-cpp.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

static const int64_t N_BLOCK = 32; // inputs
static const int64_t GROUP = 4;    // blocks
static const int N_LANES = 16;

// The scalar kernel: what the others must compute, bit for bit.

static float half_to_float(const uint8_t * src) {
    ggml_fp16_t half;
    memcpy(&half, src, sizeof(half));
    return ggml_fp16_to_fp32(half);
}

// A stored block: a weight is d*q + m.
struct row_block {
    int32_t q[N_BLOCK];
    float d, m;
};

static row_block unpack(ggml_type type, const uint8_t * src) {
    row_block to;
    const bool has_m = type != GGML_TYPE_Q5_0, has_fifth = type != GGML_TYPE_Q4_1;
    to.d = half_to_float(src);
    to.m = has_m ? half_to_float(src + 2) : -16.0f * to.d;
    const uint8_t * qh = src + (has_m ? 4 : 2);
    const uint8_t * qs = qh + (has_fifth ? 4 : 0);
    uint32_t fifth = 0;
    if (has_fifth) {
        memcpy(&fifth, qh, sizeof(fifth));
    }
    for (int i = 0; i < N_BLOCK; ++i) {
        const int four = i < 16 ? qs[i] & 15 : qs[i - 16] >> 4;
        to.q[i] = four | (int) ((fifth >> i) & 1) << 4;
    }
    return to;
}

static float multiply_scalar(ggml_type type, const uint8_t * weights, int64_t n_blocks, const asl_rounded_row & row) {
    float sums[N_LANES] = {}, minima[N_LANES] = {};
    for (int64_t b = 0; b < n_blocks; ++b) {
        const row_block w = unpack(type, weights + b * ggml_type_size(type));
        const int8_t * low = row.q + b / GROUP * GROUP * N_BLOCK + b % GROUP * 16;
        const int8_t * high = low + GROUP * 16;
        for (int lane = 0; lane < 4; ++lane) { // four inputs of each half
            int32_t dot = 0;
            for (int i = lane * 4; i < lane * 4 + 4; ++i) {
                dot += w.q[i] * low[i] + w.q[i + 16] * high[i];
            }
            float & sum = sums[b % GROUP * 4 + lane];
            sum = std::fma((float) dot, w.d * row.d[b], sum);
        }
        minima[b % N_LANES] = std::fma(w.m, row.s[b], minima[b % N_LANES]);
    }
    for (int i = 0; i < N_LANES; ++i) {
        sums[i] += minima[i];
    }
    for (int half = N_LANES / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; ++i) {
            sums[i] += sums[i + half];
        }
    }
    return sums[0];
}

static const asl_row_kernel SCALAR = { "scalar", multiply_scalar };

const asl_row_kernel * asl_find_row_kernel(const char * name) {
    for (const asl_row_kernel * kernel : { &SCALAR, asl_row_kernel_avx512() }) {
        if (kernel && strcmp(kernel->name, name) == 0) {
            return kernel;
        }
    }
    return nullptr;
}

bool asl_has_row_product(ggml_type type) {
    switch (type) {
    case GGML_TYPE_Q4_1:
        return ggml_type_size(type) == sizeof(block_4_1);
    case GGML_TYPE_Q5_0:
        return ggml_type_size(type) == sizeof(block_5_0);
    case GGML_TYPE_Q5_1:
        return ggml_type_size(type) == sizeof(block_5_1);
    default:
        return false;
    }
}

namespace {

// Memory for the rounded rows of a product.
class rounded_rows {
public:
    void round(const float * x, size_t nb_row, int64_t n_in, int64_t n_rows) {
        const asl_packed_kernel & kernel = asl_packed_kernel_in_force();
        const asl_act_form form { 8, (int) N_BLOCK, n_in };
        const int64_t n_blocks = n_in / N_BLOCK;
        n_inputs = (n_blocks + GROUP - 1) / GROUP * GROUP * N_BLOCK;
        n_scales = (n_blocks + N_LANES - 1) / N_LANES * N_LANES;
        packed.resize(form.row_bytes());
        q.assign(n_rows * n_inputs, 0);
        scales.assign(n_rows * 2 * n_scales, 0.0f);
        for (int64_t r = 0; r < n_rows; ++r) {
            kernel.quantise(form, (const float *) ((const char *) x + r * nb_row), packed.data());
            for (int64_t b = 0; b < n_blocks; ++b) {
                int8_t * low = q.data() + r * n_inputs + b / GROUP * GROUP * N_BLOCK + b % GROUP * 16;
                memcpy(low, packed.data() + b * N_BLOCK, 16);
                memcpy(low + GROUP * 16, packed.data() + b * N_BLOCK + 16, 16);
            }
            memcpy(scales.data() + r * 2 * n_scales, packed.data() + form.d_offset(), n_blocks * sizeof(float));
            memcpy(scales.data() + (r * 2 + 1) * n_scales, packed.data() + form.s_offset(), n_blocks * sizeof(float));
        }
    }

    asl_rounded_row get(int64_t r) const {
        return { q.data() + r * n_inputs, scales.data() + r * 2 * n_scales, scales.data() + (r * 2 + 1) * n_scales };
    }

private:
    int64_t n_inputs = 0; // of a row, and numbers of d and of s
    int64_t n_scales = 0;
    std::vector<uint8_t> packed;
    std::vector<int8_t> q;
    std::vector<float> scales;
};

} // namespace

// Outputs begin..end-1 of all rows.
static void multiply_rows(const asl_row_kernel & kernel, ggml_type type, const uint8_t * weights, int64_t n_in, int64_t begin, int64_t end,
        const rounded_rows & rows, int64_t n_rows, float * y, int64_t ldy) {
    const size_t n_row = ggml_row_size(type, n_in);
    for (int64_t o = begin; o < end; ++o) {
        for (int64_t r = 0; r < n_rows; ++r) {
            y[r * ldy + o] = kernel.multiply(type, weights + o * n_row, n_in / N_BLOCK, rows.get(r));
        }
    }
}

bool asl_compute_rows(const asl_row_kernel & kernel, ggml_type type, const uint8_t * weights, int64_t n_out, int64_t n_in,
        const float * x, int64_t n_rows, float * y) {
    if (!asl_has_row_product(type) || n_in < 1 || n_in % N_BLOCK != 0 || n_out < 1 || n_rows < 1) {
        return false;
    }
    rounded_rows rows;
    rows.round(x, n_in * sizeof(float), n_in, n_rows);
    multiply_rows(kernel, type, weights, n_in, 0, n_out, rows, n_rows, y, n_out);
    return true;
}

// Nodes of a graph

// Of a node that was a product of matrices and still reads what one does.
static void compute_node(ggml_tensor * dst, int ith, int nth, void *) {
    static thread_local rounded_rows rows;
    const ggml_tensor * w = dst->src[0];
    const ggml_tensor * x = dst->src[1];
    const int64_t n = w->ne[1];
    rows.round((const float *) x->data, x->nb[1], x->ne[0], x->ne[1]);
    multiply_rows(*asl_row_kernel_avx512(), w->type, (const uint8_t *) w->data, w->ne[0], n * ith / nth, n * (ith + 1) / nth, rows,
            x->ne[1], (float *) dst->data, dst->ne[0]);
}

static bool is_row_product(const ggml_tensor * node) {
    const ggml_tensor * w = node->src[0];
    const ggml_tensor * x = node->src[1];
    return node->op == GGML_OP_MUL_MAT && asl_has_row_product(w->type) && w->op == GGML_OP_NONE && w->view_src == nullptr &&
           w->buffer && ggml_backend_buffer_is_host(w->buffer) &&
           ggml_backend_buffer_get_usage(w->buffer) == GGML_BACKEND_BUFFER_USAGE_WEIGHTS && ggml_is_contiguous(w) && w->ne[2] == 1 &&
           w->ne[3] == 1 && x->type == GGML_TYPE_F32 && x->nb[0] == sizeof(float) && x->ne[1] < ASL_PACK_TOKENS_MIN && x->ne[2] == 1 &&
           x->ne[3] == 1 && node->type == GGML_TYPE_F32 && ggml_is_contiguous(node);
}

// What makes a node a custom one.
struct custom_form {
    ggml_op op;
    int32_t params[GGML_MAX_OP_PARAMS / sizeof(int32_t)];
};

static custom_form make_custom(ggml_custom_op_t compute) {
    ggml_context_ptr ctx { ggml_init({ ggml_tensor_overhead(), nullptr, true }) };
    const ggml_tensor * t = ggml_custom_4d(ctx.get(), GGML_TYPE_F32, 1, 1, 1, 1, nullptr, 0, compute, GGML_N_TASKS_MAX, nullptr);
    custom_form form;
    form.op = t->op;
    memcpy(form.params, t->op_params, sizeof(form.params));
    return form;
}

// The nodes stay where they are, and what they read, so that the graph can be computed again.
static void edit_graph(ggml_cgraph * gf) {
    static const custom_form form = make_custom(compute_node);
    for (int i = 0; i < ggml_graph_n_nodes(gf); ++i) {
        ggml_tensor * node = ggml_graph_node(gf, i);
        if (is_row_product(node)) {
            node->op = form.op;
            memcpy(node->op_params, form.params, sizeof(form.params));
        }
    }
}

void asl_set_row_products(llama_context & ctx, asl_dequant mode) {
    const bool rounds = mode != ASL_DEQUANT_OFF && mode != ASL_DEQUANT_ALL && asl_act_bits(mode) == 8;
    const bool pays = rounds && asl_row_kernel_avx512() && ctx.get_model().devices.empty();
    auto & edit = asl_context_access::edit(ctx);
    if (edit != (pays ? edit_graph : nullptr)) {
        ctx.synchronize();
        edit = pays ? edit_graph : nullptr;
        asl_context_access::forget_graph(ctx);
    }
}
