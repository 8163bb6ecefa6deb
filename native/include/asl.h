// asl.h: the C ABI of asl_gguf, and its manual.
//
// A session prefills prompts layer by layer for one decode context (an ordinary llama_context):
//
//     asl_session_begin        tokens in, prefill context allocated (or asl_session_extend, after what is there already)
//     asl_session_run          next layer(s) over the current tokens (or asl_session_start and asl_session_step, in slices)
//       asl_session_get_scores   how much the window attends to each token in that layer
//       asl_session_keep_rows    copy that layer's K/V rows into cells of the decode context
//       asl_session_keep_tokens  deeper layers see only these tokens, at their original positions
//       asl_session_save_rows    that layer's K/V for a later prompt that begins alike (asl_session_set_past)
//     asl_session_finish       remaining layers straight into the decode context, logits ready there
//
// After asl_session_finish the decode context is in the state llama_decode would leave: sample from
// it, decode further tokens at position n_tokens, save its state. All memory of the prefill is released.
//
// Conventions
//   - Layers, tokens, cells and heads count from 0. "Current tokens" are all tokens of the prompt until
//     asl_session_keep_tokens, then the kept ones; token indices refer to the current tokens.
//   - Arrays are row-major, the last dimension runs fastest, and belong to the caller.
//   - Every function returns an asl_status. On anything but ASL_OK, asl_session_last_error() has one
//     line that says what was expected and what came. No C++ exception leaves this library.
//   - A session is used by one thread at a time. Sessions share no state: any number may live at once,
//     over the same model or different ones, each with its own decode context.
//   - NULL is not allowed for any pointer unless said otherwise.

#pragma once

#include "asl-export.h"
#include "asl-kernels.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct llama_model;
struct llama_context;
struct llama_context_params;

typedef struct asl_session asl_session;

// Raised with every incompatible change of this header.
#define ASL_ABI_VERSION 11

typedef enum asl_status {
    ASL_OK = 0,
    ASL_ERR_ARGUMENT = 1, // an argument is outside its domain; the session is unchanged
    ASL_ERR_UNSUPPORTED = 2, // the model or context cannot be prefilled layer by layer
    ASL_ERR_STATE = 3, // the call does not fit the session's state; the session is unchanged
    ASL_ERR_MEMORY = 4, // an allocation failed; the prefill was aborted
    ASL_ERR_COMPUTE = 5, // a graph failed to compute; the prefill was aborted
    ASL_CANCELLED = 6, // the progress callback returned false; the prefill was aborted
    ASL_ERR_INTERNAL = 7, // an invariant does not hold; the prefill was aborted
    ASL_ERR_CELLS = 8, // too few free cells; nothing has changed
} asl_status;

// How weight matrices are held while their layer runs (CPU only; elsewhere ignored).
typedef enum asl_dequant {
    ASL_DEQUANT_OFF = 0, // as stored: bit-identical to stock llama.cpp
    // all others: attention is our own, too, where there is a kernel for the processor (asl_attention_kernel_name)
    // types whose products are faster so on this CPU are packed, or expanded to F16, once per layer (asl_kernel_rule):
    // nearer to F32 arithmetic than stock llama.cpp's products. Activations are rounded to 8 bits on AVX-512 VNNI, where
    // that is much faster, else to 16. A model without quantised weights keeps llama.cpp's attention
    ASL_DEQUANT_AUTO = 1,
    ASL_DEQUANT_ALL = 2, // every quantised matrix in ordinary host memory is expanded to F16
    // packed, where there is a kernel for the type and the processor (asl_packed_kernel); else as ASL_DEQUANT_AUTO.
    // Activations are rounded to 8 bits, as stock llama.cpp does, and attention computes with integers of 16 on AVX-512
    // VNNI; or to 16 bits, and attention computes in F32
    ASL_DEQUANT_INT8 = 3,
    ASL_DEQUANT_INT16 = 4,
} asl_dequant;

// done, total: work in token-layers (tokens times layers). total shrinks when tokens are dropped.
// Called between chunks on the calling thread. Return false to cancel.
typedef bool (*asl_progress_callback)(void * user_data, int64_t done, int64_t total);

