#include "session.h"

#include "access.h"
#include "cache.h"
#include "memory.h"
#include "pages.h"
#include "support.h"

#include "llama-batch.h"
#include "llama-kv-cache.h"
#include "llama-model.h"

#include <algorithm>

static bool has_quantised_weights(const llama_model & model) {
    return std::any_of(model.tensors_by_name.begin(), model.tensors_by_name.end(), [](const auto & named) {
        return ggml_is_quantized(named.second->type);
    });
}

// host memory for graphs of chunks: of small models a graph takes 1 MB. A quarter of the hidden states if that is more
static const size_t MIN_GRAPH_BYTES = 64 << 20;

// Prompts of so many tokens leave tens of megabytes on the heap: graphs of their chunks, cells, positions
static const int32_t N_LONG = 8192;

static std::string str(int64_t value) { return std::to_string(value); }

asl_session::asl_session(llama_context & ctx, const llama_context_params & params, uint32_t n_ctx)
    : ctx(ctx), params(params), n_ctx(n_ctx),
      n_layer(ctx.get_model().hparams.n_layer()) {
    asl_check_model(ctx.get_model());
    n_hidden = asl_check_context(ctx) * ctx.get_model().hparams.n_embd;
    kv_bytes_cell = asl_kv_bytes_cell(ctx, asl_get_kv_cache(ctx));
    if (llama_kv_cache * swa = asl_get_kv_cache_swa(ctx)) {
        kv_bytes_cell_sliding = asl_kv_bytes_cell(ctx, *swa);
    }
    // rope factors that depend on the context length must follow the prompt's length, not the number of cells
    asl_context_access::cparams(ctx).n_ctx_seq = GGML_PAD(n_ctx, 256);
}

asl_session::~asl_session() = default;

void asl_session::check_tokens(const int32_t * tokens, int32_t n_tokens, int32_t n_window) const {
    if (n_tokens < 1 || (uint32_t) n_tokens > n_ctx) {
        throw asl_error(ASL_ERR_ARGUMENT, "expected 1 to n_ctx = " + str(n_ctx) + " tokens, got " + str(n_tokens));
    }
    if (n_window < 1) {
        throw asl_error(ASL_ERR_ARGUMENT, "expected a window of at least 1 token, got " + str(n_window));
    }
    const int32_t n_vocab = ctx.get_model().vocab.n_tokens();
    for (int32_t i = 0; i < n_tokens; ++i) {
        if (tokens[i] < 0 || tokens[i] >= n_vocab) {
            throw asl_error(ASL_ERR_ARGUMENT, "expected token ids 0 to " + str(n_vocab - 1) + ", got " + str(tokens[i]) + " at index " + str(i));
        }
    }
}

void asl_session::begin(const int32_t * tokens, int32_t n_tokens, int32_t n_window, int32_t first_pos) {
    check_tokens(tokens, n_tokens, n_window);
    if (first_pos < 0 || (uint32_t) first_pos > n_ctx - n_tokens) {
        throw asl_error(ASL_ERR_ARGUMENT, "expected a first position of 0 to " + str(n_ctx - n_tokens) + ", got " + str(first_pos));
    }
    abort();
    ctx.get_memory()->clear(false);
    open(std::vector<int32_t>(tokens, tokens + n_tokens), n_window, first_pos, 0);
}

void asl_session::extend(const int32_t * tokens, int32_t n_tokens, int32_t n_window) {
    check_tokens(tokens, n_tokens, n_window);
    if (ctx.get_model().hparams.use_alibi) {
        throw asl_error(ASL_ERR_STATE, "what a context holds cannot be extended where attention adds a bias of distances (ALiBi); decode the turn, or prefill it all again");
    }
    asl_past found = asl_read_past(ctx);
    if (found.next_pos > (int32_t) n_ctx - n_tokens) {
        throw asl_error(ASL_ERR_ARGUMENT, "expected at most " + str((int64_t) n_ctx - found.next_pos) + " tokens from position " +
                                                  str(found.next_pos) + " on (n_ctx = " + str(n_ctx) + "), got " + str(n_tokens));
    }
    abort();
    ctx.synchronize();
    const int32_t n = found.cells.size();
    // the past stands right before the first new token; of its tokens, nothing but K/V is asked for
    std::vector<int32_t> all(n, 0);
    all.insert(all.end(), tokens, tokens + n_tokens);
    const llama_pos first = found.next_pos - n;
    open(std::move(all), n_window, first, n);
    past = std::move(found);
}

