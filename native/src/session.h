// A prefill, layer by layer: see asl.h for what each call does.

#pragma once

#include "asl.h"
#include "chunks.h"
#include "dequant.h"
#include "error.h"
#include "full-graph.h"
#include "graph.h"
#include "hidden.h"
#include "inputs.h"
#include "mask.h"
#include "past.h"
#include "slices.h"
#include "sliding.h"

#include "llama.h"

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

struct llama_context;
class llama_kv_cache;

// Rows of new tokens that a layer keeps in the decode context.
struct asl_held_rows {
    int32_t first = 0;                // cell of the first one, counted from past.first_free
    std::vector<llama_pos> positions; // [n_head_kv, n_rows]
};

struct asl_session {
    asl_session(llama_context & ctx, const llama_context_params & params, uint32_t n_ctx);
    ~asl_session();

    void begin(const int32_t * tokens, int32_t n_tokens, int32_t n_window, int32_t first_pos);
    void extend(const int32_t * tokens, int32_t n_tokens, int32_t n_window);
    void set_window(int32_t n_window, const float * weights);
    void rank_by(bool indexer);
    void set_past(int32_t n_past);
    void start(int32_t n_layers, bool with_scores);
    void start_finish();
    bool step(); // returns whether slices are left
    void run(int32_t n_layers, bool with_scores);
    void keep_rows(const int32_t * index, int32_t n_rows, bool per_head);
    void shrink_rows(int32_t il, const int32_t * index, int32_t n_rows, bool per_head);
    void keep_tokens(const int32_t * index, int32_t n_index);
    void finish();
    void abort();

    size_t layer_bytes(int32_t il) const;
    void save_layer(uint8_t * dst, size_t n_bytes) const;
    void load_layer(int32_t il, const uint8_t * src, size_t n_bytes);

    size_t row_bytes(int32_t il) const;
    size_t key_bytes(int32_t il) const;
    void save_rows(int32_t begin, int32_t end, uint8_t * dst, size_t n_bytes) const;
    void load_rows(const uint8_t * src, size_t n_bytes);
    void set_state_ends(const int32_t * ends, int32_t n_ends);
    size_t state_bytes(int32_t il) const;
    void save_state(int32_t n_tokens, uint8_t * dst, size_t n_bytes) const;
    void load_state(const uint8_t * src, size_t n_bytes);
    void save_hidden(int32_t begin, int32_t end, float * dst, size_t n_bytes) const;
    void load_hidden(const float * src, size_t n_bytes);

    void get_scores(float * dst) const;
    void get_queries(float * dst) const;
    void get_keys(float * dst) const;
    asl_session_info get_info() const;

    asl_progress_callback progress = nullptr;
    void * progress_data = nullptr;

    asl_dequant dequant = ASL_DEQUANT_OFF;

    std::string last_error;

private:
    void open(std::vector<int32_t> tokens, int32_t n_window, int32_t first_pos, int32_t n_past);

    // session-run.cpp
    bool run_slice();
    void begin_layer();
    void end_layer(int32_t il);
    bool is_loaded() const; // what the next layer remembers of tokens that are not computed
    bool keeps_itself(int32_t il) const; // what it remembers: a sliding window, a state, K/V of another layer, nothing
    void compact_shared(const std::vector<int32_t> & kept);
    void take_past_cells();
    asl_chunk next_chunk() const;
    int32_t chunk_size(int32_t n_done) const;
    int32_t count_head_rows() const;
    void run_chunk(const asl_layer_range & range, asl_chunk & chunk);
    int32_t decode_tokens(std::vector<llama_token> & ids, const llama_pos * positions, bool output);
    int32_t compute_chunk(const std::vector<llama_token> & ids, const asl_chunk & chunk, asl_full_graph & full, asl_layer_cutter & cutter);
    void collect(const asl_chunk & chunk);
    void report_progress(int64_t n_done);

