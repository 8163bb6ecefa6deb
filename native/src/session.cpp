#include "session.h"

#include "access.h"
#include "cache.h"

#include "llama-batch.h"
#include "llama-graph.h"
#include "llama-kv-cache.h"
#include "llama-model.h"

#include <algorithm>

static std::string str(int64_t value) { return std::to_string(value); }

void asl_check_model(const llama_model & model) {
    const auto & hparams = model.hparams;
    auto fail = [](const std::string & reason) { throw asl_error(ASL_ERR_UNSUPPORTED, reason); };

    if (llama_model_is_recurrent(&model) || llama_model_is_hybrid(&model)) {
        fail("the model is recurrent or hybrid: it has no KV cache to prune in every layer");
    }
    if (llama_model_has_encoder(&model) || !hparams.causal_attn) {
        fail("the model is not a causal decoder");
    }
    if (hparams.is_mla()) {
        fail("multi-head latent attention is not supported yet");
    }
    if (hparams.swa_type != LLAMA_SWA_TYPE_NONE && hparams.swa_type != LLAMA_SWA_TYPE_STANDARD) {
        fail("attention to chunks of the prompt, or to both sides of a token, is not supported yet");
    }
    if (asl_first_layer(model, false) < 0) {
        fail("every layer attends to a sliding window: its K/V do not grow with the prompt");
    }
    if (hparams.n_embd_inp() != hparams.n_embd || hparams.n_pos_per_embd() != 1) {
        fail("multimodal inputs or positions of several dimensions are not supported yet");
    }
    if (hparams.n_layer() != hparams.n_layer_all) {
        fail("models with multi-token prediction layers are not supported yet");
    }
    for (uint32_t il = 0; il < hparams.n_layer(); ++il) {
        if (!hparams.has_kv(il) || hparams.n_head(il) == 0 || hparams.n_head_kv(il) == 0) {
            fail("layer " + str(il) + " has no K/V of its own");
        }
    }
}

asl_session::asl_session(llama_context & ctx, const llama_context_params & params, uint32_t n_ctx)
    : ctx(ctx), params(params), n_ctx(n_ctx),
      n_layer(ctx.get_model().hparams.n_layer()), n_embd(ctx.get_model().hparams.n_embd) {
    asl_check_model(ctx.get_model());
    try {
        asl_get_kv_cache(ctx);
        llm_graph_result graph(ctx.get_gf_res_reserve()->get_max_nodes());
        asl_context_access::build_graph(ctx, graph);
        asl_check_graph(graph, n_layer);
    } catch (const std::exception & err) {
        throw asl_error(ASL_ERR_UNSUPPORTED, err.what());
    }
    if (ctx.get_cparams().embeddings) {
        throw asl_error(ASL_ERR_UNSUPPORTED, "the decode context computes embeddings");
    }
    kv_bytes_cell = asl_kv_bytes_cell(ctx, asl_get_kv_cache(ctx));
    if (llama_kv_cache * swa = asl_get_kv_cache_swa(ctx)) {
        kv_bytes_cell_sliding = asl_kv_bytes_cell(ctx, *swa);
    }
    // rope factors that depend on the context length must follow the prompt's length, not the number of cells
    asl_context_access::cparams(ctx).n_ctx_seq = GGML_PAD(n_ctx, 256);
}

asl_session::~asl_session() = default;

