// What a context remembers: K/V rows (cache.h), and recurrent states of hybrid models, which are one row per layer and
// sequence, whatever the length of the prompt.

#pragma once

#include "ggml-backend.h"
#include "llama.h"

#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <vector>

struct ggml_tensor;
struct llama_context;
struct llama_memory_i;

// The part of a context's memory that holds K/V; NULL if it is of another kind.
llama_memory_i * asl_attention_memory(llama_context & ctx);

// The tensors that hold what a context remembers, K/V and recurrent states, and the layer of each: ASL_MIXED where layers share
// one.
using asl_layer_of = std::unordered_map<const ggml_tensor *, int32_t>;
constexpr int32_t ASL_NONE = -1;
constexpr int32_t ASL_MIXED = -2;
asl_layer_of asl_memory_tensors(llama_context & ctx);

// Rows of these cells go to cells 0.. of the same layer: where later layers attend to them and tokens were dropped.
void asl_compact_rows(llama_context & ctx, int32_t il, const std::vector<int32_t> & cells);

bool asl_has_states(llama_context & ctx);

// The tensors that hold the state of a layer; none for a layer without.
std::vector<ggml_tensor *> asl_state_tensors(llama_context & ctx, int32_t il);

// Bytes of the states of all layers.
int64_t asl_state_bytes(llama_context & ctx);

// Where the tensors of all layers hold the state of a sequence, and the token that it is after.
struct asl_state_cell {
    int32_t row = ASL_NONE; // the sequence has no state
    llama_pos pos = -1;
    bool is_shared = false; // with another sequence
};
asl_state_cell asl_find_state(llama_context & ctx, int32_t seq_id);

// A row for the state of a sequence that has none yet, which is to be that after the token at pos. ASL_NONE without states.
int32_t asl_take_state(llama_context & ctx, int32_t seq_id, llama_pos pos);

// The state of a sequence is that after the token at pos from now on; -1: that of no token that is known. Does nothing without
// states.
void asl_advance_state(llama_context & ctx, int32_t seq_id, llama_pos pos);

// The state of a layer, from one context to another. Does nothing for layers without.
void asl_copy_state(llama_context & src, int32_t src_row, llama_context & dst, int32_t dst_row, int32_t il);

// The same to and from host memory.
size_t asl_state_size(llama_context & ctx, int32_t il);
void asl_save_state(llama_context & ctx, int32_t il, int32_t row, uint8_t * dst);
void asl_load_state(llama_context & ctx, int32_t il, int32_t row, const uint8_t * src);

// Where a layer of a context runs: the buffer type of what it remembers, NULL if it remembers nothing.
ggml_backend_buffer_type_t asl_layer_buffer_type(llama_context & ctx, int32_t il);
