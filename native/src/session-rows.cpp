// What a session keeps of a layer: K/V rows, tokens, or the whole layer for later.

#include "session.h"

#include "cache.h"
#include "gather.h"
#include "memory.h"
#include "support.h"

#include "llama-context.h"
#include "llama-kv-cache.h"
#include "llama-model.h"

#include <algorithm>
#include <cstring>
#include <numeric>

static std::string str(int64_t value) { return std::to_string(value); }

void asl_session::check_size(size_t expected, size_t n_bytes) {
    if (n_bytes != expected) {
        throw asl_error(ASL_ERR_ARGUMENT, "expected a buffer of " + str(expected) + " bytes, got " + str(n_bytes));
    }
}

// Hidden states are there of computed tokens only.
void asl_session::check_computed() const {
    if (past.exists()) {
        throw asl_error(ASL_ERR_STATE, "not possible after asl_session_extend: the first " + str(n_past) + " tokens have no hidden states");
    }
    if (n_past > 0) {
        throw asl_error(ASL_ERR_STATE, "not possible where K/V were loaded: the first " + str(n_past) + " tokens have no hidden states (asl_session_load_hidden)");
    }
}

// The past of a turn lies in the decode context.
void asl_session::check_begun() const {
    if (past.exists()) {
        throw asl_error(ASL_ERR_STATE, "expected a prefill that asl_session_begin started: after asl_session_extend the past is the decode context's");
    }
}

// It keeps all its rows, in every layer and head.
void asl_session::check_past_kept(const std::vector<int32_t> & lists, int32_t n_rows) const {
    for (size_t begin = 0; past.exists() && begin < lists.size(); begin += n_rows) {
        if (n_rows <= n_past || lists[begin + n_past - 1] != n_past - 1) {
            throw asl_error(ASL_ERR_ARGUMENT, "expected the " + str(n_past) + " tokens of the past to be kept, before new ones");
        }
    }
}

// All layers share their cells.
void asl_session::check_slot() const {
    if (past_ready) {
        throw asl_error(ASL_ERR_STATE, "K/V of layer " + str(next_layer) + " were loaded over those of layer " + str(next_layer - 1));
    }
}

std::vector<int32_t> asl_session::check_index(const int32_t * index, int32_t n_rows, int32_t n_lists) const {
    return check_lists(index, n_rows, n_lists, positions.size(), "token");
}

// Increasing indices below n, the last one of them n - 1.
std::vector<int32_t> asl_session::check_lists(const int32_t * index, int32_t n_rows, int32_t n_lists, int32_t n, const char * what) const {
    if (n_rows < 1 || n_rows > n) {
        throw asl_error(ASL_ERR_ARGUMENT, "expected 1 to " + str(n) + " " + what + "s to keep, got " + str(n_rows));
    }
    std::vector<int32_t> result((size_t) n_lists * n_rows);
    for (int32_t h = 0; h < n_lists; ++h) {
        for (int32_t i = 0; i < n_rows; ++i) {
            const int32_t value = index[(size_t) h * n_rows + i];
            const int32_t floor = i > 0 ? index[(size_t) h * n_rows + i - 1] + 1 : 0;
            if (value < floor || value >= n) {
                throw asl_error(ASL_ERR_ARGUMENT, "expected increasing " + std::string(what) + " indices below " + str(n) + ", got " + str(value) + " at place " + str(i));
            }
            result[(size_t) h * n_rows + i] = value;
        }
        if (result[(size_t) (h + 1) * n_rows - 1] != n - 1) {
            throw asl_error(ASL_ERR_ARGUMENT, "expected the last " + std::string(what) + ", " + str(n - 1) + ", to be kept");
        }
    }
    return result;
}