// Allocates the prefill context. The first n_past tokens are not computed.
void asl_session::open(std::vector<int32_t> tokens, int32_t n_window, int32_t first_pos, int32_t n_past) {
    const int32_t n_tokens = tokens.size();
    started_us = ggml_time_us();
    llama_context_params cparams = params;
    cparams.n_ctx = GGML_PAD((uint32_t) n_tokens, 256);
    cparams.n_threads = ctx.n_threads();
    cparams.n_threads_batch = ctx.n_threads_batch();
    cparams.n_seq_max = 1;
    cparams.swa_full = false; // sliding layers have cells for all tokens here anyway: the patch sees to it
    cparams.n_outputs_max = 1;
    cparams.n_outputs_max_per_seq = 0;
    cparams.samplers = nullptr;
    cparams.n_samplers = 0;
    // "auto" was resolved when the decode context was created
    cparams.flash_attn_type = ctx.get_cparams().flash_attn ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
    {
        asl_shared_kv_scope scope;
        prefill.reset(llama_init_from_model(const_cast<llama_model *>(&ctx.get_model()), cparams));
    }
    if (!prefill) {
        throw asl_error(ASL_ERR_MEMORY, "cannot allocate a prefill context of " + str(cparams.n_ctx) + " cells");
    }
    asl_context_access::cparams(*prefill).n_ctx_seq = ctx.n_ctx_seq();
    asl_context_access::copy_loras(ctx, *prefill);
    // expanding weights pays on CPUs; a GPU would have to be sent the larger copies
    const bool on_cpu = ctx.get_model().devices.empty();
    dequantiser.set_mode(on_cpu ? dequant : ASL_DEQUANT_OFF, ctx.n_threads_batch());
    // where no weight is rounded, the default gives llama.cpp's bits; the other modes are asked for by name
    const bool is_exact = dequant == ASL_DEQUANT_AUTO && !has_quantised_weights(ctx.get_model());
    // where activations have 8 bits, integers of 16 in attention are no further from F32
    attention.reset(on_cpu && dequant != ASL_DEQUANT_OFF && !is_exact, asl_act_bits(dequant) == 8);
    attention.reason = !on_cpu ? "on another device" : is_exact ? "no weight is quantised"
                                                                : "weights are as stored";

    this->tokens = std::move(tokens);
    this->n_tokens = n_tokens;
    this->n_past = n_past;
    this->n_window = std::min(n_window, n_tokens - n_past);
    this->first_pos = first_pos;
    mask.reset(std::min<int32_t>(n_tokens, std::max(ctx.n_ubatch(), prefill->n_ubatch())), n_tokens - 1);
    positions.resize(n_tokens);
    for (int32_t i = 0; i < n_tokens; ++i) {
        positions[i] = first_pos + i;
    }
    hidden.reset(n_hidden, n_past, n_tokens, asl_hidden_buffer_type(*prefill, (size_t) (n_tokens - n_past) * n_hidden * sizeof(float)));
    if (n_hidden > (int32_t) ctx.get_model().hparams.n_embd) {
        hidden.clear(); // rows that deeper layers read may have no value yet, and saved layers hold them
    }
    const size_t n_bytes_hidden = hidden.size_bytes(false); // 0 in host memory: a device waits for them anyway
    inputs.reset(n_bytes_hidden > 0 ? hidden.get_type() : nullptr, n_bytes_hidden);
    graphs.reset(std::max(MIN_GRAPH_BYTES, (hidden.size_bytes(true) + n_bytes_hidden) / 4));
    kv_bytes_prefill_peak = asl_kv_bytes(*prefill);
    parts = asl_parts();
    n_work_total = (int64_t) (n_tokens - n_past) * n_layer;
}

