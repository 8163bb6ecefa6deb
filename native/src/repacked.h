// Weights in the form into which llama.cpp brings them for its own kernels when it loads a model (CPU_REPACK): the blocks of
// several rows interleaved (ggml/src/ggml-cpu/repack.cpp). They are read back as they were stored.

#pragma once

#include "ggml.h"

#include <cstdint>

struct asl_repacked_form {
    int rows = 0; // whose blocks are interleaved. 0: not repacked, or not in a way that we know
    int chunk = 0; // bytes of a row's weights that lie together
};

// Whether rows of this type can be restored from this form: one of those that llama.cpp has on x86 and ARM.
bool asl_knows_repacked(ggml_type type, asl_repacked_form form);

// How the weights of this tensor are repacked. Found out by trial: weights of the same type that llama.cpp repacks for the
// same kernel must come back as they were.
asl_repacked_form asl_find_repacked_form(const ggml_tensor * w);

// One column of blocks of a group of rows: src has form.rows interleaved blocks, dst receives as many stored ones.
void asl_restore_blocks(ggml_type type, asl_repacked_form form, const uint8_t * src, uint8_t * dst);