typedef struct asl_session_info {
    int32_t n_layer;       // layers of the model
    int32_t next_layer;    // the layer asl_session_run would run next; n_layer when all have run
    int32_t n_tokens;      // tokens of the prompt, 0 outside a prefill
    int32_t n_current;     // current tokens
    int32_t n_window;      // last tokens whose queries are scored
    int32_t n_past;        // first of the current tokens that are not computed (asl_session_set_past, asl_session_extend)
    int32_t n_cells;       // KV cells of the decode context
    int32_t n_cells_used;  // of these, cells that hold a token now
    int32_t n_cells_sliding;      // cells of the layers that attend to a sliding window; 0 if there are none
    int32_t n_cells_sliding_used; // of these, cells that hold a token now
    int32_t n_head;        // query heads of the layer that ran last
    int32_t n_head_kv;     // KV heads of the layer that ran last
    int32_t n_embd_head_k; // elements of a key of one head of the layer that ran last
    int32_t n_hidden;      // elements of a token between two layers: n_embd, or several times as many
    int32_t n_dequantised; // weight matrices packed or expanded so far in this prefill (asl_dequant)
    int32_t n_parts;       // chunks of layers, but for the last layer's, that this prefill or the last one has computed
    int32_t n_graphs;      // full graphs that were built for these: one serves all layers of a chunk
    int64_t host_us;       // CPU time that these took of the calling thread, beside computing and preparing weights: graphs, plans of memory
    int64_t kv_bytes_cell;     // bytes one cell takes over all layers of the decode context
    int64_t kv_bytes_cell_sliding; // of these, bytes in layers that attend to a sliding window
    int64_t kv_bytes_decode;   // bytes of the decode context's KV buffers
    int64_t kv_bytes_prefill;  // bytes of the prefill context's KV buffers, now
    int64_t kv_bytes_prefill_peak; // the same, largest since asl_session_begin
    int64_t host_bytes;        // hidden states, packed and expanded weights, attention mask and K/V of sliding layers held now in host memory
    int64_t device_bytes;      // hidden states and attention mask held now in memory of other devices
    char attention[160];    // what the layers of this prefill, or of the last one, attended with: one line, "" if none has run
} asl_session_info;

// ASL_ABI_VERSION of the library in use.
ASL_API int32_t asl_abi_version(void);

// Whether models of this architecture can be prefilled layer by layer.
//   reason    receives one line (NUL-terminated, cut to n_reason bytes) if not
ASL_API asl_status asl_model_check(const struct llama_model * model, char * reason, size_t n_reason);

// Which layers keep what they remember by themselves, so that nobody is asked what to keep of them: those that attend to a
// sliding window (or chunk) of the newest tokens, hold a recurrent state, attend to K/V of an earlier layer, or do not attend.
//   sliding   bool [n_layer]
// Returns the window's tokens; 0 if no layer slides.
ASL_API int32_t asl_model_get_sliding(const struct llama_model * model, bool * sliding);

// Whether attention adds a bias of distances (ALiBi): what a context holds can neither be extended (asl_session_extend) nor
// moved (asl_context_move), for where rows stand belongs to its cells.
ASL_API bool asl_model_has_alibi(const struct llama_model * model);

// Whether asl_session_keep_tokens may drop tokens. False where recurrent states decay by position (lightning attention): K/V
// rows can be dropped, but every layer runs over all tokens.
ASL_API bool asl_model_can_drop_tokens(const struct llama_model * model);

// How this context decodes from now on: products of less than 32 rows with weights of such a type in host memory are computed
// by that kernel where the mode rounds activations to 8 bits on this CPU, and the model lies on it alone. ASL_DEQUANT_OFF: by
// llama.cpp's, as in a context that was just made.
ASL_API void asl_context_set_dequant(struct llama_context * ctx, asl_dequant mode);

// Bytes of the KV buffers of any context; of a recurrent model, which has none, those of its states.
ASL_API int64_t asl_context_kv_bytes(const struct llama_context * ctx);

// Bytes of the recurrent states that a hybrid model's context holds beside its K/V, whatever the length of the prompt. 0 for
// other models.
ASL_API int64_t asl_context_state_bytes(struct llama_context * ctx);

// Whether the layers that attend to the whole prompt have an indexer, which chooses the tokens that each query attends to.
ASL_API bool asl_context_has_indexer(struct llama_context * ctx);

