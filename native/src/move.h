// A sequence that goes from the context it was prefilled in to one that many sequences share.

#pragma once

#include <cstdint>

struct llama_context;

// See asl_context_move. Throws asl_error.
void asl_move_cells(llama_context & src, llama_context & dst, int32_t seq_id, bool with_logits);

// Cells that tokens of a sequence may take.
int32_t asl_count_free_cells(llama_context & ctx, int32_t seq_id);
