// K/V of layers that attend to a sliding window: llama.cpp has a second cache for them, with cells of its own.
//
// Which tokens these cells hold is known when all layers have run, because it is the same in every layer: tokens that
// were dropped on the way have no K/V in deeper ones. Until then the rows of each layer wait here.

#pragma once

#include "llama.h"

#include <cstddef>
#include <cstdint>
#include <vector>

struct llama_context;

class llama_kv_cache;

// Cells of sliding layers for tokens at these positions, after those that are there. If too few are free, tokens that no later
// one sees give way.
std::vector<uint32_t> asl_take_sliding_cells(llama_context & ctx, llama_kv_cache & swa, const std::vector<llama_pos> & positions);

// Drops the oldest of the positions that are to be added, and of those that are there, so that tokens are decoded as long as the
// other layers have cells: n_free of them.
void asl_make_sliding_room(llama_context & ctx, llama_kv_cache & swa, std::vector<llama_pos> & positions, size_t n_free);

class asl_sliding_rows {
public:
    // Takes the rows of a layer that ran last in src, of tokens that may be asked for.
    //   positions: of the tokens in its cells 0..
    void take(llama_context & src, llama_context & dst, int32_t il, const std::vector<llama_pos> & positions);

    // Which of the tokens left in the end the cells of dst are to hold: the newest n_most, as far as every layer has them.
    // All that later tokens may see are among them if there is room.
    //   positions: of the tokens left
    //   only_seen: those that no later token sees are left out, whatever the room
    // Returns the first of them; the others follow it.
    size_t choose(llama_context & dst, const std::vector<llama_pos> & positions, size_t n_most, bool only_seen) const;

    // The same for tokens that follow a past in dst, whose cells stay as they are.
    //   n_past: of these positions, those of the past
    void take_new(llama_context & src, llama_context & dst, int32_t il, const std::vector<llama_pos> & positions, int32_t n_past);
    size_t choose_new(llama_context & dst, const std::vector<llama_pos> & positions) const;

    // Writes the rows of these tokens to these cells of every layer that was taken.
    void put(llama_context & dst, const std::vector<uint32_t> & cells, const std::vector<llama_pos> & positions);

    void clear();

    size_t size_bytes() const;

private:
    struct layer {
        int32_t il;
        std::vector<llama_pos> positions; // of the tokens whose rows wait
        std::vector<uint8_t> rows;      // [n_tokens, row bytes]; empty: they lie in the cells of dst already
    };

    std::vector<layer> layers;
};
