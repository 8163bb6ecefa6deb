// A regular expression (the part of ECMAScript's syntax that pre-tokenizers use) as a list of instructions.

#pragma once

#include "regex-set.h"

#include <cstdint>
#include <vector>

enum asl_regex_op {
    ASL_REGEX_SET,   // one character of set a
    ASL_REGEX_SPLIT, // go on at a, and if that fails at b
    ASL_REGEX_JUMP,  // go on at a
    ASL_REGEX_LOOK,  // what follows must match from the next instruction on (a: must not); then go on at b
    ASL_REGEX_END,   // the end of the text
    ASL_REGEX_MATCH,
};

struct asl_regex_step {
    asl_regex_op op;
    int32_t a = 0;
    int32_t b = 0;
    int32_t loop = -1; // of a split that begins a loop without a limit: its number
};

struct asl_regex_program {
    std::vector<asl_regex_step> steps;
    std::vector<asl_char_set> sets;
    int32_t n_loops = 0;
};

// False if the expression has anything else in it.
bool asl_regex_compile(const std::vector<uint32_t> & regex, asl_regex_program & program);
