// The causal mask of every chunk of a prefill, as views of one band that is filled once.
//
// llama.cpp fills a mask of [n_kv, n_tokens] on the host for every graph. Layer by layer that would be once per
// chunk and layer. Token j of a chunk sees the n_past cells before the chunk and 1 + j of its own, so the mask of
// any chunk is a window into one band whose row j is open up to column n_past_max + j: column n_past_max - n_past
// is where the window begins. Where attention slides, row j is closed again up to column n_past_max + j - n_swa; that
// holds as long as the tokens follow each other.

#pragma once

#include "ggml-cpp.h"
#include "ggml.h"

#include <cstdint>
#include <vector>

class asl_causal_mask {
public:
    // The widest chunk and the longest past that masks are wanted for. Bands are made when first used.
    void reset(int32_t n_tokens_max, int32_t n_past_max);

    // A tensor to take the place of `mask` (F32 or F16 [n_kv, n_tokens], not computed): a chunk after n_past cells.
    //   n_swa: tokens that a sliding window sees, 0 for all
    //   buft: where the layer attends
    //   view_align: its kernels take rows that lie apart, if they begin at multiples of so many bytes; 0: they do not, and
    //   get a contiguous copy
    ggml_tensor * build(ggml_context * ctx, const ggml_tensor * mask, int32_t n_past, int32_t n_swa,
            ggml_backend_buffer_type_t buft, size_t view_align);

    // bytes in host memory, or in memory of other devices
    size_t size_bytes(bool host) const;

private:
    struct band {
        ggml_backend_buffer_type_t buft;
        int32_t n_swa;
        ggml_context_ptr ctx;
        ggml_backend_buffer_ptr buffer;
        ggml_tensor * tensor; // [n_past_max + n_tokens_max + padding, n_tokens_max]
        ggml_backend_buffer_ptr copy; // as large, for a chunk's contiguous copy; NULL as long as none is needed
    };

    band & get_band(ggml_backend_buffer_type_t buft, ggml_type type, int32_t n_swa);

    std::vector<band> bands; // one per device and kind of attention

    int32_t n_tokens_max = 0;
    int32_t n_past_max = 0;
};
