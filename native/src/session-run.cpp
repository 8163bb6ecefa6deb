// How layers run: in slices, so that other contexts may decode between two of them.

#include "session.h"

#include "access.h"
#include "cache.h"
#include "memory.h"
#include "support.h"

#include "llama-kv-cache.h"

#include <algorithm>
#include <numeric>

static std::string str(int64_t value) { return std::to_string(value); }

void asl_session::start(int32_t n_layers, bool with_scores) {
    check_open(false);
    if (n_layers < 1 || n_layers > n_layer - next_layer) {
        throw asl_error(ASL_ERR_ARGUMENT, "expected 1 to " + str(n_layer - next_layer) + " layers, got " + str(n_layers));
    }
    if (n_past > 0 && !past.exists() && (n_layers != 1 || !is_loaded())) {
        throw asl_error(ASL_ERR_STATE, "expected the K/V of the first " + str(n_past) + " tokens in layer " + str(next_layer) +
                                               " (asl_session_load_rows, asl_session_load_state), and that one layer to run");
    }
    if (with_scores && !asl_has_attention(ctx.get_model(), next_layer + n_layers - 1)) {
        throw asl_error(ASL_ERR_STATE, "expected a layer with attention to be scored, layer " + str(next_layer + n_layers - 1) + " has none");
    }
    past_ready = state_ready = false;
    slices.end_layer = next_layer + n_layers;
    slices.with_scores = with_scores;
}

bool asl_session::is_loaded() const {
    return (past_ready || !asl_owns_rows(ctx.get_model(), next_layer)) && (state_ready || asl_state_size(*prefill, next_layer) == 0);
}

void asl_session::run(int32_t n_layers, bool with_scores) {
    start(n_layers, with_scores);
    while (step()) {
    }
}

bool asl_session::step() {
    if (!slices.is_open()) {
        throw asl_error(ASL_ERR_STATE, "no slice is left to run; call asl_session_start or asl_session_start_finish first");
    }
    if (slices.finishes) {
        asl_context_access::copy_abort_callback(ctx, *prefill);
    }
    if (next_layer == slices.end_layer) {
        end_finish();
        return false;
    }
    if (run_slice()) {
        end_layer(next_layer);
    }
    const bool more = next_layer < slices.end_layer || slices.finishes;
    if (!more) {
        slices = asl_slices();
    }
    return more;
}

// Returns whether the layer has run.
bool asl_session::run_slice() {
    if (slices.n_done < 0) {
        begin_layer();
    }
    asl_layer_range range;
    range.first = range.last = next_layer;

    asl_chunk chunk = next_chunk();
    run_chunk(range, chunk);
    if (!chunk.output.empty()) {
        output = chunk.output;
    }
    if (chunk.scores) {
        collect(chunk);
    }
    slices.n_done += chunk.n_tokens;
    note_state();
    report_progress(chunk.n_tokens);
    if (slices.n_done < (int32_t) positions.size()) {
        return false;
    }
    ggml_backend_sched_synchronize(prefill->get_sched());
    has_scores = chunk.scores;
    // the next layer finds the tokens in their cells. Those of a later chunk hide behind the causal mask, as empty ones do;
    // states and K/V of a past come from elsewhere for each layer
    is_placed = n_past == 0 && !asl_has_states(*prefill) && asl_context_access::reuses_graphs(*prefill);
    return true;
}

void asl_session::begin_layer() {
    has_scores = false;
    scores.clear();
    queries.clear();
    states_noted.clear();

    dequantiser.next_layer((int64_t) positions.size() - n_past);
    slices.n_done = n_past;
    is_placed = is_placed && next_layer < n_layer - 1; // whose tokens llama_decode places
    if (is_placed) {
        return;
    }
    prefill->get_memory()->clear(false);
    if (past.exists()) {
        asl_load_past(past, ctx, *prefill, next_layer);
        asl_mark_past(past, *prefill);
    } else {
        take_past_cells();
    }
}