void asl_session::keep_rows(const int32_t * index, int32_t n_rows, bool per_head) {
    const int32_t il = check_open(true);
    check_slot();
    if (!asl_owns_rows(ctx.get_model(), il)) {
        throw asl_error(ASL_ERR_STATE, "expected a layer with K/V of its own, layer " + str(il) + " has none: nothing is to be kept of it");
    }
    if (is_sliding(il)) {
        throw asl_error(ASL_ERR_STATE, "expected a layer that attends to the whole prompt, layer " + str(il) + " has a sliding window and keeps its K/V by itself");
    }
    const int32_t n_head_kv = ctx.get_model().hparams.n_head_kv(il);
    if (!index && n_rows != (int32_t) positions.size()) {
        throw asl_error(ASL_ERR_ARGUMENT, "expected all " + str(positions.size()) + " rows without an index, got " + str(n_rows));
    }
    check_room(n_rows);
    std::vector<int32_t> all;
    if (!index) {
        all.resize(n_rows);
        std::iota(all.begin(), all.end(), 0);
    }
    const std::vector<int32_t> lists = check_index(index ? index : all.data(), n_rows, index && per_head ? n_head_kv : 1);
    check_past_kept(lists, n_rows);
    copy_rows(il, lists, n_rows);
}

// Whether the decode context has cells for rows of n_rows current tokens.
void asl_session::check_room(int32_t n_rows) const {
    const int32_t n_cells = asl_get_kv_cache(ctx).get_size();
    if (!past.exists()) {
        if (n_rows > n_cells) {
            throw asl_error(ASL_ERR_ARGUMENT, "expected at most " + str(n_cells) + " rows (cells of the decode context), got " + str(n_rows));
        }
        if (!cells.empty() && n_rows > (int32_t) cells.size()) {
            throw asl_error(ASL_ERR_ARGUMENT, "expected at most " + str(cells.size()) + " rows, as in the first layer, got " + str(n_rows));
        }
        return;
    }
    const int32_t n_new = n_rows - n_past;
    if (n_new > n_cells - (int32_t) past.first_free) {
        throw asl_error(ASL_ERR_CELLS, "expected at most " + str(n_cells - (int32_t) past.first_free) + " rows of new tokens (free cells after the past of the decode context), got " + str(n_new));
    }
    if (!cells.empty() && n_new != (int32_t) cells.size()) {
        throw asl_error(ASL_ERR_ARGUMENT, "expected " + str(cells.size()) + " rows of new tokens, as in the first layer, got " + str(n_new) +
                                                  ": after a past, every layer keeps as many");
    }
}

// Rows of the layer that ran last, one list of tokens for all KV heads or one of each, go to their cells.
void asl_session::copy_rows(int32_t il, const std::vector<int32_t> & lists, int32_t n_rows) {
    if (past.exists()) {
        asl_check_past(past, ctx);
    }
    const int32_t n_head_kv = ctx.get_model().hparams.n_head_kv(il);
    const int32_t n_skipped = past.exists() ? n_past : 0; // rows that lie there already
    const int32_t n_new = n_rows - n_skipped;
    const int32_t n_most = cells.empty() ? n_new : (int32_t) cells.size();
    std::vector<int32_t> rows;
    for (int32_t h = 0; h < n_head_kv; ++h) {
        const auto begin = lists.begin() + (lists.size() > (size_t) n_rows ? (size_t) h * n_rows : 0);
        rows.insert(rows.end(), begin + n_skipped, begin + n_rows);
    }
    const int32_t first = n_most - n_new; // fewer rows lie in the last cells
    if (past.exists() && n_rows == (int32_t) positions.size()) {
        asl_copy_cells(*prefill, asl_cell_list(n_past, n_rows), ctx, asl_cell_list(past.first_free, past.first_free + n_new), il);
    } else {
        asl_gather_rows(*prefill, ctx, il, rows, n_new, past.first_free + first);
    }
    rows_kept[il] = n_rows;
    cells.resize(n_most, -1);
    std::vector<llama_pos> row_positions(rows.size());
    std::transform(rows.begin(), rows.end(), row_positions.begin(), [&](int32_t row) { return positions[row]; });
    hold(il, first, n_new, std::move(row_positions));
}

