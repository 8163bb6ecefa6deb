#include "pages.h"

#include "cache.h"

#include "llama-kv-cache.h"

#include "ggml-backend.h"

#include <algorithm>
#include <vector>

#ifdef __linux__
#    include <sys/mman.h>
#    include <unistd.h>

static uintptr_t page_size() {
    static const uintptr_t size = sysconf(_SC_PAGESIZE);
    return size;
}

// Pinned memory, which is host memory too, must stay where the device sees it.
static bool is_pageable(const ggml_tensor * t) {
    return t->buffer && ggml_backend_buffer_get_type(t->buffer) == ggml_backend_cpu_buffer_type();
}

static void release(const ggml_tensor * t) {
    const uintptr_t begin = GGML_PAD((uintptr_t) t->data, page_size());
    const uintptr_t end   = ((uintptr_t) t->data + ggml_nbytes(t))/page_size()*page_size();
    if (is_pageable(t) && begin < end) {
        madvise((void *) begin, end - begin, MADV_DONTNEED); // locked memory refuses, and stays as it is
    }
}

static int64_t resident_bytes(const ggml_tensor * t) {
    const uintptr_t first = (uintptr_t) t->data;
    const uintptr_t last  = first + ggml_nbytes(t);
    const uintptr_t begin = first/page_size()*page_size();
    std::vector<unsigned char> resident((last - begin + page_size() - 1)/page_size());
    if (!is_pageable(t) || mincore((void *) begin, last - begin, resident.data()) != 0) {
        return ggml_nbytes(t);
    }
    int64_t n_bytes = 0;
    for (size_t i = 0; i < resident.size(); ++i) {
        if (resident[i] & 1) {
            const uintptr_t page = begin + i*page_size();
            n_bytes += std::min(last, page + page_size()) - std::max(first, page);
        }
    }
    return n_bytes;
}
#else
static void release(const ggml_tensor *) {}

static int64_t resident_bytes(const ggml_tensor * t) { return ggml_nbytes(t); }
#endif

void asl_release_pages(llama_context & ctx) {
    for (uint32_t il : asl_get_kv_cache(ctx).get_layer_ids()) {
        const asl_kv_layer layer = asl_get_kv_layer(ctx, il);
        release(layer.k);
        release(layer.v);
    }
}

int64_t asl_resident_bytes(llama_context & ctx, int32_t il) {
    const asl_kv_layer layer = asl_get_kv_layer(ctx, il);
    return resident_bytes(layer.k) + resident_bytes(layer.v);
}