// Bytes of physical memory that the K/V of each layer take now. In ordinary host memory on Linux,
// asl_session_finish gives back the pages of cells that hold no row: a layer that keeps fewer rows takes less. Elsewhere:
// what is allocated.
//   n_bytes   int64 [n_layer]
// Returns false, and changes nothing, if the context has no plain KV cache.
ASL_API bool asl_context_get_kv_resident(struct llama_context * ctx, int64_t * n_bytes);

// The cell from which on each layer attends: all 0 unless layers kept different numbers of rows.
//   first     int32 [n_layer]
// Setting is for states that were loaded by other means; llama_memory_clear sets 0. Returns false, and changes
// nothing, if the context has no plain KV cache or a value is none of its cells.
ASL_API bool asl_context_get_first_cells(struct llama_context * ctx, int32_t * first);
ASL_API bool asl_context_set_first_cells(struct llama_context * ctx, const int32_t * first);

// Where a bias follows positions (ALiBi), rows of a pruned prompt stand before the positions of their cells: how far, of each
// layer, query head and used cell. Saved states must bring it along.
//   dst   float [n]; NULL to ask for n
// Returns n; 0 if every row's token stands where its cell does.
ASL_API int64_t asl_context_get_shifts(struct llama_context * ctx, float * dst, int64_t n);

// The same for a context that holds the same cells. Returns false if n is not that of this context, or its model has no ALiBi.
ASL_API bool asl_context_set_shifts(struct llama_context * ctx, const float * src, int64_t n);

// Makes these the logits of the last output, as llama_decode leaves them: for states that were loaded by other means
// (llama_state_set_data restores none). Returns false, and changes nothing, if there is no room for them.
//   logits    f32 [n_vocab]
ASL_API bool asl_context_set_logits(struct llama_context * ctx, const float * logits);

// A number that tells apart the LoRA adapters and control vectors that are set on a context, by what is in them and their
// scales; 0: none are set. Equal ones have the same number in every process. Of large tensors samples are read.
// Returns false, and changes nothing, if they cannot be read.
ASL_API bool asl_context_get_adapters(struct llama_context * ctx, uint64_t * digest);

// While this is on, an assertion of ggml that fails on this thread throws std::runtime_error; else it ends the process.
// llama_model_load_from_file and llama_init_from_model catch it and return NULL: turn it on for those calls alone.
ASL_API void asl_throw_on_abort(bool on);

// Decodes one token in a new context, and forgets it: for models whose metadata somebody has overridden. Returns false if an
// assertion of ggml fails, which would end the process later; the context is good for nothing then but to be freed.
//   error     receives one line if so; NULL allowed if n_error is 0
ASL_API bool asl_context_probe(struct llama_context * ctx, char * error, size_t n_error);

// Cells that tokens of a sequence may take in the layers that attend to all tokens. Sequences share the cells of a unified
// cache. -1 if the context has no plain KV cache or no such sequence.
ASL_API int32_t asl_context_get_free_cells(struct llama_context * ctx, int32_t seq_id);

// Copies a sequence of src into a sequence of dst that is empty, on the device and byte for byte: its tokens, of a prefill
// (asl_session_finish) or decoded, stand in dst as if llama_decode had put them there, in the order of their positions, which
// stay the same. Other sequences keep their
// cells (where too few cells of sliding layers are empty, those that their sequence does not see any more are taken, as
// llama_decode does). src stays as it is. One thread may use both contexts at that time.
//   src          layers that keep different numbers of rows (asl_context_get_first_cells) are refused
//   dst          another context of the same model, with the same types of K and V and the same flash attention; any
//                n_seq_max, unified KV or not
//   with_logits  the last logits of src become those of dst (asl_context_set_logits)
//   error        receives one line if the status is not ASL_OK; NULL allowed if n_error is 0
// Returns ASL_ERR_CELLS if too few cells are free, and ASL_ERR_ARGUMENT with the reason if the contexts or the sequence do
// not fit: nothing has changed then.
ASL_API asl_status asl_context_move(struct llama_context * src, int32_t src_seq_id, struct llama_context * dst, int32_t seq_id,
        bool with_logits, char * error, size_t n_error);

