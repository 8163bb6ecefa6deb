// A regular expression (the part of ECMAScript's syntax that pre-tokenizers use) as a list of instructions.

#pragma once

#include <bitset>
#include <cstdint>
#include <utility>
#include <vector>

// Characters of a class.
class asl_char_set {
public:
    void add(uint32_t first, uint32_t last);
    void add_spaces(); // \s of the C locale
    void negate();
    // after the last add
    void finish();

    bool contains(uint32_t c) const { return c < 256 ? low[c] : contains_high(c); }

private:
    bool contains_high(uint32_t c) const;

    std::bitset<256> low;
    std::vector<std::pair<uint32_t, uint32_t>> high; // first and last, sorted by finish()
    bool negated = false;
};

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
