// K/V rows: one slot for all layers of a prefill context, and from there into the decode context.

#pragma once

#include "llama-kv-cache.h"

#include "ggml-cpp.h"

#include <cstdint>
#include <vector>

struct llama_context;
struct llama_model;

// While one is alive, KV caches constructed on this thread hold one slot per buffer type and row size.
struct asl_shared_kv_scope {
    asl_shared_kv_scope();
    ~asl_shared_kv_scope();

    asl_shared_kv_scope(const asl_shared_kv_scope &) = delete;
    asl_shared_kv_scope & operator=(const asl_shared_kv_scope &) = delete;
};

// K and V tensors of one layer, as a view on the cache of a context.
struct asl_kv_layer {
    ggml_tensor * k = nullptr; // [n_embd_k_gqa, n_cells, n_stream]
    // the same; if v_trans its data are [n_cells, n_embd_v_gqa]. Where V is a part of K (MLA): the keys of the layer's indexer,
    // which go with K's rows wherever those go; NULL if it has none
    ggml_tensor * v = nullptr;

    int64_t n_head_kv = 0;
    int64_t n_embd_head_k = 0;
    int64_t n_embd_head_v = 0;
    bool v_trans = false;
};

// The KV cache of the layers that attend to the whole prompt. Throws std::runtime_error with the reason if the context
// has none, or one with several streams.
llama_kv_cache & asl_get_kv_cache(llama_context & ctx);

// The same with any number of streams.
llama_kv_cache & asl_get_any_kv_cache(llama_context & ctx);

// That of the layers that attend to a sliding window, NULL if the model has no such layers.
llama_kv_cache * asl_get_kv_cache_swa(llama_context & ctx);

// That of the indexers' keys (DeepSeek's sparse attention), whose cells are those of asl_get_kv_cache; NULL if there is none.
llama_kv_cache * asl_get_kv_cache_indexer(llama_context & ctx);

// Whether a layer has an indexer of its own.
bool asl_has_indexer(llama_context & ctx, int32_t il);

// That of a layer, with any number of streams.
llama_kv_cache & asl_get_kv_cache(llama_context & ctx, int32_t il);

asl_kv_layer asl_get_kv_layer(llama_context & ctx, int32_t il);

// bytes of all KV buffers of a context; of a recurrent one those of its states
int64_t asl_kv_bytes(const llama_context & ctx);

// bytes that one cell takes over all layers of a cache of the context, whose layers have slots of their own
int64_t asl_kv_bytes_cell(llama_context & ctx, const llama_kv_cache & kv);

// The cell from which on a layer attends, 0 unless layers keep different numbers of rows: a layer with fewer rows
// holds them in the last of the prompt's cells, so that its attention is a view of one contiguous tail.
// Cleared with the cache.
uint32_t asl_get_first_cell(llama_context & ctx, int32_t il);
void asl_set_first_cell(llama_context & ctx, int32_t il, uint32_t first);

struct asl_kv_layout;
asl_kv_layout & asl_get_layout(llama_kv_cache & kv);

// Where a bias follows positions (ALiBi): how far the rows of a layer, from cell `first` on, stand before the positions of
// their cells; [n_head_kv][n], numbers <= 0. Cleared with the cache, and of a cell once it is freed.
void asl_set_shifts(llama_context & ctx, int32_t il, uint32_t first, const std::vector<float> & shifts);

// The same of all layers, heads and used cells: how many numbers, 0 if every row's token stands where its cell does.
std::vector<float> asl_get_shifts(llama_context & ctx);
bool asl_put_shifts(llama_context & ctx, const std::vector<float> & shifts);

// K/V of cells begin..end-1 of a layer, token by token: dst is [end - begin][K row, V row] in the cache's types.
size_t asl_row_bytes(llama_context & ctx, int32_t il);
size_t asl_key_bytes(llama_context & ctx, int32_t il); // of these, K's
size_t asl_rows_size(llama_context & ctx, int32_t il, int64_t n_rows); // 0 for layers without rows of their own
void asl_get_rows(llama_context & ctx, int32_t il, int64_t begin, int64_t end, uint8_t * dst);
void asl_set_rows(llama_context & ctx, int32_t il, int64_t begin, int64_t end, const uint8_t * src);

// dst: [n_rows][n_head_kv][n_embd_head_k], the keys of cells 0..n_rows-1
void asl_read_keys(llama_context & ctx, int32_t il, int64_t n_rows, float * dst);