// A cell stands for the newest token that any head keeps in it, so that removing a tail leaves nothing newer;
// every list increases, so these positions do too.
void asl_session::hold(int32_t il, int32_t first, int32_t n_rows, std::vector<llama_pos> row_positions) {
    for (size_t i = 0; i < row_positions.size(); ++i) {
        llama_pos & pos = cells[first + i % n_rows];
        pos = std::max(pos, row_positions[i]);
    }
    held.resize(n_layer);
    held[il] = { first, std::move(row_positions) };
}

void asl_session::shrink_rows(int32_t il, const int32_t * index, int32_t n_rows, bool per_head) {
    check_open(true);
    if (il < 0 || il >= (int32_t) held.size() || held[il].positions.empty()) {
        throw asl_error(ASL_ERR_STATE, "expected a layer that keeps rows (asl_session_keep_rows), layer " + str(il) + " keeps none");
    }
    const asl_held_rows & rows = held[il];
    const int32_t n_head_kv = ctx.get_model().hparams.n_head_kv(il);
    const int32_t n_held = rows.positions.size() / n_head_kv;
    const std::vector<int32_t> lists = check_lists(index, n_rows, per_head ? n_head_kv : 1, n_held, "row");
    const bool begins = std::all_of(held.begin(), held.begin() + il, [](const asl_held_rows & one) { return one.positions.empty(); });
    if (!begins && n_rows > (int32_t) cells.size()) {
        throw asl_error(ASL_ERR_ARGUMENT, "expected at most " + str(cells.size()) + " rows, as in the first layer, got " + str(n_rows));
    }
    if (past.exists()) {
        asl_check_past(past, ctx);
    }
    std::vector<int32_t> from;
    std::vector<llama_pos> row_positions;
    for (int32_t h = 0; h < n_head_kv; ++h) {
        const auto begin = lists.begin() + (per_head ? (size_t) h * n_rows : 0);
        for (auto row = begin; row != begin + n_rows; ++row) {
            from.push_back(past.first_free + rows.first + *row);
            row_positions.push_back(rows.positions[(size_t) h * n_held + *row]);
        }
    }
    if (begins) {
        cells.assign(n_rows, -1);
    }
    const int32_t first = (int32_t) cells.size() - n_rows;
    asl_gather_rows(ctx, ctx, il, from, n_rows, past.first_free + first);
    rows_kept[il] += n_rows - n_held;
    hold(il, first, n_rows, std::move(row_positions));
}

// Where the rows of the first layer were shrunk, so are those of the others: they lie in the last of its cells.
void asl_session::check_shrunk() const {
    for (size_t il = 0; il < held.size(); ++il) {
        if (held[il].positions.empty()) {
            continue;
        }
        const int32_t n_rows = held[il].positions.size() / ctx.get_model().hparams.n_head_kv(il);
        if (held[il].first + n_rows != (int32_t) cells.size()) {
            throw asl_error(ASL_ERR_STATE, "expected rows of layer " + str(il) + " to be shrunk (asl_session_shrink_rows) after those of the first layer");
        }
    }
}

void asl_session::keep_tokens(const int32_t * index, int32_t n_index) {
    check_open(true);
    if (!past.exists()) {
        check_computed();
    }
    if (next_layer == n_layer) {
        throw asl_error(ASL_ERR_STATE, "all layers have run: no deeper layer is left to see fewer tokens");
    }
    if (!asl_can_drop_tokens(ctx.get_model()) && n_index < (int32_t) positions.size()) {
        throw asl_error(ASL_ERR_STATE, "tokens cannot be dropped in this model: the states of its layers decay by position. Rows can (asl_session_keep_rows)");
    }
    const std::vector<int32_t> kept = check_index(index, n_index, 1);
    if (n_index < n_window || kept[n_index - n_window] != (int32_t) positions.size() - n_window) {
        throw asl_error(ASL_ERR_ARGUMENT, "expected the window's " + str(n_window) + " tokens to be kept");
    }
    check_past_kept(kept, n_index);
    hidden.gather(*prefill, std::vector<int32_t>(kept.begin() + n_past, kept.end()));
    compact_shared(kept);
    for (int32_t i = 0; i < n_index; ++i) {
        positions[i] = positions[kept[i]];
    }
    positions.resize(n_index);
    state_ends.clear(); // of all tokens
    forget_chunks();
    has_scores = false;
    n_work_total = n_work_done + (int64_t) (n_index - n_past) * (n_layer - next_layer);
}

