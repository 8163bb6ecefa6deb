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

// The state of a layer after the last token that ran, from one context to another. Does nothing for layers without.
void asl_copy_state(llama_context & src, llama_context & dst, int32_t il);

// Tells a cleared memory that the state of sequence 0 is that after this token. Does nothing without states.
void asl_mark_state(llama_context & ctx, llama_token token, llama_pos pos);

// The same to and from host memory.
size_t asl_state_size(llama_context & ctx, int32_t il);
void asl_save_state(llama_context & ctx, int32_t il, uint8_t * dst);
void asl_load_state(llama_context & ctx, int32_t il, const uint8_t * src);

// Where a layer of a context runs: the buffer type of what it remembers, NULL if it remembers nothing.
ggml_backend_buffer_type_t asl_layer_buffer_type(llama_context & ctx, int32_t il);