// Creates a session for a decode context.
//   ctx       one sequence stream (n_seq_max = 1, or kv_unified); outlives the session
//   params    what ctx was created with. n_batch and n_ubatch may be larger: prompts run in chunks of them,
//             while llama.cpp limits those of ctx to its cells
//   n_ctx     longest prompt + answer in tokens: what positions may reach, and what rope scaling that
//             depends on the context length is told (llama_model::get_rope_factors)
//   error     receives one line if the session cannot be created; NULL allowed if n_error is 0
// Returns NULL on failure. Free with asl_session_free, before ctx.
ASL_API asl_session * asl_session_init(struct llama_context * ctx, const struct llama_context_params * params,
        uint32_t n_ctx, char * error, size_t n_error);

// NULL is allowed.
ASL_API void asl_session_free(asl_session * session);

// The line that belongs to the last status other than ASL_OK. Valid until the next call.
ASL_API const char * asl_session_last_error(const asl_session * session);

// callback NULL: no progress, no cancelling.
ASL_API asl_status asl_session_set_progress(asl_session * session, asl_progress_callback callback, void * user_data);

// Takes effect at the next asl_session_begin.
ASL_API asl_status asl_session_set_dequant(asl_session * session, asl_dequant mode);

ASL_API asl_status asl_session_get_info(const asl_session * session, asl_session_info * info);

// Starts a prefill at position first_pos. What the decode context held is forgotten. A prefill that is still
// open is aborted first.
//   tokens    int32 [n_tokens], 1 <= n_tokens <= n_ctx
//   n_window  last tokens whose attention is scored, >= 1; more than n_tokens means n_tokens
//   first_pos position of the first token, 0 <= first_pos <= n_ctx - n_tokens
ASL_API asl_status asl_session_begin(asl_session * session, const int32_t * tokens, int32_t n_tokens, int32_t n_window, int32_t first_pos);

// Starts a prefill of tokens that follow what sequence 0 of the decode context holds, pruned or not. Its cells are the first
// n_past of the current tokens, in the order of the cells; the new tokens follow, at positions from its last one + 1 on, and
// see all of them and each other; layers with a recurrent state go on from the sequence's. Scores, queries and keys are those
// of a prefill; the past keeps all its rows and tokens: the lists of asl_session_keep_rows and asl_session_keep_tokens begin
// with 0..n_past-1. Rows of new tokens lie in the cells after the last used one, as many in every layer (ASL_ERR_CELLS if there
// are too few). The decode context must not be used meanwhile. It changes in the last slice only: an abort, an error or a
// cancelled prefill leaves it as it was.
//   tokens    int32 [n_tokens], 1 <= n_tokens, up to position n_ctx - 1
//   n_window  last of the new tokens whose attention is scored, >= 1; more than n_tokens means n_tokens
// ASL_ERR_STATE with the reason if there is no past, layers kept different numbers of rows, or other sequences live there.
ASL_API asl_status asl_session_extend(asl_session * session, const int32_t * tokens, int32_t n_tokens, int32_t n_window);

// Another window for the layers that run from now on.
//   n_window  1 <= n_window <= n_current
//   weights   float [n_window]: factors on the attention of each query. NULL: 1
ASL_API asl_status asl_session_set_window(asl_session * session, int32_t n_window, const float * weights);

// What asl_session_get_scores tells of the layers that run from now on, in all prefills of the session: the window's attention
// (the start), or what the layer's indexer makes of it (models with sparse attention, asl_context_has_indexer): the softmax of
// its scores over all tokens, which it was trained to match with attention. Queries and keys stay those of attention.
ASL_API asl_status asl_session_rank_by(asl_session * session, bool indexer);

// The first n_past tokens are not computed: their K/V, of an earlier prefill that began with the same tokens, are
// loaded before each layer runs (asl_session_load_rows), one layer per asl_session_run. The others attend to them. Of layers
// that hold a recurrent state, the state after these tokens is loaded (asl_session_load_state); layers without K/V of their own
// need no rows.
// Tokens cannot be dropped then, and every layer has to run before asl_session_finish, unless their hidden states follow
// (asl_session_load_hidden). To be called before any layer ran; makes the window at most n_tokens - n_past tokens.
//   n_past    0 <= n_past < n_tokens
ASL_API asl_status asl_session_set_past(asl_session * session, int32_t n_past);