// Deeper layers that attend to K/V of layers that have run: those lie in slots that nothing overwrites.
void asl_session::compact_shared(const std::vector<int32_t> & kept) {
    const int32_t first = asl_first_shared(ctx.get_model());
    for (int32_t il = first - 2; first < n_layer && il < first; ++il) {
        if (il < next_layer) {
            asl_compact_rows(*prefill, il, kept);
        }
    }
}

size_t asl_session::row_bytes(int32_t il) const {
    check_open(false);
    if (il < 0 || il >= n_layer) {
        throw asl_error(ASL_ERR_ARGUMENT, "expected a layer from 0 to " + str(n_layer - 1) + ", got " + str(il));
    }
    return asl_owns_rows(ctx.get_model(), il) ? asl_row_bytes(*prefill, il) : 0;
}

size_t asl_session::key_bytes(int32_t il) const {
    return row_bytes(il) > 0 ? asl_key_bytes(*prefill, il) : 0;
}

void asl_session::save_rows(int32_t begin, int32_t end, uint8_t * dst, size_t n_bytes) const {
    const int32_t il = check_open(true);
    check_slot();
    if (!asl_owns_rows(ctx.get_model(), il)) {
        throw asl_error(ASL_ERR_STATE, "expected a layer with K/V of its own, layer " + str(il) + " has none");
    }
    const int32_t n_current = positions.size();
    if (begin < 0 || begin >= end || end > n_current) {
        throw asl_error(ASL_ERR_ARGUMENT, "expected tokens between 0 and " + str(n_current) + ", got " + str(begin) + " to " + str(end));
    }
    check_size((end - begin) * asl_row_bytes(*prefill, il), n_bytes);
    asl_get_rows(*prefill, il, begin, end, dst);
}

void asl_session::load_rows(const uint8_t * src, size_t n_bytes) {
    check_open(false);
    check_begun();
    if (n_past == 0 || next_layer == n_layer) {
        throw asl_error(ASL_ERR_STATE, "expected tokens to load (asl_session_set_past) and a layer left to run, got " + str(n_past) +
                                               " tokens and layer " + str(next_layer) + " of " + str(n_layer));
    }
    if (!asl_owns_rows(ctx.get_model(), next_layer)) {
        throw asl_error(ASL_ERR_STATE, "expected a layer with K/V of its own, layer " + str(next_layer) + " has none");
    }
    check_size(n_past * asl_row_bytes(*prefill, next_layer), n_bytes);
    asl_set_rows(*prefill, next_layer, 0, n_past, src);
    past_ready = true;
}

// The last layer leaves the output of one token.
void asl_session::check_hidden() const {
    check_open(true);
    if (next_layer == n_layer) {
        throw asl_error(ASL_ERR_STATE, "expected a layer left to run: the last one has no hidden states");
    }
}

void asl_session::save_hidden(int32_t begin, int32_t end, float * dst, size_t n_bytes) const {
    check_hidden();
    const int32_t n_current = positions.size();
    if (begin < n_past || begin >= end || end > n_current) {
        throw asl_error(ASL_ERR_ARGUMENT, "expected tokens between " + str(n_past) + " and " + str(n_current) + ", got " + str(begin) + " to " + str(end));
    }
    check_size((size_t) (end - begin) * n_hidden * sizeof(float), n_bytes);
    hidden.get(begin, end, dst);
}

