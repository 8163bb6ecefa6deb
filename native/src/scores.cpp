// The window's attention scores as graph nodes.

#include "graph.h"

#include "llama-graph.h"

#include "ggml-backend.h"

#include <algorithm>
#include <cmath>

// queries of a KV head whose attention is computed at once: with 512 of them and 128K tokens, the logits of a
// group of 4 heads would take 1 GiB
static const int64_t N_QUERY_BLOCK = 128;

// nodes of build_scores, with room
static const size_t N_SCORE_NODES = 24;

size_t asl_layer_cutter::n_score_nodes(int64_t n_head_kv) const {
    return N_SCORE_NODES * n_head_kv * (1 + chunk.n_queries / N_QUERY_BLOCK);
}

// Data of a graph input that llama.cpp does not know.
class asl_input_weights : public llm_graph_input_i {
public:
    asl_input_weights(ggml_tensor * tensor, std::vector<float> data) : tensor(tensor), data(std::move(data)) {}

    void set_input(const llama_ubatch *) override {
        ggml_backend_tensor_set(tensor, data.data(), 0, ggml_nbytes(tensor));
    }

private:
    ggml_tensor * tensor;
    const std::vector<float> data;
};

// F32 [1, n_kv]: attention of queries [begin, end) of the window, summed over them and over the heads of the group
ggml_tensor * asl_layer_cutter::build_scores(const asl_attention & att, ggml_tensor * weights, ggml_tensor * slopes, int64_t head_kv, int64_t begin, int64_t end) {
    ggml_context * c = ctx_part.get();

    const int64_t n_group = att.q->ne[2] / att.n_head_kv;
    const int64_t n_kv = att.mask->ne[0];
    const int64_t n_query = end - begin;
    const int64_t i_query = att.q->ne[1] - chunk.n_queries + begin; // in the chunk

    ggml_tensor * k = ggml_view_2d(c, att.k, att.q->ne[0], n_kv, att.k->nb[1], head_kv * ggml_row_size(att.k->type, att.q->ne[0]));
    // F32, so that the products do not round the queries to the type of the cache
    k = att.k->type == GGML_TYPE_F32 ? k : ggml_cast(c, k, GGML_TYPE_F32);
    ggml_tensor * q = ggml_view_3d(c, queries, att.q->ne[0], n_query, n_group, queries->nb[1], queries->nb[2], head_kv * n_group * queries->nb[2] + begin * queries->nb[1]);

    ggml_tensor * a = ggml_mul_mat(c, k, q); // [n_kv, n_query, n_group]
    ggml_prec_set_acc(a, GGML_PREC_F32);
    if (att.cap != 0.0f) {
        a = ggml_scale(c, ggml_tanh(c, ggml_scale(c, a, att.cap_scale)), att.cap);
    }
    ggml_tensor * mask_queries = ggml_cont(c, ggml_view_2d(c, att.mask, n_kv, n_query, att.mask->nb[1], i_query * att.mask->nb[1]));
    if (slopes) {
        ggml_tensor * own = ggml_view_3d(c, slopes, 1, 1, n_group, slopes->nb[1], slopes->nb[2], head_kv * n_group * slopes->nb[2]);
        mask_queries = ggml_repeat_4d(c, ggml_cast(c, mask_queries, GGML_TYPE_F32), n_kv, n_query, n_group, 1);
        mask_queries = ggml_mul(c, mask_queries, own);
    }
    a = ggml_soft_max_ext(c, a, mask_queries, att.scale, 0.0f);
    if (att.sinks) {
        ggml_soft_max_add_sinks(a, ggml_view_1d(c, att.sinks, n_group, head_kv * n_group * att.sinks->nb[0]));
    }
    if (weights) {
        a = ggml_mul(c, a, ggml_view_2d(c, weights, 1, n_query, weights->nb[1], begin * weights->nb[1]));
    }
    a = ggml_reshape_2d(c, a, n_kv, n_query * n_group);
    return ggml_sum_rows(c, ggml_cont(c, ggml_transpose(c, a)));
}