    // session-finish.cpp
    void end_finish();
    std::vector<float> run_head();
    void mark_cells();
    void mark_shifts();
    void mark_new_cells();
    void check_room_to_finish() const;
    std::vector<llama_token> ids_at(const std::vector<llama_pos> & positions) const;

    // session-rows.cpp
    void copy_rows(int32_t il, const std::vector<int32_t> & lists, int32_t n_rows);

    // session-states.cpp
    void note_state();
    void keep_state(int32_t il);

    void hold(int32_t il, int32_t first, int32_t n_rows, std::vector<llama_pos> row_positions);
    void check_shrunk() const;

    void forget_chunks();
    void release();
    bool is_sliding(int32_t il) const;

    void check_tokens(const int32_t * tokens, int32_t n_tokens, int32_t n_window) const;
    void check_begun() const;
    void check_computed() const;
    void check_past_kept(const std::vector<int32_t> & lists, int32_t n_rows) const;
    void check_hidden() const;
    static void check_size(size_t expected, size_t n_bytes);
    void check_slot() const;
    void check_room(int32_t n_rows) const;
    int32_t check_open(bool layer_ran) const; // returns the layer that ran last
    std::vector<int32_t> check_index(const int32_t * index, int32_t n_rows, int32_t n_lists) const;
    std::vector<int32_t> check_lists(const int32_t * index, int32_t n_rows, int32_t n_lists, int32_t n, const char * what) const;

    // the decode context and what it was created with
    llama_context & ctx;
    llama_context_params params;
    uint32_t n_ctx;

    const int32_t n_layer;
    int32_t n_hidden = 0; // elements of a token between two layers

    int64_t kv_bytes_cell = 0;         // of layers that attend to the whole prompt
    int64_t kv_bytes_cell_sliding = 0; // of the others

    std::unique_ptr<llama_context> prefill; // NULL outside a prefill
    asl_dequantiser dequantiser;
    asl_attention_use attention;
    asl_causal_mask mask;
    asl_slices slices;
    asl_past past; // what the decode context held before asl_session_extend
    asl_chunk_plan plan; // of the current tokens in the prefill context
    asl_full_graphs graphs; // of its chunks
    bool is_placed = false; // the current tokens lie in the cells of the prefill context
    asl_parts parts; // of this prefill, or of the last one
    asl_chunk_inputs inputs; // of its chunks, where hidden states lie on a device

    int32_t n_tokens = 0;
    int32_t n_window = 0;
    int32_t first_pos = 0;
    int32_t next_layer = 0;
    int32_t n_past = 0;       // tokens whose K/V are loaded, or lie in the decode context
    bool past_ready = false; // those of the next layer are
    bool state_ready = false; // the state after them is
    std::vector<int32_t> state_ends; // increasing: states after so many tokens are noted
    std::vector<std::vector<uint8_t>> states_noted; // of the layer that ran last
    int64_t n_work_done = 0; // token-layers
    int64_t n_work_total = 0;
    int64_t kv_bytes_prefill_peak = 0;
    int64_t started_us = 0;

    std::vector<int32_t> tokens;    // of the prompt
    std::vector<llama_pos> positions; // of the current tokens
    std::vector<float> weights;   // [n_window] of the window's queries, empty for 1
    asl_hidden hidden;    // [n_current, n_hidden]
    std::vector<float> output;    // [asl_n_head_rows, n_hidden] of the last tokens after the last layer
    std::vector<int32_t> rows_kept; // per layer that has run: rows copied to the decode context, 0 for none
    std::vector<asl_held_rows> held;  // per layer: where they lie there
    asl_sliding_rows sliding;
    std::vector<std::vector<uint8_t>> states; // after a past, of layers that hold one: what the decode context gets in the end
    std::vector<llama_pos> cells;     // position each cell, from past.first_free on, stands for when all layers have run

    bool has_scores = false;
    bool by_indexer = false; // scores are those of the layers' indexers
    std::vector<float> scores;  // [n_head_kv, n_current]
    std::vector<float> queries; // [n_window, n_head, n_embd_head_k]
};
