// The only door to private members of llama_context.

#pragma once

#include "full-graph.h"
#include "parts.h"

#include "llama-context.h"

#include "llama-batch.h"
#include "llama-graph.h"
#include "llama-memory.h"
#include "llama-model.h"

#include <algorithm>
#include <utility>

struct asl_context_access {
    static asl_graph_hook *& hook(llama_context & ctx) { return ctx.asl_hook; }

    static void (*&edit(llama_context & ctx))(ggml_cgraph *) { return ctx.asl_edit; }

    static llama_cparams & cparams(llama_context & ctx) { return ctx.cparams; }

    static const llama_adapter_loras & loras(const llama_context & ctx) { return *ctx.loras; }

    static const llama_adapter_cvec & control_vectors(const llama_context & ctx) { return *ctx.cvec; }

    // LoRA adapters of src apply to dst as well
    static void copy_loras(const llama_context & src, llama_context & dst) {
        *dst.loras = *src.loras;

        dst.sched_need_reserve = !src.loras->empty();
    }

    static void copy_abort_callback(const llama_context & src, llama_context & dst) {
        dst.set_abort_callback(src.abort_callback, src.abort_callback_data);
    }

    // the graphs of a session need other compute buffers than the reserved ones: that is no news for the log
    static void expect_buffer_sizes(llama_context & ctx) {
        for (size_t i = 0; i < ctx.backend_ptrs.size(); ++i) {
            ctx.backend_buf_exp_size[i] = ggml_backend_sched_get_buffer_size(ctx.sched.get(), ctx.backend_ptrs[i]);
        }
    }

    // What llama_context::decode does before and after the ubatch of a batch without outputs, and process_ubatch for it: `full`
    // is built if it does not serve this one, and the hook's part of it computed.
    //   is_placed: the cells hold the ubatch's tokens since an earlier layer
    static ggml_status process(llama_context & ctx, llama_memory_context_i & mctx, bool is_placed, asl_full_graph & full,
            asl_graph_hook & hook, asl_parts & parts) {
        ctx.sched_reserve();
        ctx.n_outputs = 0;
        if (!is_placed && !mctx.apply()) {
            return GGML_STATUS_FAILED;
        }
        ggml_backend_sched_t sched = ctx.sched.get();
        forget_graph(ctx);
        ggml_backend_sched_set_eval_callback(sched, ctx.cparams.cb_eval, ctx.cparams.cb_eval_user_data);

        full.take_back();
        llm_graph_result & res = full.get();
        const llama_ubatch & ubatch = mctx.get_ubatch();
        const auto params = ctx.graph_params(&res, ubatch, &mctx, LLM_GRAPH_TYPE_DEFAULT);
        if (!ctx.graph_reuse_disable && full.serves(params)) {
            full.place(sched);
        } else {
            full.reset();
            if (!ctx.model.build_graph(params)) {
                return GGML_STATUS_FAILED;
            }
            full.note(params);
            ++parts.n_graphs;
        }
        ggml_cgraph * part = hook.cut(res, ubatch);
        if (!part) {
            return GGML_STATUS_FAILED;
        }
        if (!ggml_backend_sched_alloc_graph(sched, part)) {
            return GGML_STATUS_ALLOC_FAILED;
        }
        res.set_inputs(&ubatch);
        const int64_t started_us = asl_thread_us();
        const ggml_status status = ctx.graph_compute(part, ubatch.n_tokens > 1);
        parts.host_us -= asl_thread_us() - started_us;
        if (status == GGML_STATUS_SUCCESS) {
            hook.read(ubatch);
        }
        return status;
    }

    // LLAMA_GRAPH_REUSE_DISABLE is not set
    static bool reuses_graphs(const llama_context & ctx) { return !ctx.graph_reuse_disable; }

    // of a full graph
    static int64_t max_nodes(llama_context & ctx) {
        ctx.sched_reserve();
        return ctx.gf_res_reserve->get_max_nodes();
    }

    // To be called before a graph of ours is computed in a context that decodes.
    static void forget_graph(llama_context & ctx) {
        ggml_backend_sched_reset(ctx.sched.get());
        ctx.gf_res_prev_active = nullptr;
    }

    // Logits of the last output, NULL if there are none.
    static const float * get_last_logits(llama_context & ctx) {
        if (ctx.n_outputs == 0 || !ctx.logits.data) {
            return nullptr;
        }
        return ctx.get_logits_ith(-1);
    }

    // Builds a graph of the model that no scheduler has split: in a split one, devices' copies take the place of tensors.
    // A graph that was kept for reuse is forgotten.
    static void build_graph(llama_context & ctx, llm_graph_result & res) {
        forget_graph(ctx);

        const auto mctx = ctx.memory->init_full();
        llama_batch_allocr balloc(ctx.model.hparams.n_pos_per_embd());
        const auto ubatch = balloc.ubatch_reserve(1, ctx.cparams.n_seq_max);

        const auto n_outputs = std::exchange(ctx.n_outputs, ubatch.n_tokens);
        const auto params = ctx.graph_params(&res, ubatch, mctx.get(), LLM_GRAPH_TYPE_DEFAULT);
        res.reset();
        ctx.model.build_graph(params);
        ctx.n_outputs = n_outputs;
        ggml_backend_sched_reset(ctx.sched.get());
    }

    // as after a decode with one output
    static bool set_logits(llama_context & ctx, const float * logits) {
        ctx.synchronize();
        if (ctx.output_reserve(1) == 0) {
            return false;
        }
        ctx.n_outputs = 1;
        ctx.output_swaps.clear();
        ctx.output_ids[0] = 0;
        std::copy_n(logits, ctx.model.vocab.n_tokens(), ctx.logits.data);
        return true;
    }

    // for llama_perf_context, as after a decode of a prompt
    static void note_prompt(llama_context & ctx, int32_t n_tokens, int64_t us) {
        ctx.synchronize();
        ctx.n_p_eval += n_tokens;
        ctx.t_p_eval_us += ctx.cparams.no_perf ? 0 : us;
        if (!ctx.has_evaluated_once) {
            ctx.t_load_us = ggml_time_us() - ctx.t_start_us;
            ctx.has_evaluated_once = true;
        }
    }

    // control vectors own buffers: the prefill context borrows them for the time of a call
    static void swap_control_vectors(llama_context & a, llama_context & b) { std::swap(a.cvec, b.cvec); }
};

// For its lifetime, ctx runs with this hook and with the control vectors of the decode context.
struct asl_hook_scope {
    asl_hook_scope(llama_context & ctx, llama_context & decode, asl_graph_hook & hook) : ctx(ctx), decode(decode) {
        asl_context_access::hook(ctx) = &hook;
        asl_context_access::swap_control_vectors(ctx, decode);
    }
    ~asl_hook_scope() {
        asl_context_access::swap_control_vectors(ctx, decode);
        asl_context_access::hook(ctx) = nullptr;
    }

    asl_hook_scope(const asl_hook_scope &) = delete;
    asl_hook_scope & operator=(const asl_hook_scope &) = delete;

    llama_context & ctx;
    llama_context & decode;
};