ggml_tensor * asl_layer_cutter::build_input(llm_graph_result & res, std::vector<float> data, int64_t ne0, int64_t ne1, int64_t ne2) {
    ggml_tensor * t = ggml_new_tensor_3d(ctx_part.get(), GGML_TYPE_F32, ne0, ne1, ne2);
    ggml_set_input(t);
    res.add_input(std::make_unique<asl_input_weights>(t, std::move(data)));
    return t;
}

// F32 [1, n_query]; NULL for 1
ggml_tensor * asl_layer_cutter::build_weights(llm_graph_result & res) {
    const float * w = chunk.weights;
    return w ? build_input(res, std::vector<float>(w, w + chunk.n_queries), 1, chunk.n_queries, 1) : nullptr;
}

// F32 [1, 1, n_head], of ALiBi, as ggml_soft_max_ext computes them; NULL for none
ggml_tensor * asl_layer_cutter::build_slopes(llm_graph_result & res, const asl_attention & att) {
    if (att.max_bias == 0.0f) {
        return nullptr;
    }
    const int64_t n_head = att.q->ne[2];
    const int64_t n_log2 = 1 << (int64_t) floor(log2(n_head));
    std::vector<float> slopes;
    for (int64_t h = 0; h < n_head; ++h) {
        const float base = powf(2.0f, -(h < n_log2 ? att.max_bias : att.max_bias / 2.0f) / n_log2);
        slopes.push_back(powf(base, h < n_log2 ? h + 1 : 2 * (h - n_log2) + 1));
    }
    return build_input(res, std::move(slopes), 1, 1, n_head);
}

// F32 [1, n_kv]: what the indexer's scores of the window say of attention, by their softmax, summed over the queries
ggml_tensor * asl_layer_cutter::build_indexer_scores(ggml_tensor * of_indexer, ggml_tensor * weights) {
    ggml_context * c = ctx_part.get();
    const int64_t i_query = of_indexer->ne[1] - chunk.n_queries;
    ggml_tensor * a = ggml_cont(c, ggml_view_2d(c, of_indexer, of_indexer->ne[0], chunk.n_queries, of_indexer->nb[1], i_query * of_indexer->nb[1]));
    a = ggml_soft_max(c, a);
    a = weights ? ggml_mul(c, a, weights) : a;
    return ggml_sum_rows(c, ggml_cont(c, ggml_transpose(c, a)));
}

void asl_layer_cutter::add_scores(llm_graph_result & res, ggml_cgraph * part) {
    const auto found = own.find(range.last);
    const asl_attention att = found == own.end() ? asl_find_attention(*index, range.last) : scored;
    ggml_context * c = ctx_part.get();

    const int64_t n_query = chunk.n_queries;
    const int64_t i_query = att.q->ne[1] - n_query;

    // F32 [n_embd_head, n_query, n_head]
    queries = ggml_cont(c, ggml_view_3d(c, att.q, att.q->ne[0], n_query, att.q->ne[2], att.q->nb[1], att.q->nb[2], i_query * att.q->nb[1]));

    if (chunk.by_indexer) {
        scores.push_back(build_indexer_scores(asl_find_indexer(*index, range.last), build_weights(res)));
    } else if (found != own.end()) {
        scores.push_back(found->second->build_scores(c, n_query, chunk.weights));
    } else {
        ggml_tensor * weights = build_weights(res);
        ggml_tensor * slopes = build_slopes(res, att);
        // one KV head at a time: with 128K tokens the logits of all heads together would take half a GiB
        for (int64_t h = 0; h < att.n_head_kv; ++h) {
            ggml_tensor * sum = nullptr;
            for (int64_t begin = 0; begin < n_query; begin += N_QUERY_BLOCK) {
                ggml_tensor * part_sum = build_scores(att, weights, slopes, h, begin, std::min(begin + N_QUERY_BLOCK, n_query));
                sum = sum ? ggml_add(c, sum, part_sum) : part_sum;
            }
            scores.push_back(sum);
        }
    }
    ggml_set_output(queries);
    ggml_build_forward_expand(part, queries);
    for (ggml_tensor * t : scores) {
        ggml_set_output(t);
        ggml_build_forward_expand(part, t);
    }
}
