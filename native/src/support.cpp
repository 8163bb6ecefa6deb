#include "support.h"

#include "access.h"
#include "cache.h"
#include "error.h"
#include "graph.h"
#include "memory.h"

#include "llama-context.h"
#include "llama-kv-cache.h"
#include "llama-model.h"

#include <algorithm>

static std::string str(int64_t value) { return std::to_string(value); }

static void fail(const std::string & reason) { throw asl_error(ASL_ERR_UNSUPPORTED, reason); }

bool asl_has_attention(const llama_model & model, int32_t il) {
    const auto & hparams = model.hparams;
    if (!llama_model_is_hybrid(&model) || model.arch == LLM_ARCH_FALCON_H1) {
        return true; // falcon-h1 has attention and a state in every layer
    }
    if (model.arch == LLM_ARCH_NEMOTRON_H || model.arch == LLM_ARCH_NEMOTRON_H_MOE) {
        return !hparams.is_recr(il) && hparams.n_ff(il) == 0; // the others are feed-forward alone
    }
    return !hparams.is_recr(il);
}

bool asl_owns_rows(const llama_model & model, int32_t il) {
    return asl_has_attention(model, il) && model.hparams.has_kv(il);
}

int32_t asl_first_shared(const llama_model & model) {
    const int32_t n_layer = model.hparams.n_layer();
    const int32_t first = model.hparams.n_layer_kv_from_start;
    return first < 0 ? n_layer : std::min(first, n_layer);
}

int32_t asl_row_owner(const llama_model & model, int32_t il) {
    const int32_t first = asl_first_shared(model);
    return il < first ? il : first - (model.hparams.is_swa(il) ? 2 : 1);
}

bool asl_is_sliding(const llama_model & model, int32_t il) {
    return asl_has_attention(model, il) && model.hparams.swa_type != LLAMA_SWA_TYPE_NONE && model.hparams.is_swa(il);
}

static bool shares_indexer(const llama_model & model, int32_t il) {
    const bool may_share = model.arch == LLM_ARCH_GLM_DSA || model.arch == LLM_ARCH_HY_V4 || model.arch == LLM_ARCH_DOTS3NOTE;
    return may_share && model.hparams.indexer_top_k > 0 && !asl_is_sliding(model, il) && !model.hparams.is_indexer_full(il);
}

int32_t asl_first_layer(const llama_model & model, bool sliding) {
    const int32_t n_layer = model.hparams.n_layer();
    for (int32_t il = 0; il < n_layer; ++il) {
        if (asl_has_attention(model, il) && asl_is_sliding(model, il) == sliding) {
            return il;
        }
    }
    return -1;
}

bool asl_can_drop_tokens(const llama_model & model) {
    return model.arch != LLM_ARCH_MINIMAX_01;
}

int32_t asl_n_streams(const llama_model & model) {
    return model.arch == LLM_ARCH_GEMMA3N ? model.hparams.n_altup : 1;
}

int32_t asl_n_head_rows(const llama_model & model, int32_t n_tokens) {
    return asl_n_streams(model) > 1 ? n_tokens : 1;
}

// The layers whose K/V later ones read must be the last of their kind to write: they lie in one slot each.
static void check_shared(const llama_model & model) {
    const int32_t n_layer = model.hparams.n_layer();
    const int32_t first = asl_first_shared(model);
    if (first >= n_layer) {
        return;
    }
    if (first < 2 || !asl_is_sliding(model, first - 2) || asl_is_sliding(model, first - 1)) {
        fail("layers from " + str(first) + " on attend to K/V of the two before: expected one with a sliding window and one without");
    }
}

void asl_check_model(const llama_model & model) {
    const auto & hparams = model.hparams;

    if (llama_model_has_encoder(&model) || !hparams.causal_attn || llama_model_is_diffusion(&model)) {
        fail("the model is not a causal decoder");
    }
    if (llama_model_is_recurrent(&model)) {
        fail("the model is recurrent: it has no KV cache to prune");
    }
    if (hparams.swa_type != LLAMA_SWA_TYPE_NONE && hparams.swa_type != LLAMA_SWA_TYPE_STANDARD && hparams.swa_type != LLAMA_SWA_TYPE_CHUNKED) {
        fail("attention to both sides of a token is not supported");
    }
    if (hparams.use_alibi && (llama_model_is_hybrid(&model) || hparams.swa_type != LLAMA_SWA_TYPE_NONE || hparams.is_mla())) {
        fail("attention with ALiBi is supported where every layer has K/V and attends to the whole prompt");
    }
    if (model.arch == LLM_ARCH_DEEPSEEK4) {
        fail("compressed sparse attention over several residual streams is not supported");
    }
    for (int32_t il = 0; il < (int32_t) hparams.n_layer(); ++il) {
        if (shares_indexer(model, il)) {
            fail("layer " + str(il) + " attends to the tokens that the indexer of an earlier layer chose, which may be others in its cells");
        }
    }
    if (model.arch == LLM_ARCH_CHAMELEON || model.arch == LLM_ARCH_PLM) {
        fail("llama.cpp's graph of this architecture ends the process: its own test leaves it out");
    }
    if (model.arch == LLM_ARCH_COGVLM) {
        fail("llama.cpp's graph of this architecture computes logits of all tokens of a chunk and reads those of its first one: there are no right ones to keep");
    }
    if (hparams.router_layer >= 0) {
        fail("models whose extra layers are routers are not supported");
    }
    if (asl_first_layer(model, false) < 0) {
        fail("every layer attends to a sliding window: its K/V do not grow with the prompt");
    }
    check_shared(model);
    for (int32_t il = 0; il < asl_first_shared(model); ++il) {
        if (asl_has_attention(model, il) && (!hparams.has_kv(il) || hparams.n_head(il) == 0 || hparams.n_head_kv(il) == 0)) {
            fail("layer " + str(il) + " has no K/V of its own");
        }
    }
}

// What asl_has_attention says of each layer must be what the memory holds.
static void check_memory(llama_context & ctx) {
    const llama_model & model = ctx.get_model();
    std::vector<uint32_t> with_rows = asl_get_kv_cache(ctx).get_layer_ids();
    if (llama_kv_cache * swa = asl_get_kv_cache_swa(ctx)) {
        const auto more = swa->get_layer_ids();
        with_rows.insert(with_rows.end(), more.begin(), more.end());
    }
    for (uint32_t il = 0; il < model.hparams.n_layer(); ++il) {
        const bool has_rows = std::count(with_rows.begin(), with_rows.end(), il) > 0;
        if (has_rows != asl_owns_rows(model, il)) {
            fail("layer " + str(il) + (has_rows ? " has" : " has no") + " cells in the KV cache, which was not expected of this architecture");
        }
    }
    if (asl_has_states(ctx) && ctx.get_cparams().n_rs_seq > 0) {
        fail("snapshots of recurrent states (n_rs_seq) are not supported");
    }
}

int64_t asl_check_context(llama_context & ctx) {
    int64_t n_rows = 0;
    try {
        check_memory(ctx);
        llm_graph_result graph(ctx.get_gf_res_reserve()->get_max_nodes());
        asl_context_access::build_graph(ctx, graph);
        n_rows = asl_check_graph(graph, ctx);
    } catch (const asl_error &) {
        throw;
    } catch (const std::exception & err) {
        fail(err.what());
    }
    if (ctx.get_cparams().embeddings) {
        fail("the decode context computes embeddings");
    }
    return n_rows;
}