int32_t asl_session::check_open(bool layer_ran) const {
    if (!prefill) {
        throw asl_error(ASL_ERR_STATE, "no prefill is open; call asl_session_begin first");
    }
    if (slices.is_open()) {
        throw asl_error(ASL_ERR_STATE, "a run is under way; call asl_session_step until no slice is left, or asl_session_abort");
    }
    if (layer_ran && next_layer == 0) {
        throw asl_error(ASL_ERR_STATE, "no layer has run yet; call asl_session_run first");
    }
    return next_layer - 1;
}

void asl_session::set_window(int32_t n_window, const float * weights) {
    check_open(false);
    const int32_t n_computed = (int32_t) positions.size() - n_past;
    if (n_window < 1 || n_window > n_computed) {
        throw asl_error(ASL_ERR_ARGUMENT, "expected a window of 1 to " + str(n_computed) + " tokens, got " + str(n_window));
    }
    this->n_window = n_window;
    this->weights.assign(weights, weights ? weights + n_window : nullptr);
    has_scores = false;
}

void asl_session::rank_by(bool indexer) {
    if (slices.is_open()) {
        throw asl_error(ASL_ERR_STATE, "a run is under way; call asl_session_step until no slice is left, or asl_session_abort");
    }
    if (indexer && !asl_get_kv_cache_indexer(ctx)) {
        throw asl_error(ASL_ERR_ARGUMENT, "expected a model whose layers choose tokens with an indexer (sparse attention), this one has none: its tokens are ranked by attention");
    }
    has_scores &= by_indexer == indexer;
    by_indexer = indexer;
}

void asl_session::set_past(int32_t n_past) {
    check_open(false);
    check_begun();
    if (next_layer > 0) {
        throw asl_error(ASL_ERR_STATE, "expected a prefill of which no layer has run, layer " + str(next_layer) + " is next");
    }
    if (n_past < 0 || n_past >= n_tokens) {
        throw asl_error(ASL_ERR_ARGUMENT, "expected 0 to " + str(n_tokens - 1) + " tokens whose K/V are loaded, got " + str(n_past));
    }
    this->n_past = n_past;
    past_ready = state_ready = false;
    n_window = std::min(n_window, n_tokens - n_past);
    if ((int32_t) weights.size() > n_window) {
        weights.erase(weights.begin(), weights.end() - n_window);
    }
    hidden.reset(n_hidden, n_past, n_tokens, hidden.get_type());
    n_work_total = (int64_t) (n_tokens - n_past) * n_layer;
}

// The current tokens have changed.
void asl_session::forget_chunks() {
    plan.clear();
    inputs.clear();
    graphs.clear();
    is_placed = false;
}

void asl_session::release() {
    const bool was_long = n_tokens >= N_LONG;
    asl_context_access::expect_buffer_sizes(*prefill);
    asl_context_access::expect_buffer_sizes(ctx);
    plan.clear();
    graphs.reset(0);
    is_placed = false;
    inputs.reset(nullptr, 0);
    prefill.reset();
    slices = asl_slices();
    past = asl_past();
    dequantiser.release();
    mask.reset(0, 0);
    n_tokens = n_window = first_pos = next_layer = n_past = 0;
    past_ready = state_ready = false;
    state_ends.clear();
    n_work_done = n_work_total = 0;
    has_scores = false;
    for (auto * v : { &tokens, &rows_kept }) {
        std::vector<int32_t>().swap(*v);
    }
    std::vector<asl_held_rows>().swap(held);
    for (auto * v : { &states, &states_noted }) {
        std::vector<std::vector<uint8_t>>().swap(*v);
    }
    hidden.release();
    for (auto * v : { &output, &scores, &queries, &weights }) {
        std::vector<float>().swap(*v);
    }
    std::vector<llama_pos>().swap(positions);
    std::vector<llama_pos>().swap(cells);
    sliding.clear();
    if (was_long) {
        asl_trim_heap();
    }
}

void asl_session::abort() {
    if (!prefill) {
        return;
    }
    const bool keeps_past = past.exists();
    release();
    if (!keeps_past) {
        ctx.get_memory()->clear(false);
    }
}
