// Cells of a KV cache, marked without computing anything.

#pragma once

#include "llama-kv-cache.h"

#include <cstdint>
#include <vector>

// Cells for n more tokens of a sequence, none if there are too few: those where llama.cpp would put them. In a cache of
// sliding layers it also takes cells that their sequence does not see any more; here only if there are too few empty ones.
std::vector<uint32_t> asl_find_cells(const llama_kv_cache & kv, llama_seq_id seq_id, uint32_t n);

// Marks cells as those of tokens of a sequence. As with llama_decode, what they held is forgotten.
// The second form: of layers that attend to the whole prompt, and of their indexers.
void asl_mark_cells(llama_kv_cache & kv, llama_seq_id seq_id, const std::vector<uint32_t> & cells,
        const std::vector<llama_pos> & positions, const std::vector<llama_token> & ids);
void asl_mark_cells(llama_context & ctx, llama_seq_id seq_id, const std::vector<uint32_t> & cells,
        const std::vector<llama_pos> & positions, const std::vector<llama_token> & ids);
