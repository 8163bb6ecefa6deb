// A sequence that goes from one context to another: from the one it was prefilled in to one that many share, or back.

#pragma once

#include <cstdint>

struct llama_context;

// See asl_context_move. Throws asl_error.
void asl_move_cells(llama_context & src, int32_t src_seq_id, llama_context & dst, int32_t seq_id, bool with_logits);

// Cells that tokens of a sequence may take.
int32_t asl_count_free_cells(llama_context & ctx, int32_t seq_id);
