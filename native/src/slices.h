// Where a run stands between two slices. A slice is one chunk of one layer, or the output head.

#pragma once

#include <cstdint>

struct asl_slices {
    int32_t end_layer = 0;     // layers before it run
    int32_t n_done = -1;    // current tokens done in the layer that runs; -1: it has not begun
    bool with_scores = false; // of the last layer
    bool finishes = false; // the layers keep all rows, and the head follows

    bool is_open() const { return end_layer > 0; }
};
