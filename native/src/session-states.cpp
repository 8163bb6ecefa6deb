// Recurrent states of the layers that hold one: kept for the decode context, and for prompts that begin alike.

#include "session.h"

#include "memory.h"

#include "llama-context.h"

#include <algorithm>
#include <cstring>

static std::string str(int64_t value) { return std::to_string(value); }

// A turn's state waits until its last slice: the decode context stays as it was if the turn ends early.
void asl_session::keep_state(int32_t il) {
    if (!past.exists()) {
        asl_copy_state(*prefill, 0, ctx, 0, il);
        return;
    }
    states.resize(n_layer);
    states[il].resize(asl_state_size(*prefill, il));
    asl_save_state(*prefill, il, 0, states[il].data());
}

void asl_session::set_state_ends(const int32_t * ends, int32_t n_ends) {
    check_open(false);
    check_begun();
    if ((int32_t) positions.size() != n_tokens) {
        throw asl_error(ASL_ERR_STATE, "expected all " + str(n_tokens) + " tokens to be current, " + str(positions.size()) + " are left");
    }
    for (int32_t i = 0; i < n_ends; ++i) {
        const int32_t floor = i > 0 ? ends[i - 1] + 1 : 1;
        if (ends[i] < floor || ends[i] >= n_tokens) {
            throw asl_error(ASL_ERR_ARGUMENT, "expected increasing numbers of tokens from 1 to " + str(n_tokens - 1) + ", got " + str(ends[i]) + " at place " + str(i));
        }
    }
    state_ends.assign(ends, ends + n_ends);
    states_noted.clear();
    forget_chunks(); // chunks end there
}

// A chunk has run.
void asl_session::note_state() {
    const auto found = std::find(state_ends.begin(), state_ends.end(), slices.n_done);
    if (found == state_ends.end() || asl_state_size(*prefill, next_layer) == 0) {
        return;
    }
    ggml_backend_sched_synchronize(prefill->get_sched());
    states_noted.resize(state_ends.size());
    auto & state = states_noted[found - state_ends.begin()];
    state.resize(asl_state_size(*prefill, next_layer));
    asl_save_state(*prefill, next_layer, 0, state.data());
}

size_t asl_session::state_bytes(int32_t il) const {
    check_open(false);
    if (il < 0 || il >= n_layer) {
        throw asl_error(ASL_ERR_ARGUMENT, "expected a layer from 0 to " + str(n_layer - 1) + ", got " + str(il));
    }
    return asl_state_size(*prefill, il);
}

void asl_session::save_state(int32_t n_tokens, uint8_t * dst, size_t n_bytes) const {
    const int32_t il = check_open(true);
    check_size(asl_state_size(*prefill, il), n_bytes);
    if (n_tokens == (int32_t) positions.size()) {
        asl_save_state(*prefill, il, 0, dst);
        return;
    }
    const size_t i = std::find(state_ends.begin(), state_ends.end(), n_tokens) - state_ends.begin();
    if (i >= states_noted.size() || states_noted[i].size() != n_bytes) {
        throw asl_error(ASL_ERR_ARGUMENT, "expected all " + str(positions.size()) + " current tokens, or a number of asl_session_set_state_ends at which layer " +
                                                  str(il) + " has ended a chunk, got " + str(n_tokens));
    }
    memcpy(dst, states_noted[i].data(), n_bytes);
}

void asl_session::load_state(const uint8_t * src, size_t n_bytes) {
    check_open(false);
    check_begun();
    if (n_past == 0 || next_layer == n_layer) {
        throw asl_error(ASL_ERR_STATE, "expected tokens that are not computed (asl_session_set_past) and a layer left to run, got " + str(n_past) +
                                               " tokens and layer " + str(next_layer) + " of " + str(n_layer));
    }
    if (asl_state_size(*prefill, next_layer) == 0) {
        throw asl_error(ASL_ERR_STATE, "expected a layer with a recurrent state, layer " + str(next_layer) + " has none");
    }
    check_size(asl_state_size(*prefill, next_layer), n_bytes);
    asl_load_state(*prefill, next_layer, 0, src);
    state_ready = true;
}
