// Which cells the tokens of a chunk take. That is the same in every layer, so it is worked out once for the current
// tokens: a llama_decode per chunk and layer would do it again each time, token by token.

#pragma once

#include "llama-memory.h"

#include "llama.h"

#include <cstdint>
#include <map>
#include <vector>

struct llama_context;

// Finds cells for tokens that follow those in a memory of the context. Apply the result to take them.
// Throws asl_error.
llama_memory_context_ptr asl_place_tokens(llama_context & ctx, llama_memory_i & memory, const std::vector<llama_token> & ids, const llama_pos * positions);

class asl_chunk_plan {
public:
    // to be called when the current tokens change
    void clear() { chunks.clear(); }

    // The cells of the chunk that begins with current token `begin`. When first asked for, the context must hold the
    // chunks before it, and nothing else.
    llama_memory_context_i & get(llama_context & ctx, int32_t begin, const std::vector<llama_token> & ids, const llama_pos * positions);

private:
    std::map<int32_t, llama_memory_context_ptr> chunks;
};
