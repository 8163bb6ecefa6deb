// The characters of a class in a regular expression, such as [a-z\s].

#pragma once

#include <bitset>
#include <cstdint>
#include <utility>
#include <vector>

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
