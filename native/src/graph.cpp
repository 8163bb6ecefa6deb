// The only file that depends on how llama.cpp names and orders graph nodes.

#include "graph.h"

#include "cache.h"
#include "full-graph.h"
#include "per-layer.h"
#include "recurrent-node.h"
#include "support.h"

#include "llama-context.h"
#include "llama-graph.h"
#include "llama-model.h"

#include "ggml-backend.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <stdexcept>
#include <unordered_set>

// nodes of replace_masks per layer
static const size_t N_MASK_NODES = 3;
// views of the hidden states, and the copies from and to them, for each row of a token at most
static const size_t N_HIDDEN_NODES = 6;
// that asl_part_forms asks for at most
static const size_t N_PADS = 1;

int asl_find_layer_output(const asl_graph_index & index, int32_t il) {
    const auto found = index.outputs.find(il);
    if (found == index.outputs.end()) {
        throw std::runtime_error("the model's graph does not name the output of layer " + std::to_string(il) + " (l_out)");
    }
    return found->second;
}

asl_layer_cutter::asl_layer_cutter(
        llama_context & ctx, asl_dequantiser & dequantiser, asl_attention_use & attention, asl_causal_mask & mask,
        const asl_hidden & hidden, asl_chunk_inputs * inputs, const asl_layer_range & range, asl_chunk & chunk, asl_parts & parts, asl_full_graph * full)
    : ctx(ctx), dequantiser(dequantiser), attention(attention), mask(mask), hidden(hidden), inputs(inputs), parts(parts),
      full(full), range(range), chunk(chunk) {
}

// The computed nodes from begin to last, with others in place of some that they read.
static std::vector<ggml_tensor *> take_nodes(ggml_cgraph * gf, int begin, int last, const std::map<const ggml_tensor *, ggml_tensor *> & replaced) {
    std::vector<ggml_tensor *> nodes;
    for (int i = begin; i <= last; ++i) {
        ggml_tensor * node = ggml_graph_node(gf, i);
        // not computed: the branch of the model's input that this batch does not use
        if (!(node->flags & GGML_TENSOR_FLAG_COMPUTE)) {
            continue;
        }
        for (auto & src : node->src) {
            const auto found = replaced.find(src);
            src = found != replaced.end() ? found->second : src;
        }
        const auto found = replaced.find(node->view_src);
        node->view_src = found != replaced.end() ? found->second : node->view_src;
        nodes.push_back(node);
    }
    return nodes;
}

// Whether a node stores rows in a KV cache, or stores or clears a recurrent state. Before the graph is allocated, what has a
// buffer is a weight, which no node writes, or memory of the context; names may have changed.
static bool is_memory_write(const ggml_tensor * node) {
    switch (node->op) {
    case GGML_OP_NONE:
    case GGML_OP_VIEW:
    case GGML_OP_RESHAPE:
    case GGML_OP_PERMUTE:
    case GGML_OP_TRANSPOSE:
        return false;
    default:
        return node->view_src && node->view_src->buffer;
    }
}

// The nodes of the range. llama.cpp clears and reads a layer's state before the layer begins: what writes the states of these
// layers is among the nodes before `begin`, and what touches those of deeper ones among `nodes`.
std::vector<ggml_tensor *> asl_layer_cutter::own_nodes(ggml_cgraph * gf, int begin, std::vector<ggml_tensor *> nodes) const {
    if (!asl_has_states(ctx)) {
        return nodes;
    }
    asl_layer_of states;
    for (int32_t il = 0; il < (int32_t) ctx.get_model().hparams.n_layer(); ++il) {
        for (const ggml_tensor * t : asl_state_tensors(ctx, il)) {
            states[t] = il;
        }
    }
    auto is_own = [this](int32_t il) { return range.first <= il && il <= range.last; };

    std::vector<ggml_tensor *> result;
    for (int i = 0; i < begin; ++i) {
        ggml_tensor * node = ggml_graph_node(gf, i);
        const auto found = node->view_src ? states.find(node->view_src) : states.end();
        if (found != states.end() && is_own(found->second) && is_memory_write(node)) {
            result.push_back(node);
        }
    }
    std::unordered_set<const ggml_tensor *> foreign;
    for (ggml_tensor * node : nodes) {
        auto is_foreign = [&](const ggml_tensor * t) {
            const auto found = states.find(t);
            return foreign.count(t) || (found != states.end() && !is_own(found->second));
        };
        if (is_foreign(node->view_src) || std::any_of(std::begin(node->src), std::end(node->src), is_foreign)) {
            foreign.insert(node);
        } else {
            result.push_back(node);
        }
    }
    return result;
}

