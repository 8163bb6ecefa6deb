// What the graphs that are cut out one after another share.

#pragma once

#include "ggml.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

// ggml_gallocr takes the places of the graph before for one of as many nodes and leaves whose tensors are no larger. That goes
// wrong where the two read other nodes: a place may be given away that is still read. So a graph of another form gets a leaf
// more where it would have as many.
class asl_part_forms {
public:
    // Leaves that this graph needs beside its own.
    //   alone: leaves of it that no node reads
    int count_pads(ggml_cgraph * part, const std::vector<ggml_tensor *> & alone);

private:
    // of the graph before
    uint64_t form = 0;
    int n_nodes = 0;
    int n_leaves = 0; // pads among them
    int n_pads = 0;
};

// Memory for a graph and the tensors that are made for it, kept for the next one.
class asl_part_memory {
public:
    ggml_context * make(size_t n_bytes);

private:
    std::unique_ptr<uint8_t[]> data;
    size_t size = 0;
};

struct asl_parts {
    asl_part_forms forms;
    asl_part_memory memory;

    int64_t host_us = 0; // CPU time of this thread that parts took beside computing and preparing weights
    int32_t n = 0;
    int32_t n_graphs = 0; // full graphs that were built for them
};

// Microseconds of CPU time that this thread has taken; by the clock where that is not known.
int64_t asl_thread_us();
