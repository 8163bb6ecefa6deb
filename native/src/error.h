// How a status travels through the implementation: api.cpp turns it into the return value.

#pragma once

#include "asl.h"

#include <cstddef>
#include <cstdio>
#include <stdexcept>
#include <string>

struct asl_error : std::runtime_error {
    asl_error(asl_status status, const std::string & what) : std::runtime_error(what), status(status) {}

    asl_status status;
};

// At most n_dst bytes with the NUL. dst may be NULL.
inline void asl_copy_message(char * dst, size_t n_dst, const char * message) {
    if (dst && n_dst > 0) {
        snprintf(dst, n_dst, "%s", message);
    }
}