// How rows of an attention mask must be aligned where they may lie apart; 0 where kernels are not known to take such masks.
static size_t mask_alignment(const llama_context & ctx, ggml_backend_buffer_type_t buft) {
    if (ctx.get_model().devices.empty()) {
        return 1; // CPUs
    }
    ggml_backend_dev_t device = ggml_backend_buft_get_device(buft);
    const bool is_cuda = device && strcmp(ggml_backend_reg_name(ggml_backend_dev_backend_reg(device)), "CUDA") == 0;
    return is_cuda ? 16 : 0; // its flash attention loads 16 bytes at a time
}

ggml_cgraph * asl_layer_cutter::cut(llm_graph_result & res, const llama_ubatch & ubatch) {
    try {
        return cut_impl(res, ubatch);
    } catch (const std::exception & err) {
        error = err.what();
        return nullptr;
    }
}

ggml_cgraph * asl_layer_cutter::cut_impl(llm_graph_result & res, const llama_ubatch & ubatch) {
    ggml_cgraph * gf = res.get_gf();
    if ((int32_t) ubatch.n_tokens != chunk.n_tokens) {
        throw std::runtime_error("expected a ubatch of " + std::to_string(chunk.n_tokens) + " tokens, got " + std::to_string(ubatch.n_tokens));
    }

    if (!full) {
        own_index = asl_index_graph(res);
    }
    index = full ? &full->get_index() : &own_index;
    find_dependents(gf);
    const int i_prev = range.first > 0 ? asl_find_layer_output(*index, range.first - 1) : -1;
    const int i_last = range.head ? ggml_graph_n_nodes(gf) - 1 : asl_find_layer_output(*index, range.last);

    // the capacity of the full graph bounds the part as well
    const auto & hparams = ctx.get_model().hparams;
    const size_t n_extra = n_score_nodes(hparams.n_head_kv(range.last)) + N_MASK_NODES * hparams.n_layer() + N_HIDDEN_NODES * (hidden.width() / hparams.n_embd) + N_PADS + ASL_N_SHARE_NODES +
                           dequantiser.n_extra(i_last - i_prev) + asl_attend_node::N_NODES * (range.last + 1 - range.first) +
                           asl_count_recurrent(gf, i_prev + 1, i_last);
    const size_t n_nodes = res.get_max_nodes() + n_extra;
    ctx_part.reset(parts.memory.make(n_extra * ggml_tensor_overhead() + ggml_graph_overhead_custom(n_nodes, false)));
    ggml_cgraph * part = ggml_new_graph_custom(ctx_part.get(), n_nodes, false);

    build_inputs(gf);
    if (full) {
        full->save(i_prev + 1, i_last);
    }
    std::vector<ggml_tensor *> nodes = own_nodes(gf, i_prev + 1, take_nodes(gf, i_prev + 1, i_last, replaced));
    asl_take_own_share(nodes, ctx_part.get());
    if (chunk.first) {
        const int64_t started_us = asl_thread_us();
        dequantiser.prepare(nodes);
        prepare_us = asl_thread_us() - started_us;
    }
    const auto unused_masks = replace_masks(nodes);

    // every other input stays, used or not: the set_input of each writes to its buffer. They come first, and what has
    // memory already after them: ggml_gallocr takes the places of an earlier graph of as many nodes and leaves
    std::vector<ggml_tensor *> read = index->inputs;
    read.erase(std::remove_if(read.begin(), read.end(), [&](ggml_tensor * t) { return unused_masks.count(t); }), read.end());
    for (ggml_tensor * t : read) {
        ggml_build_forward_expand(part, t);
    }
    for (ggml_tensor * t : copies) {
        ggml_build_forward_expand(part, t);
    }
    if (inputs) {
        inputs->replace(res, chunk.n_past, read, nodes);
    }
    dequantiser.replace(nodes, ctx_part.get());
    if (attention.enabled) {
        asl_replace_recurrent(nodes, ctx_part.get());
    }
    for (auto & layer : own) {
        layer.second->replace(nodes, ctx_part.get());
    }
    for (ggml_tensor * node : nodes) {
        if (!chunk.rows_only || is_memory_write(node)) {
            ggml_build_forward_expand(part, node); // with what it reads
        }
    }
    if (chunk.first && range.first > 0) {
        verify(gf, part, i_prev + 1, i_last);
    }
    if (!range.head || chunk.rows_only) {
        keep_output(res, part);
    }
    if (chunk.scores && chunk.n_queries > 0) {
        add_scores(res, part);
    }
    read.insert(read.end(), copies.begin(), copies.end());
    for (int i = parts.forms.count_pads(part, read); i > 0; --i) {
        ggml_build_forward_expand(part, hidden.view(ctx_part.get(), chunk.n_past, 1));
    }
    if (full) {
        full->save_unplaced(part, read);
    }
    res.gf = part;
    return part;
}

