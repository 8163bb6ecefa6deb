#include "move.h"

#include "access.h"
#include "cache.h"
#include "cells.h"
#include "error.h"
#include "gather.h"
#include "memory.h"
#include "support.h"

#include "llama-context.h"
#include "llama-kv-cache.h"
#include "llama-model.h"

#include <algorithm>

static std::string str(int64_t value) { return std::to_string(value); }

[[noreturn]] static void refuse(const std::string & what) {
    throw asl_error(ASL_ERR_ARGUMENT, what);
}

// What goes from one cache to another: all layers of a cache have the same cells.
struct cache_move {
    llama_kv_cache * src;
    llama_kv_cache * dst;

    asl_cell_list from;
    asl_cell_list to;
    std::vector<llama_pos> positions;
    std::vector<llama_token> ids;
};

static bool is_empty(const llama_kv_cache & kv, int32_t seq_id) {
    return kv.get_cells(seq_id).seq_pos_get(seq_id).empty();
}

static void check_sequence(const llama_context & ctx, int32_t seq_id) {
    if (seq_id < 0 || seq_id >= (int32_t) ctx.n_seq_max()) {
        refuse("expected a sequence from 0 to " + str((int64_t) ctx.n_seq_max() - 1) + ", got " + str(seq_id));
    }
}

static void check_even(llama_context & ctx, const char * name) {
    for (uint32_t il = 0; il < ctx.get_model().hparams.n_layer(); ++il) {
        if (asl_owns_rows(ctx.get_model(), il) && asl_get_first_cell(ctx, il) > 0) {
            refuse(std::string("expected layers that keep equal numbers of rows in ") + name + ", layer " + str(il) +
                    " keeps fewer: cells of such a layout cannot be shared; use a policy that keeps as many rows in every layer");
        }
    }
}

// Latent attention stores no V.
static std::string get_types(const asl_kv_layer & layer) {
    return ggml_type_name(layer.k->type) + std::string(" and ") + ggml_type_name(layer.v ? layer.v->type : layer.k->type);
}

static void check_contexts(llama_context & src, int32_t src_seq_id, llama_context & dst, int32_t seq_id) {
    if (&src == &dst) {
        refuse("expected two contexts, got the same one twice");
    }
    if (&src.get_model() != &dst.get_model()) {
        refuse("expected two contexts of one model, got contexts of two");
    }
    if (src.get_model().hparams.use_alibi) {
        refuse("expected a model without ALiBi: where rows stand belongs to the cells of one context");
    }
    check_sequence(src, src_seq_id);
    check_sequence(dst, seq_id);
    const llama_kv_cache & a = asl_get_any_kv_cache(src);
    if (is_empty(a, src_seq_id)) {
        refuse("expected a sequence with tokens to move, got sequence " + str(src_seq_id) + " without");
    }
    const int32_t il = asl_first_layer(src.get_model(), false);
    const asl_kv_layer of_src = asl_get_kv_layer(src, il);
    const asl_kv_layer of_dst = asl_get_kv_layer(dst, il);
    if (get_types(of_src) != get_types(of_dst)) {
        refuse("expected K and V of types " + get_types(of_dst) + " as in the other context, got " + get_types(of_src));
    }
    if (of_src.v_trans != of_dst.v_trans) {
        refuse("expected flash attention in both contexts or in none: V is stored in another form");
    }
    if (asl_has_states(src) && (src.get_cparams().n_rs_seq > 0 || dst.get_cparams().n_rs_seq > 0)) {
        refuse("expected contexts without snapshots of recurrent states (n_rs_seq)");
    }
    check_even(src, "the context that was prefilled");
    check_even(dst, "the context that takes the cells");
}

// The cells of a sequence of src in the order of its tokens, and those that they are to take. `first_pos`: older ones stay
// behind.
static cache_move plan(llama_kv_cache & src, int32_t src_seq_id, llama_kv_cache & dst, int32_t seq_id, llama_pos first_pos) {
    cache_move move = { &src, &dst, {}, {}, {}, {} };
    const auto & cells = src.get_cells(src_seq_id);
    for (uint32_t i = 0; i < cells.used_max_p1(); ++i) {
        if (!cells.is_empty(i) && cells.seq_has(i, src_seq_id) && cells.pos_get(i) >= first_pos) {
            move.from.cells.push_back(i);
        }
    }
    std::sort(move.from.cells.begin(), move.from.cells.end(), [&](uint32_t a, uint32_t b) { return cells.pos_get(a) < cells.pos_get(b); });
    for (const uint32_t i : move.from.cells) {
        move.positions.push_back(cells.pos_get(i));
        move.ids.push_back(cells.ext_get(i).tok);
    }
    move.from.stream = src.get_stream(src_seq_id);
    move.to.stream = dst.get_stream(seq_id);
    move.to.cells = asl_find_cells(dst, seq_id, move.from.cells.size());
    return move;
}