// A layer has run, or was loaded.
void asl_session::end_layer(int32_t il) {
    next_layer = il + 1;
    slices.n_done = -1;
    rows_kept.resize(next_layer, 0);
    keep_state(il);
    if (is_sliding(il)) {
        if (past.exists()) {
            sliding.take_new(*prefill, ctx, il, positions, n_past);
        } else {
            sliding.take(*prefill, ctx, il, positions);
        }
    }
    if (keeps_itself(il)) {
        rows_kept[il] = positions.size();
    } else if (slices.finishes) {
        std::vector<int32_t> all(positions.size());
        std::iota(all.begin(), all.end(), 0);
        copy_rows(il, all, all.size());
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

// Chunks end where stock llama.cpp ends its ubatches: at every n_ubatch tokens of every n_batch; and where states are noted.
int32_t asl_session::chunk_size(int32_t n_done) const {
    const int32_t n_batch = prefill->n_batch();
    const int32_t n_left_batch = n_batch - (n_done - n_past) % n_batch;
    const auto end = std::upper_bound(state_ends.begin(), state_ends.end(), n_done);
    const int32_t n_left_state = end == state_ends.end() ? n_tokens : *end - n_done;
    return std::min({ (int32_t) prefill->n_ubatch(), n_left_batch, n_left_state, (int32_t) positions.size() - n_done });
}

// Rows that the last chunk leaves for the head.
int32_t asl_session::count_head_rows() const {
    int32_t n_done = n_past;
    while (n_done + chunk_size(n_done) < (int32_t) positions.size()) {
        n_done += chunk_size(n_done);
    }
    return asl_n_head_rows(ctx.get_model(), chunk_size(n_done));
}

asl_chunk asl_session::next_chunk() const {
    const int32_t n_current = positions.size();
    const int32_t n_done = slices.n_done;

    asl_chunk chunk;
    chunk.n_past = n_done;
    chunk.n_tokens = chunk_size(n_done);
    chunk.n_queries = std::max(0, n_done + chunk.n_tokens - std::max(n_done, n_current - n_window));
    chunk.scores = slices.with_scores && next_layer == slices.end_layer - 1;
    chunk.by_indexer = by_indexer;
    chunk.weights = weights.empty() ? nullptr : weights.data() + std::max(0, n_done - (n_current - n_window));
    chunk.first = n_done == n_past;
    // of a past that was pruned, sliding layers must know the positions
    chunk.has_gaps = positions.back() - positions.front() != n_current - 1 || past.exists();
    // after the last layer only the last token is read: of the chunks before it, later ones attend to the K/V
    chunk.rows_only = next_layer == n_layer - 1 && n_done + chunk.n_tokens < n_current;
    return chunk;
}

// whether this cell holds this position, and as many cells are used
static bool asl_lies_in(const llama_kv_cache & kv, int32_t cell, llama_pos pos, int32_t n_used) {
    const auto & cells = kv.get_cells(0);
    return !cells.is_empty(cell) && cells.pos_get(cell) == pos && (int32_t) cells.get_used() == n_used;
}

void asl_session::run_chunk(const asl_layer_range & range, asl_chunk & chunk) {
    const int32_t n = chunk.n_tokens;

    std::vector<llama_token> ids(n); // deeper layers read hidden
    for (int32_t i = 0; i < n; ++i) {
        ids[i] = tokens[positions[chunk.n_past + i] - first_pos];
    }
    if (chunk.has_gaps) {
        asl_advance_state(*prefill, 0, -1); // else llama.cpp prints a warning for each gap
    }
    const bool last = range.is_last(n_layer);
    asl_full_graph * full = last ? nullptr : &graphs.get(chunk.n_past, asl_context_access::max_nodes(*prefill));
    asl_layer_cutter cutter(*prefill, dequantiser, attention, mask, hidden, &inputs, range, chunk, parts, full);
    int32_t status;
    {
        asl_hook_scope scope(*prefill, ctx, cutter);
        status = last ? decode_tokens(ids, positions.data() + chunk.n_past, !chunk.rows_only) : compute_chunk(ids, chunk, *full, cutter);
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
    for (const llama_kv_cache * kv : { &asl_get_kv_cache(*prefill), asl_get_kv_cache_swa(*prefill), asl_get_kv_cache_indexer(*prefill) }) {
        if (kv && !asl_lies_in(*kv, i_last, positions[i_last], is_placed ? positions.size() : i_last + 1)) {
            throw asl_error(ASL_ERR_INTERNAL, "token " + str(i_last) + " does not lie in cell " + str(i_last));
        }
    }
}

// output: whether the last token has logits
int32_t asl_session::decode_tokens(std::vector<llama_token> & ids, const llama_pos * positions, bool output) {
    const int32_t n = ids.size();
    llama_seq_id seq_id = 0;

    std::vector<int32_t> n_seq_id(n, 1);
    std::vector<llama_seq_id *> seq_ids(n, &seq_id);
    std::vector<int8_t> logits(n, 0);
    logits[n - 1] = output;

    llama_batch batch = {
        /*.n_tokens =*/n,
        /*.token    =*/ids.data(),
        /*.embd     =*/nullptr,
        /*.pos      =*/const_cast<llama_pos *>(positions),
        /*.n_seq_id =*/n_seq_id.data(),
        /*.seq_id   =*/seq_ids.data(),
        /*.logits   =*/logits.data(),
    };
    return llama_decode(prefill.get(), batch);
}

// As decode_tokens without an output, for a chunk whose cells are known from the layer before. Returns its statuses.
int32_t asl_session::compute_chunk(const std::vector<llama_token> & ids, const asl_chunk & chunk, asl_full_graph & full, asl_layer_cutter & cutter) {
    const int64_t started_us = asl_thread_us();
    auto & mctx = plan.get(*prefill, chunk.n_past, ids, positions.data() + chunk.n_past);
    const ggml_status status = asl_context_access::process(*prefill, mctx, is_placed, full, cutter, parts);
    parts.host_us += asl_thread_us() - started_us - cutter.get_prepare_us();
    ++parts.n;
    switch (status) {
    case GGML_STATUS_SUCCESS:
        return 0;
    case GGML_STATUS_ABORTED:
        return 2;
    default:
        return -2;
    }
}

// Scores of the chunk's queries add up: each query sees all its keys, whatever chunk it came with.
void asl_session::collect(const asl_chunk & chunk) {
    if (chunk.n_queries == 0) {
        return;
    }
    const size_t n_current = positions.size();
    scores.resize(chunk.scores_kv.size() * n_current, 0.0f);
    for (size_t h = 0; h < chunk.scores_kv.size(); ++h) {
        const auto & from = chunk.scores_kv[h];
        for (size_t i = 0; i < from.size(); ++i) {
            scores[h * n_current + i] += from[i];
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
