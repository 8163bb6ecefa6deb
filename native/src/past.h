// What a decode context holds when a turn follows it (asl_session_extend): the new tokens attend to copies of these rows.

#pragma once

#include "gather.h"
#include "memory.h"

#include "llama.h"

#include <cstdint>
#include <vector>

struct llama_context;

struct asl_past {
    std::vector<uint32_t> cells;         // used cells of the layers that attend to all tokens, increasing
    std::vector<uint32_t> sliding_cells; // the same of those with a sliding window: the newest ones, no more
    std::vector<llama_pos> sliding_positions;
    uint32_t first_free = 0; // the cell after the last used one
    llama_pos next_pos = 0;
    asl_state_cell state; // of layers that hold one

    bool exists() const { return !cells.empty(); }
};

// Throws asl_error with the reason if no turn can follow.
asl_past asl_read_past(llama_context & ctx);

// Throws asl_error if the context was used since.
void asl_check_past(const asl_past & past, llama_context & ctx);

// Copies the rows of a layer to the last of the cells 0..n_past-1 of a prefill context, and its state. Where a layer attends to
// K/V of an earlier one, those lie there.
void asl_load_past(const asl_past & past, llama_context & ctx, llama_context & prefill, int32_t il);

// Marks these cells in the prefill context. Tokens of full layers stand right before the first new one, because masks of
// those layers do not ask for positions; tokens of sliding layers stand where they stand. States are those after the past.
void asl_mark_past(const asl_past & past, llama_context & prefill);