// The oldest position that the next token sees through a sliding window.
static llama_pos find_seen(const llama_model & model, const llama_kv_cells & cells, int32_t seq_id) {
    const llama_pos next = cells.seq_pos_max(seq_id) + 1;
    llama_pos first = next - 1;
    while (first > 0 && !llama_hparams::is_masked_swa(model.hparams.n_swa, model.hparams.swa_type, first - 1, next)) {
        --first;
    }
    return first;
}

static void check_room(const cache_move & move, int32_t seq_id, const char * which) {
    if (move.to.cells.size() < move.from.cells.size()) {
        const auto & cells = move.dst->get_cells(seq_id);
        throw asl_error(ASL_ERR_CELLS, "expected " + str(move.from.cells.size()) + " free cells" + which + " for sequence " + str(seq_id) +
                                               ", found " + str(cells.size() - cells.get_used()) + "; remove other sequences first or create the context with more cells");
    }
}

static std::vector<cache_move> plan_all(llama_context & src, int32_t src_seq_id, llama_context & dst, int32_t seq_id) {
    llama_kv_cache & to = asl_get_any_kv_cache(dst);
    std::vector<cache_move> moves;
    moves.push_back(plan(asl_get_any_kv_cache(src), src_seq_id, to, seq_id, 0));
    check_room(moves[0], seq_id, "");
    if (llama_kv_cache * swa = asl_get_kv_cache_swa(src)) {
        llama_kv_cache & to_swa = *asl_get_kv_cache_swa(dst);
        const auto & cells = to_swa.get_cells(seq_id);
        moves.push_back(plan(*swa, src_seq_id, to_swa, seq_id, 0));
        if (moves[1].from.cells.size() > cells.size() - cells.get_used()) {
            // no cell that another sequence may still be taken back to is overwritten for one that nobody will see
            moves[1] = plan(*swa, src_seq_id, to_swa, seq_id, find_seen(src.get_model(), swa->get_cells(src_seq_id), src_seq_id));
        }
        check_room(moves[1], seq_id, " of sliding layers");
    }
    return moves;
}

static void move_state(llama_context & src, int32_t src_seq_id, llama_context & dst, int32_t seq_id) {
    const asl_state_cell state = asl_find_state(src, src_seq_id);
    if (state.row == ASL_NONE) {
        return;
    }
    const int32_t row = asl_take_state(dst, seq_id, state.pos);
    for (uint32_t il = 0; il < src.get_model().hparams.n_layer(); ++il) {
        asl_copy_state(src, state.row, dst, row, il);
    }
}

void asl_move_cells(llama_context & src, int32_t src_seq_id, llama_context & dst, int32_t seq_id, bool with_logits) {
    check_contexts(src, src_seq_id, dst, seq_id);
    llama_kv_cache * to_swa = asl_get_kv_cache_swa(dst);
    if (!is_empty(asl_get_any_kv_cache(dst), seq_id) || (to_swa && !is_empty(*to_swa, seq_id))) {
        refuse("expected an empty sequence " + str(seq_id) + "; remove its cells first (llama_memory_seq_rm)");
    }
    const float * logits = with_logits ? asl_context_access::get_last_logits(src) : nullptr;
    if (with_logits && !logits) {
        refuse("expected logits in the context that was prefilled, it has none");
    }
    // rows that wait to be rotated or copied at the next decode
    src.memory_update(false);
    dst.memory_update(false);
    const std::vector<cache_move> moves = plan_all(src, src_seq_id, dst, seq_id);
    src.synchronize();
    dst.synchronize();
    if (logits && !asl_context_access::set_logits(dst, logits)) {
        throw asl_error(ASL_ERR_MEMORY, "cannot allocate room for logits");
    }
    move_state(src, src_seq_id, dst, seq_id);
    for (const cache_move & move : moves) {
        for (const uint32_t il : move.src->get_layer_ids()) {
            asl_copy_cells(src, move.from, dst, move.to, il);
        }
        if (move.dst == to_swa) {
            asl_mark_cells(*move.dst, seq_id, move.to.cells, move.positions, move.ids);
        } else {
            asl_mark_cells(dst, seq_id, move.to.cells, move.positions, move.ids);
        }
    }
}

int32_t asl_count_free_cells(llama_context & ctx, int32_t seq_id) {
    check_sequence(ctx, seq_id);
    const auto & cells = asl_get_any_kv_cache(ctx).get_cells(seq_id);
    return cells.size() - cells.get_used();
}
