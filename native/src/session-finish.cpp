// How a prefill ends: the remaining layers or the head in the decode context.

#include "session.h"

#include "access.h"
#include "cache.h"
#include "pages.h"

#include "llama-batch.h"
#include "llama-kv-cache.h"
#include "llama-model.h"

#include <algorithm>

static std::string str(int64_t value) { return std::to_string(value); }

void asl_session::finish() {
    check_open(false);
    const int32_t n_current = positions.size();
    for (int32_t il = 0; il < next_layer; ++il) {
        if (rows_kept[il] == 0) {
            throw asl_error(ASL_ERR_STATE, "expected every layer to keep rows, layer " + str(il) + " kept none");
        }
    }
    if (next_layer < n_layer) {
        check_computed();
    }
    const bool even = std::all_of(rows_kept.begin(), rows_kept.end(), [n_current](int32_t n) { return n == n_current; });
    if (next_layer < n_layer && even && !asl_get_kv_cache_swa(ctx)) {
        finish_layers();
    } else {
        finish_uneven();
        mark_cells();
        run_head();
    }
    asl_release_unused(ctx);
    release();
}

// The remaining layers, where earlier ones kept other numbers of rows than there are current tokens.
void asl_session::finish_uneven() {
    const int32_t n_current = positions.size();
    bool any_full = false;
    for (int32_t il = next_layer; il < n_layer; ++il) {
        any_full |= !is_sliding(il);
    }
    if (any_full && !cells.empty() && n_current > (int32_t) cells.size()) {
        throw asl_error(ASL_ERR_STATE, "expected at most " + str(cells.size()) + " current tokens, as many as the first layer kept rows, got " + str(n_current));
    }
    while (next_layer < n_layer) {
        run(1, false);
        if (!is_sliding(next_layer - 1)) {
            keep_rows(nullptr, n_current, false);
        }
    }
}

void asl_session::finish_layers() {
    const int32_t n_current = positions.size();
    if ((uint32_t) n_current > asl_get_kv_cache(ctx).get_size()) {
        throw asl_error(ASL_ERR_ARGUMENT, "expected at most " + str(asl_get_kv_cache(ctx).get_size()) + " tokens (cells of the decode context), got " + str(n_current));
    }
    asl_layer_range range;
    range.head = true;
    range.last = n_layer - 1;
    if (dequantiser.enabled()) {
        // weights are expanded for one layer at a time
        for (; next_layer < n_layer - 1; ++next_layer) {
            asl_layer_range one;
            one.first = one.last = next_layer;
            run_layer(ctx, one, false);
        }
    }
    range.first = next_layer;
    run_layer(ctx, range, false);
    next_layer = n_layer;
}

// Tells the decode context which tokens its cells hold, all but the last, which run_head adds.
void asl_session::mark_cells() {
    const int32_t n_rows = cells.size();
    llama_kv_cache * swa = asl_get_kv_cache_swa(ctx);
    // of a whole prompt, stock can go back to any token; of a pruned one, only answers are ever taken back
    const size_t first = swa ? sliding.choose(ctx, positions, n_rows, n_rows < n_tokens) : 0;

    ctx.get_memory()->clear(false);
    mark_cells(asl_get_kv_cache(ctx), cells);
    if (swa) {
        const std::vector<llama_pos> left(positions.begin() + first, positions.end());
        mark_cells(*swa, left);
        sliding.put(ctx, left);
    }
    for (int32_t il = 0; il < n_layer; ++il) {
        if (!is_sliding(il)) {
            asl_set_first_cell(ctx, il, n_rows - rows_kept[il]);
        }
    }
}

// Adds cells for tokens at these positions to the cell map of an empty cache, but for the last one, without computing
// anything.
void asl_session::mark_cells(llama_kv_cache & kv, const std::vector<llama_pos> & positions) {
    const int32_t n = (int32_t) positions.size() - 1;
    for (int32_t begin = 0; begin < n; begin += ctx.n_batch()) {
        const int32_t end = std::min<int32_t>(n, begin + ctx.n_batch());
        std::vector<llama_token> ids;
        for (int32_t i = begin; i < end; ++i) {
            ids.push_back(tokens[positions[i] - first_pos]);
        }
        if (!asl_place_tokens(ctx, kv, ids, positions.data() + begin)->apply()) {
            throw asl_error(ASL_ERR_INTERNAL, "the cells of the kept tokens could not be taken");
        }
    }
}

void asl_session::run_head() {
    const llama_pos last = positions.back();
    hidden.reset(n_embd, 0, 1, ggml_backend_cpu_buffer_type());
    hidden.set(0, 1, output.data());
    positions.assign(1, last);

    asl_layer_range range;
    range.first = n_layer;
    range.last  = n_layer - 1;
    range.head  = true;

    asl_chunk chunk;
    chunk.n_tokens = 1;

    int32_t n_seq_id = 1;
    llama_seq_id seq_id = 0;
    llama_seq_id * seq_ids = &seq_id;
    int8_t logits = 1;
    llama_batch batch = { 1, &tokens.back(), nullptr, positions.data(), &n_seq_id, &seq_ids, &logits };

    asl_layer_cutter cutter(ctx, dequantiser, mask, hidden, nullptr, range, chunk);
    asl_hook_scope scope(ctx, ctx, cutter);
    const int32_t status = llama_decode(&ctx, batch);
    if (cutter.get_error().empty() && status == 2) {
        throw asl_error(ASL_CANCELLED, "cancelled by the abort callback of the context");
    }
    if (!cutter.get_error().empty() || status != 0) {
        throw asl_error(ASL_ERR_COMPUTE, "the output head failed with " + str(status) + ": " + cutter.get_error());
    }
}