void asl_session::begin(const int32_t * tokens, int32_t n_tokens, int32_t n_window, int32_t first_pos) {
    if (n_tokens < 1 || (uint32_t) n_tokens > n_ctx) {
        throw asl_error(ASL_ERR_ARGUMENT, "expected 1 to n_ctx = " + str(n_ctx) + " tokens, got " + str(n_tokens));
    }
    if (n_window < 1) {
        throw asl_error(ASL_ERR_ARGUMENT, "expected a window of at least 1 token, got " + str(n_window));
    }
    if (first_pos < 0 || (uint32_t) first_pos > n_ctx - n_tokens) {
        throw asl_error(ASL_ERR_ARGUMENT, "expected a first position of 0 to " + str(n_ctx - n_tokens) + ", got " + str(first_pos));
    }
    const int32_t n_vocab = ctx.get_model().vocab.n_tokens();
    for (int32_t i = 0; i < n_tokens; ++i) {
        if (tokens[i] < 0 || tokens[i] >= n_vocab) {
            throw asl_error(ASL_ERR_ARGUMENT, "expected token ids 0 to " + str(n_vocab - 1) + ", got " + str(tokens[i]) + " at index " + str(i));
        }
    }
    abort();
    ctx.get_memory()->clear(false);

    llama_context_params cparams = params;
    cparams.n_ctx         = GGML_PAD((uint32_t) n_tokens, 256);
    cparams.n_threads       = ctx.n_threads();
    cparams.n_threads_batch = ctx.n_threads_batch();
    cparams.n_seq_max     = 1;
    cparams.swa_full      = false; // sliding layers have cells for all tokens here anyway: the patch sees to it
    cparams.n_outputs_max = 1;
    cparams.n_outputs_max_per_seq = 0;
    cparams.samplers      = nullptr;
    cparams.n_samplers    = 0;
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
    dequantiser.set_mode(ctx.get_model().devices.empty() ? dequant : ASL_DEQUANT_OFF, ctx.n_threads_batch());

    this->tokens.assign(tokens, tokens + n_tokens);
    this->n_tokens = n_tokens;
    this->n_window = std::min(n_window, n_tokens);
    this->first_pos = first_pos;
    mask.reset(std::min<int32_t>(n_tokens, std::max(ctx.n_ubatch(), prefill->n_ubatch())), n_tokens - 1);
    positions.resize(n_tokens);
    for (int32_t i = 0; i < n_tokens; ++i) {
        positions[i] = first_pos + i;
    }
    hidden.reset(n_embd, 0, n_tokens, asl_hidden_buffer_type(*prefill, (size_t) n_tokens*n_embd*sizeof(float)));
    const size_t n_bytes_hidden = hidden.size_bytes(false); // 0 in host memory: a device waits for them anyway
    inputs.reset(n_bytes_hidden > 0 ? hidden.get_type() : nullptr, n_bytes_hidden);
    kv_bytes_prefill_peak = asl_kv_bytes(*prefill);
    n_work_total = (int64_t) n_tokens*n_layer;
}

