#include "sliding.h"

#include "cache.h"
#include "cells.h"
#include "error.h"
#include "gather.h"

#include "llama-context.h"
#include "llama-hparams.h"
#include "llama-kv-cache.h"
#include "llama-model.h"

#include <algorithm>
#include <cstring>
#include <numeric>

// The first of these positions that the token after them sees; the others follow it.
static size_t find_seen(const llama_hparams & hparams, const std::vector<llama_pos> & positions) {
    size_t first = 0;
    while (first + 1 < positions.size() && llama_hparams::is_masked_swa(hparams.n_swa, hparams.swa_type, positions[first], positions.back() + 1)) {
        ++first;
    }
    return first;
}

void asl_sliding_rows::take(llama_context & src, llama_context & dst, int32_t il, const std::vector<llama_pos> & positions) {
    const llama_hparams & hparams = src.get_model().hparams;
    const size_t n = positions.size();
    const bool all = n <= asl_get_kv_cache_swa(dst)->get_size();
    const size_t begin = all ? 0 : find_seen(hparams, positions);

    layer taken;
    taken.il = il;
    taken.positions.assign(positions.begin() + begin, positions.end());
    if (all) {
        std::vector<int32_t> index;
        for (int64_t h = 0; h < asl_get_kv_layer(dst, il).n_head_kv; ++h) {
            index.resize(index.size() + n);
            std::iota(index.end() - n, index.end(), 0);
        }
        asl_gather_rows(src, dst, il, index, n, 0);
    } else {
        taken.rows.resize((n - begin) * asl_row_bytes(src, il));
        asl_get_rows(src, il, begin, n, taken.rows.data());
    }
    layers.push_back(std::move(taken));
}

static size_t count_free(llama_context & ctx) {
    const auto & cells = asl_get_kv_cache_swa(ctx)->get_cells(0);
    return cells.size() - cells.get_used();
}

void asl_sliding_rows::take_new(llama_context & src, llama_context & dst, int32_t il, const std::vector<llama_pos> & positions, int32_t n_past) {
    const std::vector<llama_pos> added(positions.begin() + n_past, positions.end());
    const size_t begin = added.size() <= count_free(dst) ? 0 : find_seen(src.get_model().hparams, added);

    layer taken;
    taken.il = il;
    taken.positions.assign(added.begin() + begin, added.end());
    taken.rows.resize(taken.positions.size() * asl_row_bytes(src, il));
    asl_get_rows(src, il, n_past + begin, positions.size(), taken.rows.data());
    layers.push_back(std::move(taken));
}

size_t asl_sliding_rows::choose_new(llama_context & dst, const std::vector<llama_pos> & positions) const {
    return choose(dst, positions, positions.size(), positions.size() > count_free(dst));
}

// Cells of sliding layers that may be used while the others have n_free left, which decoded tokens take in both.
static size_t count_most(const llama_context & ctx, const llama_kv_cache & swa, size_t n_free) {
    const size_t size = swa.get_size();
    if (size >= (size_t) ctx.get_model().hparams.n_swa + ctx.n_ubatch()) {
        return size; // cells behind the window are taken again
    }
    return size - std::min(n_free, size - 1);
}

void asl_make_sliding_room(llama_context & ctx, llama_kv_cache & swa, std::vector<llama_pos> & positions, size_t n_free) {
    const size_t n_most = count_most(ctx, swa, n_free);
    positions.erase(positions.begin(), positions.end() - std::min(positions.size(), n_most));
    const auto & cells = swa.get_cells(0);
    std::vector<llama_pos> held;
    for (uint32_t i = 0; i < cells.used_max_p1(); ++i) {
        if (!cells.is_empty(i)) {
            held.push_back(cells.pos_get(i));
        }
    }
    if (held.size() + positions.size() > n_most) {
        std::sort(held.begin(), held.end());
        swa.seq_rm(0, 0, held[held.size() + positions.size() - n_most - 1] + 1);
    }
}

std::vector<uint32_t> asl_take_sliding_cells(llama_context & ctx, llama_kv_cache & swa, const std::vector<llama_pos> & positions) {
    std::vector<uint32_t> found = asl_find_cells(swa, 0, positions.size());
    if (found.empty()) {
        const llama_hparams & hparams = ctx.get_model().hparams;
        llama_pos seen = 0;
        while (llama_hparams::is_masked_swa(hparams.n_swa, hparams.swa_type, seen, positions.back() + 1)) {
            ++seen;
        }
        swa.seq_rm(0, 0, seen);
        found = asl_find_cells(swa, 0, positions.size());
    }
    if (found.empty()) {
        throw asl_error(ASL_ERR_INTERNAL, "sliding layers have no cells for " + std::to_string(positions.size()) + " tokens");
    }
    return found;
}

size_t asl_sliding_rows::choose(llama_context & dst, const std::vector<llama_pos> & positions, size_t n_most, bool only_seen) const {
    const size_t n = positions.size();
    size_t first = n - std::min<size_t>({ n, n_most, asl_get_kv_cache_swa(dst)->get_size() });
    if (only_seen) {
        first = std::max(first, find_seen(dst.get_model().hparams, positions));
    }
    for (const layer & l : layers) {
        const size_t first_held = std::lower_bound(positions.begin(), positions.end(), l.positions.front()) - positions.begin();
        first = std::max(first, first_held);
    }
    return first;
}

void asl_sliding_rows::put(llama_context & dst, const std::vector<uint32_t> & cells, const std::vector<llama_pos> & positions) {
    for (layer & l : layers) {
        if (l.rows.empty() && l.positions == positions) {
            continue;
        }
        const size_t n_row = asl_row_bytes(dst, l.il);
        if (l.rows.empty()) {
            l.rows.resize(l.positions.size() * n_row);
            asl_get_rows(dst, l.il, 0, l.positions.size(), l.rows.data());
        }
        std::vector<uint8_t> rows(positions.size() * n_row);
        for (size_t i = 0; i < positions.size(); ++i) {
            const auto it = std::lower_bound(l.positions.begin(), l.positions.end(), positions[i]);
            if (it == l.positions.end() || *it != positions[i]) {
                throw asl_error(ASL_ERR_INTERNAL, "layer " + std::to_string(l.il) + " has no K/V of position " + std::to_string(positions[i]));
            }
            memcpy(rows.data() + i * n_row, l.rows.data() + (it - l.positions.begin()) * n_row, n_row);
        }
        for (size_t begin = 0, end = 0; begin < cells.size(); begin = end) {
            for (end = begin + 1; end < cells.size() && cells[end] == cells[end - 1] + 1; ++end) {
            }
            asl_set_rows(dst, l.il, cells[begin], cells[begin] + (end - begin), rows.data() + begin * n_row);
        }
        l = layer(); // its memory is not needed any more
    }
    clear();
}

void asl_sliding_rows::clear() {
    std::vector<layer>().swap(layers);
}

size_t asl_sliding_rows::size_bytes() const {
    size_t result = 0;
    for (const layer & l : layers) {
        result += l.rows.size();
    }
    return result;
}