// The layers read the prefill's own masks, but for sliding windows over tokens that do not follow each other. Returns
// the inputs that stand for them in the full graph: without a buffer, their set_input does not fill them.
std::unordered_set<const ggml_tensor *> asl_layer_cutter::replace_masks(const std::vector<ggml_tensor *> & nodes) {
    const auto & model = ctx.get_model();
    const ggml_tensor * inputs[2] = {}; // of layers that attend to all tokens, and of those with a sliding window
    for (const bool sliding : { false, true }) {
        const int32_t il = asl_first_layer(model, sliding);
        inputs[sliding] = il < 0 || asl_has_indexer(ctx, il) ? nullptr : asl_find_attention(*index, il).mask;
    }
    std::unordered_set<const ggml_tensor *> unused(std::begin(inputs), std::end(inputs));

    std::map<std::pair<ggml_backend_buffer_type_t, bool>, ggml_tensor *> masks;
    for (int32_t il = range.first; il <= range.last; ++il) {
        if (!asl_has_attention(model, il)) {
            continue;
        }
        const asl_attention att = asl_find_attention(*index, il);
        const bool sliding = asl_is_sliding(model, il);
        const bool is_chosen = asl_has_indexer(ctx, il); // what an indexer chooses is open in a mask of the layer's own
        if (att.mask != inputs[sliding] && !is_chosen) {
            throw std::runtime_error("layer " + std::to_string(il) + " has an attention mask of its own");
        }
        // ours are of windows; those of gaps, of chunks, and of distances, are llama.cpp's
        const bool is_stock = is_chosen || att.max_bias != 0.0f || (sliding && (chunk.has_gaps || model.hparams.swa_type != LLAMA_SWA_TYPE_STANDARD));
        scored = att;
        const bool is_own = find_own_attention(att, il, nodes, is_stock);
        if (is_stock) {
            unused.erase(att.mask);
        }
        if (is_stock || is_own) {
            continue;
        }
        ggml_backend_buffer_type_t buft = ggml_backend_buffer_get_type(att.k->buffer);
        ggml_tensor *& own = masks[{ buft, sliding }];
        own = own ? own : mask.build(ctx_part.get(), att.mask, chunk.n_past, sliding ? model.hparams.n_swa : 0, buft, mask_alignment(ctx, buft));
        for (auto & src : att.node->src) {
            src = src == att.mask ? own : src;
        }
    }
    return unused;
}