void asl_session::load_hidden(const float * src, size_t n_bytes) {
    check_hidden();
    check_begun();
    if (n_past == 0 || past_ready || state_ready) {
        throw asl_error(ASL_ERR_STATE, "expected tokens whose K/V were loaded (asl_session_set_past) and a layer that ran over the others");
    }
    check_size((size_t) n_past * n_hidden * sizeof(float), n_bytes);
    std::vector<float> computed((size_t) (n_tokens - n_past) * n_hidden);
    hidden.get(n_past, n_tokens, computed.data());
    hidden.reset(n_hidden, 0, n_tokens, hidden.get_type());
    hidden.set(0, n_past, src);
    hidden.set(n_past, n_tokens, computed.data());
    n_past = 0;
    forget_chunks();
    n_work_total = n_work_done + (int64_t) n_tokens * (n_layer - next_layer);
}

size_t asl_session::layer_bytes(int32_t il) const {
    check_open(false);
    if (il < 0 || il >= n_layer) {
        throw asl_error(ASL_ERR_ARGUMENT, "expected a layer from 0 to " + str(n_layer - 1) + ", got " + str(il));
    }
    const size_t n_rows = il == n_layer - 1 ? count_head_rows() : n_tokens;
    return asl_rows_size(*prefill, il, n_tokens) + asl_state_size(*prefill, il) + n_rows * n_hidden * sizeof(float);
}

void asl_session::save_layer(uint8_t * dst, size_t n_bytes) const {
    const int32_t il = check_open(true);
    check_computed();
    check_size(layer_bytes(il), n_bytes);
    if ((int32_t) positions.size() != n_tokens) {
        throw asl_error(ASL_ERR_STATE, "expected all " + str(n_tokens) + " tokens to be current, " + str(positions.size()) + " are left");
    }
    if (const size_t n_row_bytes = asl_rows_size(*prefill, il, n_tokens)) {
        asl_get_rows(*prefill, il, 0, n_tokens, dst);
        dst += n_row_bytes;
    }
    asl_save_state(*prefill, il, 0, dst);
    dst += asl_state_size(*prefill, il);
    if (il == n_layer - 1) {
        memcpy(dst, output.data(), output.size() * sizeof(float));
    } else {
        hidden.get(0, n_tokens, (float *) dst);
    }
}

void asl_session::load_layer(int32_t il, const uint8_t * src, size_t n_bytes) {
    check_open(false);
    check_computed();
    check_size(layer_bytes(il), n_bytes);
    if (il < next_layer || (int32_t) positions.size() != n_tokens) {
        throw asl_error(ASL_ERR_STATE, "expected a layer that has not run, with no token dropped; layer " + str(next_layer) +
                                               " is next and " + str(positions.size()) + " of " + str(n_tokens) + " tokens are current");
    }
    const int32_t owner = asl_first_shared(ctx.get_model()) - 2;
    if (asl_first_shared(ctx.get_model()) < n_layer && il > next_layer && il > owner) {
        throw asl_error(ASL_ERR_STATE, "expected layer " + str(next_layer) + " to be loaded first: from layer " + str(owner) + " on, deeper layers attend to its K/V");
    }
    if (const size_t n_row_bytes = asl_rows_size(*prefill, il, n_tokens)) {
        asl_set_rows(*prefill, il, 0, n_tokens, src);
        src += n_row_bytes;
    }
    asl_load_state(*prefill, il, 0, src);
    src += asl_state_size(*prefill, il);
    if (il == n_layer - 1) {
        output.resize((size_t) count_head_rows() * n_hidden);
        memcpy(output.data(), src, output.size() * sizeof(float));
    } else {
        hidden.set(0, n_tokens, (const float *) src);
    }

    n_work_done += (int64_t) n_tokens * (il + 1 - next_layer);
    end_layer(il);
    has_scores = false;
}
