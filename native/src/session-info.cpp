// What a prefill has measured so far.

#include "session.h"

#include "cache.h"
#include "error.h"
#include "support.h"

#include "llama-context.h"
#include "llama-model.h"

#include <algorithm>

static void check_scores(bool has_scores) {
    if (!has_scores) {
        throw asl_error(ASL_ERR_STATE, "the layer that ran last has no scores; run it with_scores");
    }
}

void asl_session::get_scores(float * dst) const {
    check_open(true);
    check_scores(has_scores);
    std::copy(scores.begin(), scores.end(), dst);
}

void asl_session::get_queries(float * dst) const {
    check_open(true);
    check_scores(has_scores);
    std::copy(queries.begin(), queries.end(), dst);
}

void asl_session::get_keys(float * dst) const {
    const int32_t il = check_open(true);
    check_slot();
    if (!asl_has_attention(ctx.get_model(), il)) {
        throw asl_error(ASL_ERR_STATE, "expected a layer with attention, layer " + std::to_string(il) + " has no keys");
    }
    asl_read_keys(*prefill, asl_row_owner(ctx.get_model(), il), positions.size(), dst);
}

bool asl_session::is_sliding(int32_t il) const {
    return asl_is_sliding(ctx.get_model(), il) && asl_owns_rows(ctx.get_model(), il);
}

bool asl_session::keeps_itself(int32_t il) const {
    return is_sliding(il) || !asl_owns_rows(ctx.get_model(), il);
}

asl_session_info asl_session::get_info() const {
    const auto & hparams = ctx.get_model().hparams;
    const int32_t il = std::max(0, next_layer - 1);

    asl_session_info info = {};
    info.n_layer = n_layer;
    info.next_layer = next_layer;
    info.n_tokens = n_tokens;
    info.n_current = positions.size();
    info.n_window = n_window;
    info.n_past = n_past;
    info.n_cells = asl_get_kv_cache(ctx).get_size();
    info.n_cells_used = asl_get_kv_cache(ctx).get_cells(0).get_used();
    if (llama_kv_cache * swa = asl_get_kv_cache_swa(ctx)) {
        info.n_cells_sliding = swa->get_size();
        info.n_cells_sliding_used = swa->get_cells(0).get_used();
    }
    info.n_head = hparams.n_head(il);
    info.n_head_kv = hparams.n_head_kv(il);
    info.n_embd_head_k = hparams.n_embd_head_k(il);
    info.n_hidden = n_hidden;
    info.n_dequantised = dequantiser.n_dequantised();
    info.kv_bytes_cell = kv_bytes_cell + kv_bytes_cell_sliding;
    info.kv_bytes_cell_sliding = kv_bytes_cell_sliding;
    info.kv_bytes_decode = asl_kv_bytes(ctx);
    info.kv_bytes_prefill = prefill ? asl_kv_bytes(*prefill) : 0;
    info.kv_bytes_prefill_peak = kv_bytes_prefill_peak;
    info.host_bytes = hidden.size_bytes(true) + dequantiser.size_bytes() + mask.size_bytes(true) + sliding.size_bytes();
    for (const auto * of_layers : { &states, &states_noted }) {
        for (const auto & state : *of_layers) {
            info.host_bytes += state.size();
        }
    }
    info.device_bytes = hidden.size_bytes(false) + mask.size_bytes(false) + inputs.size_bytes();
    info.host_us = parts.host_us;
    info.n_parts = parts.n;
    info.n_graphs = parts.n_graphs;
    asl_copy_message(info.attention, sizeof(info.attention), attention.describe().c_str());
    return info;
}