// Bytes of one token's K/V in a layer: its K row, then its V row, as the cache stores them; 0 without K/V of its own. A prefill
// must be open.
ASL_API asl_status asl_session_row_bytes(const asl_session * session, int32_t il, int64_t * n_bytes);

// Of these, the bytes of the K row. Where V is a part of K (MLA), the keys of the layer's indexer stand in V's place.
ASL_API asl_status asl_session_key_bytes(const asl_session * session, int32_t il, int64_t * n_bytes);

// K/V rows of tokens begin..end-1 in the layer that ran last, for asl_session_load_rows in a session over the same
// model with the same KV types.
//   dst       uint8 [end - begin, row bytes]
ASL_API asl_status asl_session_save_rows(const asl_session * session, int32_t begin, int32_t end, void * dst, int64_t n_bytes);

// K/V rows of the first n_past tokens in the layer that runs next. Those of the layer before cannot be read or kept
// any more.
//   src       uint8 [n_past, row bytes]
ASL_API asl_status asl_session_load_rows(asl_session * session, const void * src, int64_t n_bytes);

// Bytes of the recurrent state of a layer, 0 if it holds none. A prefill must be open.
ASL_API asl_status asl_session_state_bytes(const asl_session * session, int32_t il, int64_t * n_bytes);

// In the layers that run from now on, chunks end after so many tokens, too, and states are noted there. All tokens must be
// current; once some are dropped, nothing is noted any more.
//   ends      int32 [n_ends], increasing, 1 to n_tokens - 1; NULL allowed if n_ends is 0
ASL_API asl_status asl_session_set_state_ends(asl_session * session, const int32_t * ends, int32_t n_ends);

// The recurrent state of the layer that ran last, after n_tokens of the current tokens: all of them, or a number of
// asl_session_set_state_ends. For asl_session_load_state in a session over the same model.
ASL_API asl_status asl_session_save_state(const asl_session * session, int32_t n_tokens, void * dst, int64_t n_bytes);

// The recurrent state after the first n_past tokens (asl_session_set_past) of the layer that runs next.
ASL_API asl_status asl_session_load_state(asl_session * session, const void * src, int64_t n_bytes);

// Output of the layer that ran last, not of the model's last layer, for tokens begin..end-1 that were computed.
//   dst       float [end - begin, n_hidden]
ASL_API asl_status asl_session_save_hidden(const asl_session * session, int32_t begin, int32_t end, float * dst, int64_t n_bytes);

// Output of the layer that ran last for the first n_past tokens (asl_session_set_past), of an earlier prefill that began
// with the same tokens: from then on they are like all others, run through deeper layers and can be dropped.
//   src       float [n_past, n_hidden]
ASL_API asl_status asl_session_load_hidden(asl_session * session, const float * src, int64_t n_bytes);

// Runs the next n_layers layers over the current tokens. Only the last of them has scores, and only
// its K/V rows can be kept: earlier ones are overwritten.
//   with_scores  also compute what asl_session_get_scores and asl_session_get_queries return
ASL_API asl_status asl_session_run(asl_session * session, int32_t n_layers, bool with_scores);

// The same in slices, on the caller's thread: asl_session_start prepares what asl_session_run does, and each
// asl_session_step runs one chunk of one layer. Between two slices other contexts of the model may decode. What the layers
// compute is that of asl_session_run byte for byte, which is these two in a loop.
//   more      whether slices are left. Until then other calls of the prefill return ASL_ERR_STATE, but for asl_session_get_info
//             (next_layer: the one that runs), asl_session_abort, and asl_session_begin, which aborts
ASL_API asl_status asl_session_start(asl_session * session, int32_t n_layers, bool with_scores);
ASL_API asl_status asl_session_step(asl_session * session, bool * more);

// Attention of the window in the layer that ran last: softmax(Q K^T * scale + causal mask) over all
// current tokens in f32, summed over the window's queries (times their weights) and over the query heads of each
// KV head.
//   dst       float [n_head_kv, n_current]; a row sums to n_window * n_head / n_head_kv without weights
// Twin: asl_gguf.reference.window_scores
ASL_API asl_status asl_session_get_scores(const asl_session * session, float * dst);

// Queries (after RoPE) of the window's tokens in the layer that ran last.
//   dst       float [n_window, n_head, n_embd_head_k]
ASL_API asl_status asl_session_get_queries(const asl_session * session, float * dst);