// Whether the layer attends with our own kernel.
bool asl_layer_cutter::find_own_attention(const asl_attention & att, int32_t il, const std::vector<ggml_tensor *> & nodes, bool has_own_mask) {
    if (!attention.enabled) {
        return false;
    }
    auto node = std::make_unique<asl_attend_node>();
    const auto & model = ctx.get_model();
    const int64_t n_swa = asl_is_sliding(model, il) && !has_own_mask ? model.hparams.n_swa : 0;
    const std::string reason = node->find(att, nodes, chunk.n_past, n_swa, has_own_mask);
    if (chunk.first) {
        ++(reason.empty() ? attention.n_own : attention.n_stock);
        attention.reason = reason.empty() ? attention.reason : reason;
    }
    if (reason.empty()) {
        if (attention.is_rounded) {
            node->round();
        }
        own[il] = std::move(node);
    }
    return reason.empty();
}

// Before nodes change: of the first chunk's graph, and where more than the output goes from layer to layer.
void asl_layer_cutter::find_dependents(ggml_cgraph * gf) {
    if (!chunk.first && hidden.width() == ctx.get_model().hparams.n_embd) {
        return;
    }
    if (!full) {
        own_dependents = asl_find_dependents(gf, ggml_graph_n_nodes(gf), asl_memory_tensors(ctx));
    }
    dependents = full ? &full->get_dependents(ctx) : &own_dependents;
}

// Nothing in the part may read what an earlier layer computed, except through its output, or from the chunk's token ids
// alone: that is computed again. Nor may it read states of other layers.
void asl_layer_cutter::verify(ggml_cgraph * gf, ggml_cgraph * part, int begin, int last) const {
    std::unordered_set<const ggml_tensor *> of_range;
    for (int i = begin; i <= last; ++i) {
        of_range.insert(ggml_graph_node(gf, i));
    }
    for (int i = 0; i < ggml_graph_n_nodes(part); ++i) {
        const ggml_tensor * node = ggml_graph_node(part, i);
        const auto found = dependents->find(node);
        if (!of_range.count(node) && found != dependents->end() && (found->second < range.first || found->second > range.last)) {
            throw std::runtime_error("layer " + std::to_string(range.first) + " reads '" + node->name + "' of an earlier layer, beside its output");
        }
    }
}

void asl_layer_cutter::read(const llama_ubatch &) {
    if (outputs.empty() && scores.empty()) {
        return; // devices go on while the next chunk's graph is built
    }
    ggml_backend_sched_synchronize(ctx.get_sched());

    if (!outputs.empty()) {
        read_output();
    }
    if (scores.empty()) {
        return;
    }

    // [n_embd_head, n_query, n_head] -> [n_query][n_head][n_embd_head]
    const int64_t n_embd_head = queries->ne[0];
    std::vector<float> raw(ggml_nelements(queries));
    ggml_backend_tensor_get(queries, raw.data(), 0, ggml_nbytes(queries));
    chunk.queries.resize(raw.size());
    for (int64_t h = 0; h < queries->ne[2]; ++h) {
        for (int64_t i = 0; i < queries->ne[1]; ++i) {
            memcpy(chunk.queries.data() + (i * queries->ne[2] + h) * n_embd_head,
                    raw.data() + (h * queries->ne[1] + i) * n_embd_head, n_embd_head * sizeof(float));
        }
    }

    const int64_t n_keys = chunk.n_past + chunk.n_tokens;
    for (ggml_tensor * t : scores) {
        for (int64_t h = 0; h < (own.empty() || chunk.by_indexer ? 1 : t->ne[1]); ++h) {
            chunk.scores_kv.emplace_back(n_keys);
            ggml_backend_tensor_get(t, chunk.scores_kv.back().data(), h * t->nb[1], n_keys * sizeof(float));
        }
    }
}
