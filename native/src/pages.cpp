#include "pages.h"

#include "cache.h"
#include "support.h"

#include "llama-context.h"
#include "llama-kv-cache.h"
#include "llama-model.h"

#include "ggml-backend.h"

#include <algorithm>
#include <cstring>
#include <vector>

#ifdef __GLIBC__
#include <malloc.h>
#endif

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>

static uintptr_t page_size() {
    static const uintptr_t size = sysconf(_SC_PAGESIZE);
    return size;
}

// Pinned memory, which is host memory too, must stay where the device sees it.
static bool is_pageable(ggml_backend_buffer_t buffer) {
    return buffer && ggml_backend_buffer_get_type(buffer) == ggml_backend_cpu_buffer_type();
}

// Whole pages [first, last) of some bytes.
struct page_range {
    uintptr_t first;
    uintptr_t last;

    page_range(const void * data, size_t n_bytes) {
        first = GGML_PAD((uintptr_t) data, page_size());
        last = ((uintptr_t) data + n_bytes) / page_size() * page_size();
    }

    // Locked memory refuses, and stays as it is.
    bool advise(int how) const { return first < last && madvise((void *) first, last - first, how) == 0; }
};

static void release(const ggml_tensor * t, size_t begin, size_t end) {
    if (is_pageable(t->buffer)) {
        page_range((const char *) t->data + begin, end - begin).advise(MADV_DONTNEED);
    }
}

static bool released(ggml_backend_buffer_t buffer) {
    if (!is_pageable(buffer)) {
        return false;
    }
    char * begin = (char *) ggml_backend_buffer_get_base(buffer);
    char * end = begin + ggml_backend_buffer_get_size(buffer);
    const page_range pages(begin, end - begin);
    if (pages.first >= pages.last) {
        return false;
    }
    // of memory in large pages a kernel may release whole ones alone, without an error
    char & last = ((char *) pages.last)[-1];
    last = 1;
    if (!pages.advise(MADV_DONTNEED) || last != 0) {
        return false;
    }
    memset(begin, 0, (char *) pages.first - begin);
    memset((char *) pages.last, 0, end - (char *) pages.last);
    return true;
}

static int64_t resident_bytes(const ggml_tensor * t) {
    const uintptr_t first = (uintptr_t) t->data;
    const uintptr_t last = first + ggml_nbytes(t);
    const uintptr_t begin = first / page_size() * page_size();
    std::vector<unsigned char> resident((last - begin + page_size() - 1) / page_size());
    if (!is_pageable(t->buffer) || mincore((void *) begin, last - begin, resident.data()) != 0) {
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
    page_range(data, n_bytes).advise(MADV_HUGEPAGE); // a kernel without them refuses
}
#else
void asl_prefer_large_pages(void *, size_t) {}

static void release(const ggml_tensor *, size_t, size_t) {}

static bool released(ggml_backend_buffer_t) { return false; }

static int64_t resident_bytes(const ggml_tensor * t) { return ggml_nbytes(t); }
#endif

void asl_trim_heap() {
#ifdef __GLIBC__
    malloc_trim(0);
#endif
}

void asl_clear_buffer(ggml_backend_buffer_t buffer) {
    if (!released(buffer)) {
        ggml_backend_buffer_clear(buffer, 0);
    }
}

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
