// Assertions of ggml as exceptions, where llama.cpp catches exceptions: in the functions that load.

#include "asl.h"

#include "error.h"

#include "ggml.h"
#include "llama.h"

#include <cstdio>
#include <mutex>
#include <stdexcept>

namespace {

thread_local bool throws = false;

std::mutex mutex;
int n_threads = 0; // that throw now
ggml_abort_callback_t previous = nullptr;

void on_abort(const char * message) {
    if (throws) {
        throw std::runtime_error(message);
    }
    if (previous) {
        previous(message);
    } else {
        fprintf(stderr, "%s\n", message);
    }
}

} // namespace

void asl_throw_on_abort(bool on) {
    if (throws == on) {
        return;
    }
    throws = on;
    const std::lock_guard<std::mutex> lock(mutex);
    n_threads += on ? 1 : -1;
    if (n_threads == 1 && on) {
        previous = ggml_set_abort_callback(on_abort);
    } else if (n_threads == 0) {
        ggml_set_abort_callback(previous);
    }
}

bool asl_context_probe(llama_context * ctx, char * error, size_t n_error) {
    const llama_vocab * vocab = llama_model_get_vocab(llama_get_model(ctx));
    const int32_t n_threads = llama_n_threads(ctx);
    const int32_t n_threads_batch = llama_n_threads_batch(ctx);
    llama_set_n_threads(ctx, 1, 1); // no other thread can throw
    asl_throw_on_abort(true);
    bool ok = true;
    try {
        const llama_token bos = llama_vocab_bos(vocab);
        llama_token token = bos >= 0 && bos < llama_vocab_n_tokens(vocab) ? bos : 0;
        llama_decode(ctx, llama_batch_get_one(&token, 1));
        llama_synchronize(ctx);
        if (llama_memory_t memory = llama_get_memory(ctx)) {
            llama_memory_clear(memory, true);
        }
        llama_perf_context_reset(ctx);
    } catch (const std::exception & err) {
        asl_copy_message(error, n_error, err.what());
        ok = false;
    }
    asl_throw_on_abort(false);
    llama_set_n_threads(ctx, n_threads, n_threads_batch);
    return ok;
}
