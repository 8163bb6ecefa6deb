#include "regex-set.h"

#include <algorithm>

void asl_char_set::add(uint32_t first, uint32_t last) {
    for (uint32_t c = first; c <= last && c < 256; ++c) {
        low[c] = true;
    }
    if (last >= 256) {
        high.emplace_back(std::max(first, 256u), last);
    }
}

void asl_char_set::add_spaces() {
    add('\t', '\r');
    add(' ', ' ');
}

void asl_char_set::negate() {
    low = ~low;
    negated = !negated;
}

void asl_char_set::finish() {
    std::sort(high.begin(), high.end());
}

bool asl_char_set::contains_high(uint32_t c) const {
    bool found = false;
    // ranges may overlap, but there are few
    for (auto it = high.begin(); it != high.end() && it->first <= c && !found; ++it) {
        found = c <= it->second;
    }
    return found != negated;
}