int32_t asl_session::check_open(bool layer_ran) const {
    if (!prefill) {
        throw asl_error(ASL_ERR_STATE, "no prefill is open; call asl_session_begin first");
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

void asl_session::set_past(int32_t n_past) {
    check_open(false);
    if (next_layer > 0) {
        throw asl_error(ASL_ERR_STATE, "expected a prefill of which no layer has run, layer " + str(next_layer) + " is next");
    }
    if (n_past < 0 || n_past >= n_tokens) {
        throw asl_error(ASL_ERR_ARGUMENT, "expected 0 to " + str(n_tokens - 1) + " tokens whose K/V are loaded, got " + str(n_past));
    }
    this->n_past = n_past;
    past_ready = false;
    n_window = std::min(n_window, n_tokens - n_past);
    if ((int32_t) weights.size() > n_window) {
        weights.erase(weights.begin(), weights.end() - n_window);
    }
    hidden.reset(n_embd, n_past, n_tokens, hidden.get_type());
    n_work_total = (int64_t) (n_tokens - n_past)*n_layer;
}

void asl_session::run(int32_t n_layers, bool with_scores) {
    check_open(false);
    if (n_layers < 1 || n_layers > n_layer - next_layer) {
        throw asl_error(ASL_ERR_ARGUMENT, "expected 1 to " + str(n_layer - next_layer) + " layers, got " + str(n_layers));
    }
    if (n_past > 0 && (n_layers != 1 || !past_ready)) {
        throw asl_error(ASL_ERR_STATE, "expected the K/V of the first " + str(n_past) + " tokens in layer " + str(next_layer) +
                " (asl_session_load_rows), and that one layer to run");
    }
    past_ready = false;
    for (int32_t i = 0; i < n_layers; ++i) {
        asl_layer_range range;
        range.first = range.last = next_layer;
        run_layer(*prefill, range, with_scores && i == n_layers - 1);
        end_layer(next_layer);
    }
}

// A layer has run, or was loaded.
void asl_session::end_layer(int32_t il) {
    next_layer = il + 1;
    rows_kept.resize(next_layer, 0);
    if (is_sliding(il)) {
        sliding.take(*prefill, ctx, il, positions);
        rows_kept[il] = positions.size();
    }
}

// The cells of the tokens whose K/V were loaded.
void asl_session::take_past_cells() {
    for (int32_t begin = 0; begin < n_past; begin += prefill->n_batch()) {
        const int32_t end = std::min<int32_t>(n_past, begin + prefill->n_batch());
        const std::vector<llama_token> ids(tokens.begin() + begin, tokens.begin() + end);
        if (!plan.get(*prefill, begin, ids, positions.data() + begin).apply()) {
            throw asl_error(ASL_ERR_INTERNAL, "the cells of loaded K/V could not be taken");
        }
    }
}

// All chunks of the current tokens through a range of layers.
void asl_session::run_layer(llama_context & ctx, const asl_layer_range & range, bool with_scores) {
    const int32_t n_current = positions.size();
    const int32_t n_batch   = ctx.n_batch();
    const int32_t n_ubatch  = ctx.n_ubatch();

    has_scores = false;
    scores.clear();
    queries.clear();

    ctx.get_memory()->clear(false);
    dequantiser.next_layer();

    take_past_cells();
    int32_t n_done = n_past;
    while (n_done < n_current) {
        // chunks end where stock llama.cpp ends its ubatches: at every n_ubatch tokens of every n_batch
        const int32_t n_left_batch = n_batch - (n_done - n_past) % n_batch;

        asl_chunk chunk;
        chunk.n_past    = n_done;
        chunk.n_tokens  = std::min({ n_ubatch, n_left_batch, n_current - n_done });
        chunk.n_queries = std::max(0, n_done + chunk.n_tokens - std::max(n_done, n_current - n_window));
        chunk.scores    = with_scores;
        chunk.weights   = weights.empty() ? nullptr : weights.data() + std::max(0, n_done - (n_current - n_window));
        chunk.first     = n_done == n_past;
        chunk.has_gaps  = positions.back() - positions.front() != n_current - 1;
        // after the last layer only the last token is read: of the chunks before it, later ones attend to the K/V
        chunk.rows_only = range.is_last(n_layer) && n_done + chunk.n_tokens < n_current;
        run_chunk(ctx, range, chunk);
        if (!chunk.output.empty()) {
            output = chunk.output;
        }
        if (with_scores) {
            collect(chunk);
        }
        n_done += chunk.n_tokens;
        report_progress((int64_t) chunk.n_tokens*(range.last - range.first + 1));
    }
    ggml_backend_sched_synchronize(ctx.get_sched());
    has_scores = with_scores;
}

// whether the last used cell is this one and holds this position
static bool asl_lies_in(const llama_kv_cache & kv, int32_t cell, llama_pos pos) {
    const auto & cells = kv.get_cells(0);
    return !cells.is_empty(cell) && cells.pos_get(cell) == pos && (int32_t) cells.get_used() == cell + 1;
}

void asl_session::run_chunk(llama_context & ctx, const asl_layer_range & range, asl_chunk & chunk) {
    const int32_t n = chunk.n_tokens;

    std::vector<llama_token> ids(n); // deeper layers read hidden
    for (int32_t i = 0; i < n; ++i) {
        ids[i] = tokens[positions[chunk.n_past + i] - first_pos];
    }
    asl_layer_cutter cutter(ctx, dequantiser, mask, hidden, &ctx == prefill.get() ? &inputs : nullptr, range, chunk);
    int32_t status;
    {
        asl_hook_scope scope(ctx, this->ctx, cutter);
        const bool output = range.is_last(n_layer) && !chunk.rows_only;
        const bool again  = &ctx == prefill.get() && !range.is_last(n_layer);
        status = again ? compute_chunk(ctx, ids, chunk) : decode_chunk(ctx, ids, chunk, output);
    }
    if (!cutter.get_error().empty()) {
        throw asl_error(ASL_ERR_UNSUPPORTED, cutter.get_error());
    }
    if (status == 1) {
        throw asl_error(ASL_ERR_INTERNAL, "no free cells for " + str(positions.size()) + " tokens");
    }
    if (status == 2) {
        throw asl_error(ASL_CANCELLED, "cancelled by the abort callback of the context");
    }
    if (status != 0) {
        throw asl_error(ASL_ERR_COMPUTE, "llama_decode returned " + str(status) + " for layer " + str(range.first));
    }
    // token i of the current tokens must lie in cell i: gathering rows relies on it
    const int32_t i_last = chunk.n_past + n - 1;
    for (const llama_kv_cache * kv : { &asl_get_kv_cache(ctx), asl_get_kv_cache_swa(ctx) }) {
        if (kv && !asl_lies_in(*kv, i_last, positions[i_last])) {
            throw asl_error(ASL_ERR_INTERNAL, "token " + str(i_last) + " does not lie in cell " + str(i_last));
        }
    }
}

int32_t asl_session::decode_chunk(llama_context & ctx, std::vector<llama_token> & ids, const asl_chunk & chunk, bool output) {
    const int32_t n = ids.size();
    llama_seq_id seq_id = 0;

    std::vector<int32_t>        n_seq_id(n, 1);
    std::vector<llama_seq_id *> seq_ids(n, &seq_id);
    std::vector<int8_t>         logits(n, 0);
    logits[n - 1] = output;

    llama_batch batch = {
        /*.n_tokens =*/ n,
        /*.token    =*/ ids.data(),
        /*.embd     =*/ nullptr,
        /*.pos      =*/ positions.data() + chunk.n_past,
        /*.n_seq_id =*/ n_seq_id.data(),
        /*.seq_id   =*/ seq_ids.data(),
        /*.logits   =*/ logits.data(),
    };
    return llama_decode(&ctx, batch);
}

// As decode_chunk without an output, for a chunk whose cells are known from the layer before. Returns its statuses.
int32_t asl_session::compute_chunk(llama_context & ctx, const std::vector<llama_token> & ids, const asl_chunk & chunk) {
    auto & mctx = plan.get(ctx, chunk.n_past, ids, positions.data() + chunk.n_past);
    switch (asl_context_access::process(ctx, mctx)) {
        case GGML_STATUS_SUCCESS: return 0;
        case GGML_STATUS_ABORTED: return 2;
        default:                  return -2;
    }
}

// Scores of the chunk's queries add up: each query sees all its keys, whatever chunk it came with.
void asl_session::collect(const asl_chunk & chunk) {
    if (chunk.n_queries == 0) {
        return;
    }
    const size_t n_current = positions.size();
    scores.resize(chunk.scores_kv.size()*n_current, 0.0f);
    for (size_t h = 0; h < chunk.scores_kv.size(); ++h) {
        const auto & from = chunk.scores_kv[h];
        for (size_t i = 0; i < from.size(); ++i) {
            scores[h*n_current + i] += from[i];
        }
    }
    queries.insert(queries.end(), chunk.queries.begin(), chunk.queries.end());
}

void asl_session::report_progress(int64_t n_done) {
    n_work_done += n_done;
    if (progress && !progress(progress_data, n_work_done, n_work_total)) {
        throw asl_error(ASL_CANCELLED, "cancelled by the progress callback");
    }
}

void asl_session::release() {
    asl_context_access::expect_buffer_sizes(*prefill);
    asl_context_access::expect_buffer_sizes(ctx);
    plan.clear();
    inputs.reset(nullptr, 0);
    prefill.reset();
    dequantiser.release();
    mask.reset(0, 0);
    n_tokens = n_window = first_pos = next_layer = n_past = 0;
    past_ready = false;
    n_work_done = n_work_total = 0;
    has_scores = false;
    for (auto * v : { &tokens, &rows_kept }) {
        std::vector<int32_t>().swap(*v);
    }
    hidden.release();
    for (auto * v : { &output, &scores, &queries, &weights }) {
        std::vector<float>().swap(*v);
    }
    positions.clear();
    cells.clear();
    sliding.clear();
}

void asl_session::abort() {
    if (!prefill) {
        return;
    }
    release();
    ctx.get_memory()->clear(false);
}
