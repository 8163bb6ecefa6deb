// Which models can be prefilled layer by layer, and what their layers remember of earlier tokens.

#pragma once

#include "llama.h"

#include <cstdint>

struct llama_context;
struct llama_model;

// Throws asl_error with the reason if models of this architecture cannot be prefilled layer by layer.
void asl_check_model(const llama_model & model);

// The same for a context: its memory must be what the functions below say of the model's layers, and its graph one that
// can be cut after every layer. Returns the most rows of n_embd elements per token that go from one layer to the next.
int64_t asl_check_context(llama_context & ctx);

// Whether a layer attends to earlier tokens: hybrid models have layers that hold a state, or nothing, instead.
bool asl_has_attention(const llama_model & model, int32_t il);

// Whether a layer stores K/V of its own: others attend to those of an earlier layer, or do not attend.
bool asl_owns_rows(const llama_model & model, int32_t il);

// The layer whose K/V a layer attends to: itself, or an earlier one.
int32_t asl_row_owner(const llama_model & model, int32_t il);

// The first layer from which on layers attend to K/V of earlier ones (asl_row_owner); n_layer if all store their own.
int32_t asl_first_shared(const llama_model & model);

// Whether a layer attends to a sliding window (or a chunk) of the newest tokens only.
bool asl_is_sliding(const llama_model & model, int32_t il);

// The first layer whose attention slides, or does not; -1 if there is none.
int32_t asl_first_layer(const llama_model & model, bool sliding);

// Rows of n_embd elements per token in the output of a layer: more than one in a model with several residual streams.
int32_t asl_n_streams(const llama_model & model);

// Of the n_tokens of the last chunk, those whose output of the last layer the head reads. One where the head begins with
// choosing the last token's; where llama.cpp merges streams before, products over fewer tokens would round otherwise.
int32_t asl_n_head_rows(const llama_model & model, int32_t n_tokens);

// Whether layers above may run over fewer tokens. Not where a state decays by position (lightning attention).
bool asl_can_drop_tokens(const llama_model & model);
