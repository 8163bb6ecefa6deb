// Assertions of ggml as exceptions, where llama.cpp catches exceptions: in the functions that load.

#include "asl.h"

#include "ggml.h"

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
