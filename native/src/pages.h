// Physical memory behind buffers in ordinary host memory. A cell of a KV cache takes pages once it is written, so that a layer
// with fewer rows takes less than one with more, though their tensors are of one size.

#pragma once

#include <cstddef>
#include <cstdint>

struct ggml_backend_buffer;
struct llama_context;

// Zeros, of which whole pages take no memory until they are written: zeroing 94 MB at once, as llama.cpp does for each context,
// takes 60 ms, and 270 where the system has to fetch the pages from a host.
void asl_clear_buffer(ggml_backend_buffer * buffer);

// Gives the pages of cells that hold no row of a layer back to the system; they read as zeros then. Does nothing for
// memory of other devices, pinned memory, and outside Linux.
void asl_release_unused(llama_context & ctx);

// Bytes of a layer's K and V that take physical memory now; all of them where asl_release_unused does nothing.
int64_t asl_resident_bytes(llama_context & ctx, int32_t il);

// Asks for large pages behind memory that was allocated and not touched yet, and is read and written from end to end again and
// again. Does nothing outside Linux.
void asl_prefer_large_pages(void * data, size_t n_bytes);

// Gives freed memory of the heap back to the system, where the C library keeps it (glibc). Does nothing elsewhere.
void asl_trim_heap();
