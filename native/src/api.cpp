// C functions of asl.h: exceptions become statuses here.

#include "access.h"
#include "adapters.h"
#include "asl.h"

#include "asl-regex.h"
#include "cache.h"
#include "memory.h"
#include "move.h"
#include "pages.h"
#include "session.h"
#include "support.h"

#include "llama-context.h"
#include "llama-model.h"
#include "unicode.h"

#include <new>

// Runs a call of a session. A call that cannot go on leaves no half prefill behind.
template <typename F>
static asl_status guard(asl_session * session, F && call) {
    asl_status status = ASL_OK;
    try {
        call();
        return ASL_OK;
    } catch (const asl_error & err) {
        status = err.status;
        session->last_error = err.what();
    } catch (const std::bad_alloc &) {
        status = ASL_ERR_MEMORY;
        session->last_error = "out of memory";
    } catch (const std::exception & err) {
        status = ASL_ERR_INTERNAL;
        session->last_error = err.what();
    }
    const bool unchanged = status == ASL_ERR_ARGUMENT || status == ASL_ERR_STATE || status == ASL_ERR_CELLS;
    if (!unchanged) {
        session->abort();
    }
    return status;
}

int32_t asl_abi_version(void) {
    return ASL_ABI_VERSION;
}

asl_status asl_model_check(const llama_model * model, char * reason, size_t n_reason) {
    try {
        asl_check_model(*model);
        return ASL_OK;
    } catch (const std::exception & err) {
        asl_copy_message(reason, n_reason, err.what());
        return ASL_ERR_UNSUPPORTED;
    }
}

int32_t asl_model_get_sliding(const llama_model * model, bool * sliding) {
    for (uint32_t il = 0; il < model->hparams.n_layer(); ++il) {
        sliding[il] = asl_is_sliding(*model, il) || !asl_owns_rows(*model, il);
    }
    return asl_first_layer(*model, true) < 0 ? 0 : model->hparams.n_swa;
}

bool asl_model_has_alibi(const llama_model * model) {
    return model->hparams.use_alibi;
}

bool asl_model_can_drop_tokens(const llama_model * model) {
    return asl_can_drop_tokens(*model);
}

int64_t asl_context_kv_bytes(const llama_context * ctx) {
    return ctx->get_memory() ? asl_kv_bytes(*ctx) : 0;
}

bool asl_context_get_adapters(llama_context * ctx, uint64_t * digest) {
    try {
        *digest = asl_adapters_digest(*ctx);
        return true;
    } catch (const std::exception &) {
        return false;
    }
}

int64_t asl_context_state_bytes(llama_context * ctx) {
    return asl_state_bytes(*ctx);
}

bool asl_context_has_indexer(llama_context * ctx) {
    return asl_get_kv_cache_indexer(*ctx) != nullptr;
}

bool asl_context_get_kv_resident(llama_context * ctx, int64_t * n_bytes) {
    try {
        asl_get_kv_cache(*ctx);
        for (uint32_t il = 0; il < ctx->get_model().hparams.n_layer(); ++il) {
            n_bytes[il] = asl_resident_bytes(*ctx, il);
        }
        return true;
    } catch (const std::exception &) {
        return false;
    }
}

bool asl_context_get_first_cells(llama_context * ctx, int32_t * first) {
    try {
        for (uint32_t il = 0; il < ctx->get_model().hparams.n_layer(); ++il) {
            first[il] = asl_owns_rows(ctx->get_model(), il) ? asl_get_first_cell(*ctx, il) : 0;
        }
        return true;
    } catch (const std::exception &) {
        return false;
    }
}

int64_t asl_context_get_shifts(llama_context * ctx, float * dst, int64_t n) {
    try {
        const std::vector<float> shifts = ctx->get_model().hparams.use_alibi ? asl_get_shifts(*ctx) : std::vector<float>();
        if (dst && n == (int64_t) shifts.size()) {
            std::copy(shifts.begin(), shifts.end(), dst);
        }
        return shifts.size();
    } catch (const std::exception &) {
        return 0;
    }
}

bool asl_context_set_shifts(llama_context * ctx, const float * src, int64_t n) {
    try {
        return asl_put_shifts(*ctx, std::vector<float>(src, src + n));
    } catch (const std::exception &) {
        return false;
    }
}

