#include "past.h"

#include "cache.h"
#include "cells.h"
#include "error.h"
#include "support.h"

#include "llama-context.h"
#include "llama-kv-cache.h"
#include "llama-model.h"

#include <algorithm>
#include <numeric>
#include <string>

static std::string str(int64_t value) { return std::to_string(value); }

static std::vector<uint32_t> find_used(const llama_kv_cache & kv) {
    const auto & cells = kv.get_cells(0);
    std::vector<uint32_t> used;
    for (uint32_t i = 0; i < cells.used_max_p1(); ++i) {
        if (cells.is_empty(i)) {
            continue;
        }
        if (!cells.seq_has(i, 0) || cells.seq_count(i) != 1) {
            throw asl_error(ASL_ERR_STATE, "expected a decode context that holds sequence 0 alone, cell " + str(i) + " is of another sequence");
        }
        used.push_back(i);
    }
    return used;
}

// Their newest ones: where turns keep fewer rows than tokens, sliding layers hold more cells than there is room for.
static void take_sliding(asl_past & past, const llama_kv_cells & cells, const std::vector<uint32_t> & used) {
    std::vector<llama_pos> newest;
    for (const uint32_t cell : used) {
        newest.push_back(cells.pos_get(cell));
    }
    std::sort(newest.begin(), newest.end());
    const size_t n = past.cells.size();
    const llama_pos first = newest.size() > n ? newest[newest.size() - n] : 0;
    for (const uint32_t cell : used) {
        if (cells.pos_get(cell) >= first) {
            past.sliding_cells.push_back(cell);
            past.sliding_positions.push_back(cells.pos_get(cell));
        }
    }
}

asl_past asl_read_past(llama_context & ctx) {
    ctx.memory_update(false); // rows that wait to be rotated
    const llama_kv_cache & kv = asl_get_kv_cache(ctx);
    asl_past past;
    past.cells = find_used(kv);
    if (past.cells.empty()) {
        throw asl_error(ASL_ERR_STATE, "expected a decode context that holds tokens, got an empty one; call asl_session_begin");
    }
    for (uint32_t il = 0; il < ctx.get_model().hparams.n_layer(); ++il) {
        if (asl_owns_rows(ctx.get_model(), il) && asl_get_first_cell(ctx, il) > 0) {
            throw asl_error(ASL_ERR_STATE, "expected a past that keeps equal numbers of rows in every layer, layer " + str(il) +
                                                   " keeps fewer; decode the turn, or prefill it all again");
        }
    }
    past.first_free = past.cells.back() + 1;
    past.next_pos = kv.get_cells(0).seq_pos_max(0) + 1;
    const size_t n = past.cells.size();
    if (past.next_pos < (llama_pos) n) {
        throw asl_error(ASL_ERR_STATE, "expected a past whose tokens stand at positions of their own, got " + str(n) + " cells before position " + str(past.next_pos));
    }
    if (const llama_kv_cache * swa = asl_get_kv_cache_swa(ctx)) {
        take_sliding(past, swa->get_cells(0), find_used(*swa));
    }
    if (asl_has_states(ctx)) {
        past.state = asl_find_state(ctx, 0);
        if (past.state.row == ASL_NONE || past.state.is_shared || past.state.pos + 1 != past.next_pos) {
            throw asl_error(ASL_ERR_STATE, "expected the recurrent states of sequence 0 alone after position " + str(past.next_pos - 1) +
                                                   ", got " + (past.state.is_shared ? "some that it shares" : "those after position " + str(past.state.pos)));
        }
    }
    return past;
}

void asl_check_past(const asl_past & past, llama_context & ctx) {
    const auto & cells = asl_get_kv_cache(ctx).get_cells(0);
    if (cells.get_used() != past.cells.size() || cells.used_max_p1() != past.first_free || cells.seq_pos_max(0) + 1 != past.next_pos) {
        throw asl_error(ASL_ERR_INTERNAL, "the decode context was used during the prefill that extends what it holds");
    }
}

void asl_load_past(const asl_past & past, llama_context & ctx, llama_context & prefill, int32_t il) {
    asl_copy_state(ctx, past.state.row, prefill, 0, il);
    if (!asl_owns_rows(ctx.get_model(), il)) {
        return;
    }
    const auto & from = asl_is_sliding(ctx.get_model(), il) ? past.sliding_cells : past.cells;
    const uint32_t n = past.cells.size();
    asl_copy_cells(ctx, from, prefill, asl_cell_list(n - from.size(), n), il);
}

void asl_mark_past(const asl_past & past, llama_context & prefill) {
    const uint32_t n = past.cells.size();
    std::vector<llama_pos> positions(n);
    std::iota(positions.begin(), positions.end(), past.next_pos - (llama_pos) n);
    const std::vector<llama_token> ids(n, 0);
    asl_mark_cells(prefill, 0, asl_cell_list(0, n).cells, positions, ids);
    asl_take_state(prefill, 0, past.next_pos - 1);
    if (llama_kv_cache * swa = asl_get_kv_cache_swa(prefill)) {
        // new tokens lie in the same cells of both caches: those in front are of a sequence that nobody sees
        const uint32_t first = n - past.sliding_cells.size();
        asl_mark_cells(*swa, 1, asl_cell_list(0, first).cells, std::vector<llama_pos>(positions.begin(), positions.begin() + first), ids);
        asl_mark_cells(*swa, 0, asl_cell_list(first, n).cells, past.sliding_positions, ids);
    }
}
