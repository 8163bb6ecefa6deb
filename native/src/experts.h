// Products of experts (GGML_OP_MUL_MAT_ID) with packed weights (packed.h): each token is multiplied with the matrices of the
// experts that a router chose for it. Tokens are grouped by expert, and weights packed as they are multiplied: those of a layer
// would take up to a gigabyte.

#pragma once

#include "packed.h"

#include <cstddef>
#include <cstdint>

struct asl_expert_product {
    asl_packed_source source; // matrices of all experts, one after another
    asl_packed_matrix shape; // of one of them
    asl_act_form form;
    int64_t n_expert = 0;
    int64_t n_tokens = 0;
    int64_t n_used = 0; // experts of a token

    const char * ids = nullptr; // int32: expert u of token t lies at u*nb_used + t*nb_token
    size_t nb_used = 0;
    size_t nb_token = 0;

    const uint8_t * acts = nullptr; // rows of the form
    int64_t n_acts = 1; // rows of a token: 1, or one for each of its experts
    float * y = nullptr; // [n_tokens][n_used][n_out]

    int32_t get_expert(int64_t t, int64_t u) const { return *(const int32_t *) (ids + u * nb_used + t * nb_token); }
};

// The whole product by one kernel, for tests: of p, all but shape, form and acts. x: float [n_tokens][n_acts][n_in]. Returns
// false if the weights cannot be packed.
bool asl_compute_experts(const asl_packed_kernel & kernel, asl_expert_product p, int64_t n_out, int64_t n_in, int act_bits,
        const float * x, int n_threads);

// Part ith of nth of the outputs. Each is computed by itself: parts, and what other tokens there are, change no bit.
void asl_multiply_experts(const asl_packed_kernel & kernel, const asl_expert_product & product, int ith, int nth);
