// How a prefill ends: the remaining layers, which keep all rows, and the head.

#include "session.h"

#include "access.h"
#include "cache.h"
#include "cells.h"
#include "memory.h"
#include "pages.h"
#include "support.h"

#include "llama-kv-cache.h"
#include "llama-model.h"

#include <algorithm>

static std::string str(int64_t value) { return std::to_string(value); }

void asl_session::finish() {
    start_finish();
    while (step()) {
    }
}

void asl_session::start_finish() {
    check_open(false);
    for (int32_t il = 0; il < next_layer; ++il) {
        if (rows_kept[il] == 0) {
            throw asl_error(ASL_ERR_STATE, "expected every layer to keep rows, layer " + str(il) + " kept none");
        }
    }
    check_shrunk();
    bool any_full = false;
    for (int32_t il = next_layer; il < n_layer; ++il) {
        any_full |= !keeps_itself(il);
    }
    if (next_layer < n_layer && !past.exists()) {
        check_computed();
    }
    if (any_full) {
        check_room_to_finish();
    }
    bool even = true;
    for (int32_t il = 0; il < next_layer; ++il) {
        even &= !asl_owns_rows(ctx.get_model(), il) || rows_kept[il] == (int32_t) positions.size();
    }
    if (next_layer < n_layer && even && !asl_get_kv_cache_swa(ctx)) {
        // deeper layers hold the same tokens in every head: their cells say which
        cells.assign(positions.begin() + (past.exists() ? n_past : 0), positions.end());
    }
    slices.end_layer = n_layer;
    slices.finishes = true;
}

// The remaining layers keep all rows.
void asl_session::check_room_to_finish() const {
    const int32_t n_current = positions.size();
    const int32_t n_cells = asl_get_kv_cache(ctx).get_size();
    if (past.exists()) {
        check_room(n_current);
    } else if (cells.empty() && n_current > n_cells) {
        throw asl_error(ASL_ERR_ARGUMENT, "expected at most " + str(n_cells) + " tokens (cells of the decode context), got " + str(n_current));
    } else if (!cells.empty() && n_current > (int32_t) cells.size()) {
        throw asl_error(ASL_ERR_STATE, "expected at most " + str(cells.size()) + " current tokens, as many as the first layer kept rows, got " + str(n_current));
    }
}

// The slice after the last layer.
void asl_session::end_finish() {
    if (past.exists()) {
        asl_check_past(past, ctx);
    }
    const std::vector<float> logits = run_head();
    if (!asl_context_access::set_logits(ctx, logits.data())) {
        throw asl_error(ASL_ERR_MEMORY, "cannot allocate room for logits in the decode context");
    }
    if (past.exists()) {
        mark_new_cells();
    } else {
        mark_cells();
    }
    asl_release_unused(ctx);
    asl_context_access::note_prompt(ctx, n_tokens - n_past, ggml_time_us() - started_us);
    release();
}

// The head runs in the prefill context: nothing has changed in the decode context if it fails.
std::vector<float> asl_session::run_head() {
    prefill->get_memory()->clear(false);
    const int32_t n = output.size() / n_hidden;
    hidden.reset(n_hidden, 0, n, ggml_backend_cpu_buffer_type());
    hidden.set(0, n, output.data());

    asl_layer_range range;
    range.first = n_layer;
    range.last = n_layer - 1;
    range.head = true;

    asl_chunk chunk;
    chunk.n_tokens = n;
    const std::vector<llama_pos> last(positions.end() - n, positions.end());
    std::vector<llama_token> ids = ids_at(last);

    asl_layer_cutter cutter(*prefill, dequantiser, attention, mask, hidden, nullptr, range, chunk, parts, nullptr);
    asl_hook_scope scope(*prefill, ctx, cutter);
    const int32_t status = decode_tokens(ids, last.data(), true);
    if (cutter.get_error().empty() && status == 2) {
        throw asl_error(ASL_CANCELLED, "cancelled by the abort callback of the context");
    }
    if (!cutter.get_error().empty() || status != 0) {
        throw asl_error(ASL_ERR_COMPUTE, "the output head failed with " + str(status) + ": " + cutter.get_error());
    }
    const float * values = llama_get_logits_ith(prefill.get(), -1);
    return std::vector<float>(values, values + ctx.get_model().vocab.n_tokens());
}

std::vector<llama_token> asl_session::ids_at(const std::vector<llama_pos> & positions) const {
    std::vector<llama_token> ids;
    for (const llama_pos pos : positions) {
        ids.push_back(tokens[pos - first_pos]);
    }
    return ids;
}

// Tells the decode context which tokens its cells hold.
void asl_session::mark_cells() {
    const int32_t n_rows = cells.size();
    llama_kv_cache * swa = asl_get_kv_cache_swa(ctx);
    // of a whole prompt, stock can go back to any token; of a pruned one, only answers are ever taken back
    const size_t first = swa ? sliding.choose(ctx, positions, n_rows, n_rows < n_tokens) : 0;

    ctx.get_memory()->clear(false);
    asl_mark_cells(ctx, 0, asl_cell_list(0, n_rows).cells, cells, ids_at(cells));
    asl_take_state(ctx, 0, positions.back());
    if (swa) {
        const std::vector<llama_pos> left(positions.begin() + first, positions.end());
        const std::vector<uint32_t> taken = asl_cell_list(0, left.size()).cells;
        asl_mark_cells(*swa, 0, taken, left, ids_at(left));
        sliding.put(ctx, taken, left);
    }
    for (int32_t il = 0; il < n_layer; ++il) {
        if (!keeps_itself(il) && rows_kept[il] < n_rows) {
            asl_set_first_cell(ctx, il, n_rows - rows_kept[il]);
        }
    }
    if (ctx.get_model().hparams.use_alibi) {
        mark_shifts();
    }
}

// A bias that follows positions needs those of each row: a cell stands for the newest of its heads and layers alone.
void asl_session::mark_shifts() {
    std::vector<std::vector<float>> shifts(held.size());
    bool any = false;
    for (size_t il = 0; il < held.size(); ++il) {
        const int32_t n_rows = held[il].positions.size() / ctx.get_model().hparams.n_head_kv(il);
        for (size_t i = 0; i < held[il].positions.size(); ++i) {
            shifts[il].push_back(held[il].positions[i] - cells[held[il].first + i % n_rows]);
            any |= shifts[il].back() != 0.0f;
        }
    }
    for (size_t il = 0; any && il < held.size(); ++il) {
        asl_set_shifts(ctx, il, held[il].first, shifts[il]);
    }
}

// The same after a past, whose cells stay as they are.
void asl_session::mark_new_cells() {
    if (llama_kv_cache * swa = asl_get_kv_cache_swa(ctx)) {
        std::vector<llama_pos> left(positions.begin() + n_past, positions.end());
        left.erase(left.begin(), left.begin() + sliding.choose_new(ctx, left));
        asl_make_sliding_room(ctx, *swa, left, asl_get_kv_cache(ctx).get_size() - past.cells.size() - cells.size());
        const std::vector<uint32_t> taken = asl_take_sliding_cells(ctx, *swa, left);
        sliding.put(ctx, taken, left);
        asl_mark_cells(*swa, 0, taken, left, ids_at(left));
    }
    const std::vector<uint32_t> taken = asl_cell_list(past.first_free, past.first_free + cells.size()).cells;
    asl_mark_cells(ctx, 0, taken, cells, ids_at(cells));
    for (size_t il = 0; il < states.size(); ++il) {
        asl_load_state(ctx, il, past.state.row, states[il].data());
    }
    asl_advance_state(ctx, 0, positions.back());
}