bool asl_context_set_first_cells(llama_context * ctx, const int32_t * first) {
    try {
        const int32_t n_layer = ctx->get_model().hparams.n_layer();
        const int32_t n_cells = asl_get_kv_cache(*ctx).get_size();
        for (int32_t il = 0; il < n_layer; ++il) {
            if (first[il] < 0 || first[il] >= n_cells) {
                return false;
            }
        }
        for (int32_t il = 0; il < n_layer; ++il) {
            if (asl_owns_rows(ctx->get_model(), il)) {
                asl_set_first_cell(*ctx, il, first[il]);
            }
        }
        return true;
    } catch (const std::exception &) {
        return false;
    }
}

bool asl_context_set_logits(llama_context * ctx, const float * logits) {
    try {
        return asl_context_access::set_logits(*ctx, logits);
    } catch (const std::exception &) {
        return false;
    }
}

asl_status asl_context_move(llama_context * src, int32_t src_seq_id, llama_context * dst, int32_t seq_id, bool with_logits, char * error, size_t n_error) {
    asl_status status = ASL_ERR_INTERNAL;
    try {
        asl_move_cells(*src, src_seq_id, *dst, seq_id, with_logits);
        return ASL_OK;
    } catch (const asl_error & err) {
        status = err.status;
        asl_copy_message(error, n_error, err.what());
    } catch (const std::bad_alloc &) {
        status = ASL_ERR_MEMORY;
        asl_copy_message(error, n_error, "out of memory");
    } catch (const std::exception & err) {
        status = ASL_ERR_UNSUPPORTED;
        asl_copy_message(error, n_error, err.what());
    }
    return status;
}

int32_t asl_context_get_free_cells(llama_context * ctx, int32_t seq_id) {
    try {
        return asl_count_free_cells(*ctx, seq_id);
    } catch (const std::exception &) {
        return -1;
    }
}

asl_session * asl_session_init(llama_context * ctx, const llama_context_params * params, uint32_t n_ctx, char * error, size_t n_error) {
    try {
        return new asl_session(*ctx, *params, n_ctx);
    } catch (const std::exception & err) {
        asl_copy_message(error, n_error, err.what());
        return nullptr;
    }
}

void asl_session_free(asl_session * session) {
    delete session;
}

const char * asl_session_last_error(const asl_session * session) {
    return session->last_error.c_str();
}

asl_status asl_session_set_progress(asl_session * session, asl_progress_callback callback, void * user_data) {
    session->progress = callback;
    session->progress_data = user_data;
    return ASL_OK;
}

asl_status asl_session_set_dequant(asl_session * session, asl_dequant mode) {
    return guard(session, [&] {
        if (mode < ASL_DEQUANT_OFF || mode > ASL_DEQUANT_INT16) {
            throw asl_error(ASL_ERR_ARGUMENT, "expected an asl_dequant, got " + std::to_string((int) mode));
        }
        session->dequant = mode;
    });
}

asl_status asl_session_get_info(const asl_session * session, asl_session_info * info) {
    *info = session->get_info();
    return ASL_OK;
}

asl_status asl_session_begin(asl_session * session, const int32_t * tokens, int32_t n_tokens, int32_t n_window, int32_t first_pos) {
    return guard(session, [&] { session->begin(tokens, n_tokens, n_window, first_pos); });
}

asl_status asl_session_extend(asl_session * session, const int32_t * tokens, int32_t n_tokens, int32_t n_window) {
    return guard(session, [&] { session->extend(tokens, n_tokens, n_window); });
}

asl_status asl_session_set_window(asl_session * session, int32_t n_window, const float * weights) {
    return guard(session, [&] { session->set_window(n_window, weights); });
}

asl_status asl_session_rank_by(asl_session * session, bool indexer) {
    return guard(session, [&] { session->rank_by(indexer); });
}

asl_status asl_session_run(asl_session * session, int32_t n_layers, bool with_scores) {
    return guard(session, [&] { session->run(n_layers, with_scores); });
}

asl_status asl_session_start(asl_session * session, int32_t n_layers, bool with_scores) {
    return guard(session, [&] { session->start(n_layers, with_scores); });
}

asl_status asl_session_step(asl_session * session, bool * more) {
    return guard(session, [&] { *more = session->step(); });
}

asl_status asl_session_get_scores(const asl_session * session, float * dst) {
    return guard(const_cast<asl_session *>(session), [&] { session->get_scores(dst); });
}

asl_status asl_session_get_queries(const asl_session * session, float * dst) {
    return guard(const_cast<asl_session *>(session), [&] { session->get_queries(dst); });
}

asl_status asl_session_get_keys(const asl_session * session, float * dst) {
    return guard(const_cast<asl_session *>(session), [&] { session->get_keys(dst); });
}

