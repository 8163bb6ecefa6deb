// What changes the weights of one context: LoRA adapters and control vectors.

#pragma once

#include <cstdint>

struct llama_context;

// See asl_context_get_adapters.
uint64_t asl_adapters_digest(llama_context & ctx);
