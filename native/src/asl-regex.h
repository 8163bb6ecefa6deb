// The words of a text by a pre-tokenizer's regular expression, as std::regex finds them. That one recurses for every
// character of a match, so that a run of some 30,000 equal characters ends the process, and it is quadratic where a
// long run ends in something else. This one keeps its places on the heap and visits none twice.

#pragma once

#include <cstddef>
#include <string>
#include <vector>

// Instead of unicode_regex_split_stl.
//   offsets   lengths of the pieces that are split, one after the other
//   words     lengths of the words
// False if the expression has parts that no pre-tokenizer of llama.cpp has (or tests want std::regex): words is empty.
template <typename CharT>
bool asl_regex_split(const std::basic_string<CharT> & text, const std::basic_string<CharT> & regex,
        const std::vector<size_t> & offsets, std::vector<size_t> & words);

// For tests: this thread's texts are split by std::regex.
void asl_set_std_regex(bool on);
