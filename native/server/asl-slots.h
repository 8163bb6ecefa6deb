// asl-slots.h: what the patched files of llama.cpp's server see of the engine (asl-serve.h).

#pragma once

#include "asl-serve.h"

#include "common.h"
#include "json.h"

#include <map>
#include <string>
#include <vector>

// Beside the tokens of a prompt whose cells are there, wherever the prompt goes: slots, the RAM cache, children, files.
struct asl_prompt_state {
    int32_t n_pruned = 0; // first tokens, of which K/V were dropped in part; 0: the cells hold all tokens
    int32_t n_dropped = 0; // tokens without a cell
    uint64_t adapters = 0; // of the LoRA adapters and control vectors that K/V were computed with; 0: none

    // The stale rule: how many of the first n_common tokens that a prompt shares may be reused. K/V that were chosen for one
    // prompt serve only prompts that go on from the whole of it.
    int reusable(int n_common) const { return n_common < n_pruned ? 0 : n_common; }

    // Slot files: a trailer on the saved tokens, where something was pruned or adapted; load takes it off again.
    void save(std::vector<char> & packed) const;
    void load(std::vector<llama_token> & packed);

    // A restored prompt that has fewer cells than it says counts as pruned whole. Throws if it cannot be.
    void check(int32_t n_tokens, int32_t n_cells_used);

    // for /slots
    common_json to_json(int32_t n_tokens, const std::string & report) const;
};

// Assertions of llama.cpp throw while this lives: a broken slot file ended the server.
struct asl_file_scope {
    asl_file_scope();
    ~asl_file_scope();
};

// Of a slot's present or last request.
struct asl_slot_state {
    std::string report;     // JSON for the answer; empty: none
    int32_t n_done = 0; // progress in tokens, while the engine runs
};

// What the server remembers of a prompt: its longest common start with another one, and the token that comes after it there.
struct asl_common_start {
    int32_t n_tokens = 0;
    int32_t other = -1; // nothing does

    void add(const llama_tokens & remembered, int32_t n_common);
};

// The engine's side of one server context.
class asl_slots {
public:
    static void set_engine(const asl_serve_engine * engine);

    // To what /props answers
    static void add_about(common_json & props);

    // To what /metrics answers; empty without an engine.
    static std::string metrics();

    // What the engine has under a name (asl_serve_engine.get). Returns whether there is such a thing.
    static bool get(const std::string & name, std::string & data);

    // Clients of an answer with this status are told when to ask again.
    static void add_retry_after(std::map<std::string, std::string> & headers, int status);

    // Milliseconds that a prompt waits for a slot; -1: as long as it takes.
    static int64_t wait_ms();

    // Throws std::invalid_argument if a request's `asl` object is not valid.
    static void check_options(const std::string & options);

    // Puts a value under a name into a request's options, an object as JSON; does nothing without an engine.
    static void add_option(std::string & options, const char * name, const common_json & value);

    // common_init_from_params with the cells that the engine wants; as it is if there is no engine, or it does not want this
    // use of the server.
    common_init_result_ptr init(common_params & params);

    // before the context goes
    void free();

    // What was freed, and malloc keeps for later: a server that sleeps may never need it again.
    static void give_memory_back();

    bool is_on() const { return on; }

    // The report of every answer while the engine is off; empty without an engine.
    const std::string & off_report() const { return report; }

    int32_t n_ctx_slot() const { return sizes.n_ctx_slot; }
    int32_t n_cells() const { return sizes.n_cells; }

    // Tokens of prompts that one batch takes while other slots answer.
    int32_t n_slice() const { return sizes.n_slice; }

    // An answer has ended.
    void finished(int id_slot, const std::string & text, int32_t n_tokens);

    // What tells apart the adapters that are set on the context now, in every process.
    uint64_t identify_adapters() const;

    // Cells in use of a slot's own.
    int32_t count_used(int id_slot) const;

    int32_t plan(const asl_serve_prompt & prompt, asl_serve_answer & answer);
    int32_t step(int id_slot, asl_serve_answer & answer);

    // A slot is released: nobody waits for its prefill any more, if there is one.
    void cancel(int id_slot);

    // After which slot's turn it is now: every slot gets a slice in turn.
    int last_slot() const { return last; }

private:
    void refuse(const char * text);

    bool on = false;
    std::string report;
    std::string reason; // why the engine is off; it stays off
    asl_serve_sizes sizes = {};
    common_params given;     // what the user asked for, before sizes were put in
    bool has_given = false;
    llama_context * ctx = nullptr;
    std::vector<bool> running; // of each slot, whether the engine runs its prompt
    int last = -1;
};
