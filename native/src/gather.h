// K/V rows that go from one context to another, byte for byte.

#pragma once

#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

struct llama_context;

// Copies rows of a layer's slot in src to cells first..first+n_rows-1 of the same layer in dst.
//   index: [n_head_kv][n_rows] cells of src
void asl_gather_rows(llama_context & src, llama_context & dst, int32_t il, const std::vector<int32_t> & index, int64_t n_rows, int64_t first);

// Cells of one stream of a cache.
struct asl_cell_list {
    asl_cell_list() = default;
    asl_cell_list(std::vector<uint32_t> cells) : cells(std::move(cells)) {}
    asl_cell_list(uint32_t begin, uint32_t end) : cells(end - begin) { std::iota(cells.begin(), cells.end(), begin); }

    uint32_t stream = 0;
    std::vector<uint32_t> cells;
};

// Copies the rows of a layer in cells of src to as many cells of dst, one after another. Both contexts must hold V in the
// same form.
void asl_copy_cells(llama_context & src, const asl_cell_list & from, llama_context & dst, const asl_cell_list & to, int32_t il);
