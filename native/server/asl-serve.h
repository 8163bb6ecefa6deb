// asl-serve.h: llama.cpp's server with an engine that prefills the prompts of its slots. For whoever starts the server
// from a library (asl_gguf/server/); what the patched server sees of it is in asl-slots.h.
//
// The engine's functions are called on the thread that called asl_serve_run, but for `check` and `get`, which any thread may
// call.
// None may throw. While the engine runs a slice, the server answers /health, /metrics and /slots, and nothing else.

#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef _WIN32
#define ASL_SERVE_API __declspec(dllexport)
#else
#define ASL_SERVE_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

struct llama_context;
struct llama_context_params;

// Raised with every incompatible change of this header.
#define ASL_SERVE_ABI_VERSION 4

// What becomes of a prompt.
typedef enum asl_serve_status {
    ASL_SERVE_STOCK = 0, // the server evaluates what the slot's cells do not hold
    ASL_SERVE_MORE = 1, // the engine prefills it, in slices: asl_serve_engine.step
    ASL_SERVE_DONE = 2, // the slot's cells and the logits are there
    ASL_SERVE_TOO_LONG = 3, // refused: it does not fit (400, exceed_context_size_error)
    ASL_SERVE_INVALID = 4, // refused: an option is wrong (400)
    ASL_SERVE_NO_CELLS = 5, // refused: no cells or memory now (503)
    ASL_SERVE_FAILED = 6, // refused: the engine failed (500)
} asl_serve_status;

// Before the model is loaded: how many cells the slots get.
typedef struct asl_serve_sizes {
    const char * model; // path
    int32_t n_ctx;      // -c; 0: the model's training context
    int32_t n_slots;    // -np
    bool unified;    // slots share n_ctx, else each has its part of it
    // to be filled:
    int32_t n_ctx_slot; // longest prompt + answer of a slot in tokens
    int32_t n_cells;    // of a slot
    int32_t n_slice;    // after open: most prompt tokens that the server evaluates between two tokens of other slots
    bool refused;       // if open fails: the flags do not go together, and the server must not start
} asl_serve_sizes;

typedef struct asl_serve_span {
    int32_t role; // of enum common_chat_role
    int32_t begin;
    int32_t end;
} asl_serve_span;

// A LoRA adapter (llama_adapter_lora *) that a prompt runs with.
typedef struct asl_serve_adapter {
    void * adapter;
    float scale;
} asl_serve_adapter;

// A prompt that has found a slot.
typedef struct asl_serve_prompt {
    int32_t slot;
    const int32_t * tokens;
    int32_t n_tokens;
    int32_t n_past;    // its first tokens that the slot's cells stand for; the cells hold nothing else
    int32_t n_pruned;  // of these, the prompt of which K/V were dropped; 0: none was
    int32_t n_dropped; // of these, tokens without a cell
    int32_t n_answer;  // most tokens of the answer; -1: no limit
    int32_t n_common;  // its first tokens that are those of a prompt that the server remembers, in a slot or in the RAM cache
    int32_t other;     // the token that comes after them there; -1: nothing does
    const asl_serve_span * spans; // messages of a chat
    int32_t n_spans;
    const char * options;    // an object as JSON with the request's `asl` and, of a chat, its `messages`; empty: none
    const char * unprunable; // why it must not be pruned; NULL: it may be
    const asl_serve_adapter * adapters;
    int32_t n_adapters;
    uint64_t adapters_id; // asl_context_get_adapters; 0: it runs with none
} asl_serve_prompt;

typedef struct asl_serve_answer {
    int32_t n_past;    // after plan: first tokens of the prompt that the cells stand for now
    int32_t n_pruned;  // when done: as in asl_serve_prompt
    int32_t n_dropped;
    int32_t n_done;    // tokens that the progress so far amounts to
    char text[16384]; // a report as JSON (STOCK, DONE), or what was expected and what came
} asl_serve_answer;

// Takes n bytes, once.
typedef void (*asl_serve_sink)(void * sink_data, const char * data, size_t n);

typedef struct asl_serve_engine {
    void * user_data;

    // false: prompts are not pruned, for the reason in text; sizes are the server's own
    bool (*size)(void * user_data, asl_serve_sizes * sizes, char * text, size_t n_text);

    // The context is there (again, after sleep). params: what a private context of one sequence is created with.
    // false: as above; the context is made anew with the server's own sizes
    bool (*open)(void * user_data, struct llama_context * ctx, const struct llama_context_params * params,
            asl_serve_sizes * sizes, char * text, size_t n_text);

    // The context is about to go.
    void (*close)(void * user_data);

    // Whether a request's `asl` object is valid. Any thread.
    bool (*check)(void * user_data, const char * options, char * text, size_t n_text);

    // What is done with a prompt. What the engine does with the slot before is given up.
    int32_t (*plan)(void * user_data, const asl_serve_prompt * prompt, asl_serve_answer * answer);

    // About slice_ms of a slot's prefill: ASL_SERVE_MORE, ASL_SERVE_DONE or a refusal.
    int32_t (*step)(void * user_data, int32_t slot, asl_serve_answer * answer);

    // Nobody waits for a slot's prefill any more.
    void (*cancel)(void * user_data, int32_t slot);

    // A slot's answer has ended.
    void (*finished)(void * user_data, int32_t slot, const char * text, int32_t n_tokens);

    // "props" (JSON for /props), "metrics" (lines for /metrics), and what /asl shows: "page" (HTML), "answers" and "answers/7"
    // (JSON). false: there is no such thing. Any thread.
    bool (*get)(void * user_data, const char * name, asl_serve_sink sink, void * sink_data);

    int32_t wait_seconds; // that a prompt waits for a slot before it is refused (503)
} asl_serve_engine;

ASL_SERVE_API int32_t asl_serve_abi_version(void);

// Before asl_serve_run; outlives it. NULL: llama.cpp's server as it is.
ASL_SERVE_API void asl_serve_set_engine(const asl_serve_engine * engine);

// The options of llama-server's command line: lines of a name, its number of values, and their type (int or text).
ASL_SERVE_API void asl_serve_options(asl_serve_sink sink, void * sink_data);

// llama-server's main. Installs its own handlers of SIGINT and SIGTERM, and returns its exit code once they were called.
ASL_SERVE_API int asl_serve_run(int argc, char ** argv);

#ifdef __cplusplus
}
#endif