asl_status asl_session_keep_rows(asl_session * session, const int32_t * index, int32_t n_rows, bool per_head) {
    return guard(session, [&] { session->keep_rows(index, n_rows, per_head); });
}

asl_status asl_session_shrink_rows(asl_session * session, int32_t il, const int32_t * index, int32_t n_rows, bool per_head) {
    return guard(session, [&] { session->shrink_rows(il, index, n_rows, per_head); });
}

asl_status asl_session_keep_tokens(asl_session * session, const int32_t * index, int32_t n_index) {
    return guard(session, [&] { session->keep_tokens(index, n_index); });
}

asl_status asl_session_set_past(asl_session * session, int32_t n_past) {
    return guard(session, [&] { session->set_past(n_past); });
}

asl_status asl_session_row_bytes(const asl_session * session, int32_t il, int64_t * n_bytes) {
    return guard(const_cast<asl_session *>(session), [&] { *n_bytes = session->row_bytes(il); });
}

asl_status asl_session_key_bytes(const asl_session * session, int32_t il, int64_t * n_bytes) {
    return guard(const_cast<asl_session *>(session), [&] { *n_bytes = session->key_bytes(il); });
}

asl_status asl_session_save_rows(const asl_session * session, int32_t begin, int32_t end, void * dst, int64_t n_bytes) {
    return guard(const_cast<asl_session *>(session), [&] { session->save_rows(begin, end, (uint8_t *) dst, n_bytes); });
}

asl_status asl_session_load_rows(asl_session * session, const void * src, int64_t n_bytes) {
    return guard(session, [&] { session->load_rows((const uint8_t *) src, n_bytes); });
}

asl_status asl_session_set_state_ends(asl_session * session, const int32_t * ends, int32_t n_ends) {
    return guard(session, [&] { session->set_state_ends(ends, n_ends); });
}

asl_status asl_session_state_bytes(const asl_session * session, int32_t il, int64_t * n_bytes) {
    return guard(const_cast<asl_session *>(session), [&] { *n_bytes = session->state_bytes(il); });
}

asl_status asl_session_save_state(const asl_session * session, int32_t n_tokens, void * dst, int64_t n_bytes) {
    return guard(const_cast<asl_session *>(session), [&] { session->save_state(n_tokens, (uint8_t *) dst, n_bytes); });
}

asl_status asl_session_load_state(asl_session * session, const void * src, int64_t n_bytes) {
    return guard(session, [&] { session->load_state((const uint8_t *) src, n_bytes); });
}

asl_status asl_session_save_hidden(const asl_session * session, int32_t begin, int32_t end, float * dst, int64_t n_bytes) {
    return guard(const_cast<asl_session *>(session), [&] { session->save_hidden(begin, end, dst, n_bytes); });
}

asl_status asl_session_load_hidden(asl_session * session, const float * src, int64_t n_bytes) {
    return guard(session, [&] { session->load_hidden(src, n_bytes); });
}

asl_status asl_session_layer_bytes(const asl_session * session, int32_t il, int64_t * n_bytes) {
    return guard(const_cast<asl_session *>(session), [&] { *n_bytes = session->layer_bytes(il); });
}

asl_status asl_session_save_layer(const asl_session * session, void * dst, int64_t n_bytes) {
    return guard(const_cast<asl_session *>(session), [&] { session->save_layer((uint8_t *) dst, n_bytes); });
}

asl_status asl_session_load_layer(asl_session * session, int32_t il, const void * src, int64_t n_bytes) {
    return guard(session, [&] { session->load_layer(il, (const uint8_t *) src, n_bytes); });
}

asl_status asl_session_finish(asl_session * session) {
    return guard(session, [&] { session->finish(); });
}

asl_status asl_session_start_finish(asl_session * session) {
    return guard(session, [&] { session->start_finish(); });
}

asl_status asl_session_abort(asl_session * session) {
    return guard(session, [&] { session->abort(); });
}

int32_t asl_split_words(const char * text, const char * regex, bool by_std, int32_t * dst, int32_t capacity) {
    int32_t n_words = -1;
    asl_set_std_regex(by_std);
    try {
        const std::vector<std::string> words = unicode_regex_split(text, { regex }, false);
        n_words = (int32_t) words.size();
        for (int32_t i = 0; i < n_words && i < capacity; ++i) {
            dst[i] = (int32_t) unicode_cpts_from_utf8(words[i]).size();
        }
    } catch (const std::exception &) {
    }
    asl_set_std_regex(false);
    return n_words;
}

void asl_tokenize_by_std_regex(bool on) {
    asl_set_std_regex(on);
}
