#include "pages.h"

#include "cache.h"
#include "support.h"

#include "llama-context.h"
#include "llama-kv-cache.h"
#include "llama-model.h"

#include "ggml-backend.h"

#include <algorithm>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>

static uintptr_t page_size() {
    static const uintptr_t size = sysconf(_SC_PAGESIZE);
    return size;
}

// Pinned memory, which is host memory too, must stay where the device sees it.
static bool is_pageable(const ggml_tensor * t) {
    return t->buffer && ggml_backend_buffer_get_type(t->buffer) == ggml_backend_cpu_buffer_type();
}

static void release(const ggml_tensor * t, size_t begin, size_t end) {
    const uintptr_t first = GGML_PAD((uintptr_t) t->data + begin, page_size());
    const uintptr_t last = ((uintptr_t) t->data + end) / page_size() * page_size();
    if (is_pageable(t) && first < last) {
        madvise((void *) first, last - first, MADV_DONTNEED); // locked memory refuses, and stays as it is
    }
}

static int64_t resident_bytes(const ggml_tensor * t) {
    const uintptr_t first = (uintptr_t) t->data;
    const uintptr_t last = first + ggml_nbytes(t);
    const uintptr_t begin = first / page_size() * page_size();
    std::vector<unsigned char> resident((last - begin + page_size() - 1) / page_size());
    if (!is_pageable(t) || mincore((void *) begin, last - begin, resident.data()) != 0) {
        return ggml_nbytes(t);
    }
    int64_t n_bytes = 0;
    for (size_t i = 0; i < resident.size(); ++i) {
        if (resident[i] & 1) {
            const uintptr_t page = begin + i * page_size();
            n_bytes += std::min(last, page + page_size()) - std::max(first, page);
        }
    }
    return n_bytes;
}

void asl_prefer_large_pages(void * data, size_t n_bytes) {
    const uintptr_t first = GGML_PAD((uintptr_t) data, page_size());
    const uintptr_t last = ((uintptr_t) data + n_bytes) / page_size() * page_size();
    if (first < last) {
        madvise((void *) first, last - first, MADV_HUGEPAGE); // a kernel without them refuses
    }
}
#else
void asl_prefer_large_pages(void *, size_t) {}

static void release(const ggml_tensor *, size_t, size_t) {}

static int64_t resident_bytes(const ggml_tensor * t) { return ggml_nbytes(t); }
#endif

// cells [begin, end) of a layer
static void release_cells(const asl_kv_layer & layer, int64_t begin, int64_t end) {
    release(layer.k, begin * layer.k->nb[1], end * layer.k->nb[1]);
    if (!layer.v) {
        return;
    }
    if (!layer.v_trans) {
        release(layer.v, begin * layer.v->nb[1], end * layer.v->nb[1]);
        return;
    }
    const size_t size = ggml_type_size(layer.v->type);
    const size_t channel = layer.v->ne[1] * size;
    for (int64_t i = 0; i < layer.n_head_kv * layer.n_embd_head_v; ++i) {
        release(layer.v, i * channel + begin * size, i * channel + end * size);
    }
}

void asl_release_unused(llama_context & ctx) {
    for (uint32_t il = 0; il < ctx.get_model().hparams.n_layer(); ++il) {
        if (!asl_owns_rows(ctx.get_model(), il)) {
            continue;
        }
        const asl_kv_layer layer = asl_get_kv_layer(ctx, il);
        llama_kv_cache & kv = asl_get_kv_cache(ctx, il);
        release_cells(layer, 0, asl_get_first_cell(ctx, il));
        release_cells(layer, kv.get_cells(0).used_max_p1(), kv.get_size());
    }
}

int64_t asl_resident_bytes(llama_context & ctx, int32_t il) {
    if (!asl_owns_rows(ctx.get_model(), il)) {
        return 0;
    }
    const asl_kv_layer layer = asl_get_kv_layer(ctx, il);
    return resident_bytes(layer.k) + (layer.v ? resident_bytes(layer.v) : 0);
}