// Keys (after RoPE, dequantised) of the current tokens in the layer that ran last.
//   dst       float [n_current, n_head_kv, n_embd_head_k]
ASL_API asl_status asl_session_get_keys(const asl_session * session, float * dst);

// Copies K/V rows of the layer that ran last into the decode context, byte for byte. Layers with a sliding window are
// refused: by themselves they keep the newest of the tokens that are current in the end, no more than other layers, and
// all that later tokens may see if these are fewer. The first call of a prefill
// says how many cells the prompt takes: N = n_rows, cells 0..N-1. A layer that keeps fewer rows holds them in cells
// N - n_rows..N-1 and attends to those only. Such states live until the cache is cleared; a state file of llama.cpp
// does not say which cells a layer has (asl_context_get_first_cells).
//   index     int32 [n_head_kv, n_rows] if per_head, else int32 [n_rows]: increasing token indices.
//             The last token must be the last of every row. NULL: all current tokens.
//   n_rows    at most n_cells, and at most as many as the first call kept
// Twin: asl_gguf.reference.gather_rows
ASL_API asl_status asl_session_keep_rows(asl_session * session, const int32_t * index, int32_t n_rows, bool per_head);

// Of the rows that a layer keeps, only these from now on: for budgets that are decided once deeper layers have run. Layers
// follow in order: the first one that keeps rows says anew how many cells the prompt takes, and every other one that does
// must be shrunk too, to as many rows at most, before asl_session_finish. After a past only rows of new tokens count.
//   il        a layer that has run and keeps rows
//   index     int32 [n_head_kv, n_rows] if per_head, else int32 [n_rows]: increasing numbers of the rows it keeps, the last one
//             of every list the last row
// Twin: asl_gguf.policies.ranking.gather_rows
ASL_API asl_status asl_session_shrink_rows(asl_session * session, int32_t il, const int32_t * index, int32_t n_rows, bool per_head);

// From now on only these tokens run. May be called several times.
//   index     int32 [n_index]: increasing token indices, the window's tokens among them
ASL_API asl_status asl_session_keep_tokens(asl_session * session, const int32_t * index, int32_t n_index);

// The layer that ran last as one block of bytes: its K/V and its output, for asl_session_load_layer in a session over
// the same model with the same KV types and the same tokens. All tokens must be current.
//   n_bytes   what asl_session_layer_bytes says for that layer
ASL_API asl_status asl_session_layer_bytes(const asl_session * session, int32_t il, int64_t * n_bytes);
ASL_API asl_status asl_session_save_layer(const asl_session * session, void * dst, int64_t n_bytes);

// Goes on as if layers up to il had just run, none of them with scores: bytes of asl_session_save_layer take the place
// of running layer il. Layers that were jumped over have kept no rows. All tokens must be current.
//   il        next_layer <= il < n_layer
ASL_API asl_status asl_session_load_layer(asl_session * session, int32_t il, const void * src, int64_t n_bytes);

// Runs the remaining layers over the current tokens, whose rows the decode context keeps, and the output head. Every layer that has run must have kept rows, the first one at least as
// many as there are current tokens if layers remain. The logits of the last token are then available from
// the decode context (llama_get_logits_ith(ctx, -1)), and the prefill's memory is released.
ASL_API asl_status asl_session_finish(asl_session * session);

// The same in slices (asl_session_step): a chunk of a layer each, the output head by itself at the end.
ASL_API asl_status asl_session_start_finish(asl_session * session);

// Ends a prefill and releases its memory; the decode context is left empty, or, after asl_session_extend, as it was.
// Without a prefill: does nothing.
ASL_API asl_status asl_session_abort(asl_session * session);

// Words of a text by a pre-tokenizer's regular expression, as llama.cpp's unicode_regex_split finds them for vocabularies.
//   by_std    by std::regex, which ends the process where a word has some 30,000 characters
//   dst       characters (code points) of each word; at most capacity are written
// Returns the number of words; -1 if the expression is none, or std::regex fails on it.
// Twin: std::regex
ASL_API int32_t asl_split_words(const char * text, const char * regex, bool by_std, int32_t * dst, int32_t capacity);

// For tests: llama_tokenize of this thread uses std::regex, as released.
ASL_API void asl_tokenize_by_std_regex(bool on);

#ifdef __cplusplus
}
#endif
