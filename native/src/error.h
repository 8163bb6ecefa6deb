// How a status travels through the implementation: api.cpp turns it into the return value.

#pragma once

#include "asl.h"

#include <stdexcept>
#include <string>

struct asl_error : std::runtime_error {
    asl_error(asl_status status, const std::string & what) : std::runtime_error(what), status(status) {}

    asl_status status;
};
