#include "cells.h"

#include "cache.h"

#include "llama-batch.h"

#include <algorithm>

// One token a cell, all of one sequence.
struct cell_batch {
    cell_batch(llama_seq_id seq_id, uint32_t n) : alloc(N_POS), seq_id(seq_id), ubatch(alloc.ubatch_reserve(n, 1)) {
        ubatch.seq_id_unq[0] = seq_id;
        for (uint32_t i = 0; i < n; ++i) {
            ubatch.n_seq_id[i] = 1;
            ubatch.seq_id[i] = &this->seq_id;
        }
    }

    // Text stands at the same place in each dimension that a cell remembers.
    void set(uint32_t i, llama_pos pos, llama_token id) {
        for (uint32_t dim = 0; dim < N_POS; ++dim) {
            ubatch.pos[dim * ubatch.n_tokens + i] = pos;
        }
        ubatch.token[i] = id;
    }

    cell_batch(const cell_batch &) = delete;
    cell_batch & operator=(const cell_batch &) = delete;

    static constexpr uint32_t N_POS = 3; // models with fewer do not ask for the others
    llama_batch_allocr alloc;
    llama_seq_id seq_id;
    llama_ubatch ubatch;
};

std::vector<uint32_t> asl_find_cells(const llama_kv_cache & kv, llama_seq_id seq_id, uint32_t n) {
    if (n == 0 || n > kv.get_size()) {
        return {};
    }
    const auto & cells = kv.get_cells(seq_id);
    const auto slot = kv.find_slot(cell_batch(seq_id, n).ubatch, false);
    std::vector<uint32_t> found = slot.empty() ? std::vector<uint32_t>() : slot.idxs[0];

    const bool all_empty = std::all_of(found.begin(), found.end(), [&](uint32_t i) { return cells.is_empty(i); });
    if (all_empty || n > cells.size() - cells.get_used()) {
        return found;
    }
    found.clear();
    for (uint32_t i = 0; found.size() < n; ++i) {
        if (cells.is_empty(i)) {
            found.push_back(i);
        }
    }
    return found;
}

void asl_mark_cells(llama_kv_cache & kv, llama_seq_id seq_id, const std::vector<uint32_t> & cells,
        const std::vector<llama_pos> & positions, const std::vector<llama_token> & ids) {
    if (cells.empty()) {
        return;
    }
    cell_batch batch(seq_id, cells.size());
    for (size_t i = 0; i < cells.size(); ++i) {
        batch.set(i, positions[i], ids[i]);
    }
    llama_kv_cache::slot_info slot;
    slot.s0 = slot.s1 = kv.get_stream(seq_id);
    slot.strm = { (llama_seq_id) slot.s0 };
    slot.idxs = { cells };
    kv.apply_ubatch(slot, batch.ubatch);
}

void asl_mark_cells(llama_context & ctx, llama_seq_id seq_id, const std::vector<uint32_t> & cells,
        const std::vector<llama_pos> & positions, const std::vector<llama_token> & ids) {
    asl_mark_cells(asl_get_any_kv_cache(ctx), seq_id, cells, positions, ids);
    if (llama_kv_cache * keys = asl_get_kv_cache_indexer(ctx)) {
        asl_mark_cells(*keys, seq_id, cells, positions, ids);
    }
}
