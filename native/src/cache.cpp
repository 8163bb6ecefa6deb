#include "cache.h"

#include "asl-hooks.h"
#include "memory.h"
#include "support.h"

#include "llama-context.h"
#include "llama-kv-cache-dsa-iswa.h"
#include "llama-kv-cache-dsa.h"
#include "llama-kv-cache-iswa.h"
#include "llama-model.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

static thread_local int n_shared_scopes = 0;

bool asl_kv_slots_are_shared() {
    return n_shared_scopes > 0;
}

asl_shared_kv_scope::asl_shared_kv_scope() { ++n_shared_scopes; }
asl_shared_kv_scope::~asl_shared_kv_scope() { --n_shared_scopes; }

static llama_kv_cache_dsa * get_sparse(llama_context & ctx) {
    llama_memory_i * memory = asl_attention_memory(ctx);
    auto * both = dynamic_cast<llama_kv_cache_dsa_iswa *>(memory);
    return both ? both->get_dsa() : dynamic_cast<llama_kv_cache_dsa *>(memory);
}

llama_kv_cache & asl_get_any_kv_cache(llama_context & ctx) {
    if (llama_kv_cache_dsa * sparse = get_sparse(ctx)) {
        return *sparse->get_mla();
    }
    llama_memory_i * memory = asl_attention_memory(ctx);
    auto * both = dynamic_cast<llama_kv_cache_iswa *>(memory);
    auto * kv = both ? both->get_base() : dynamic_cast<llama_kv_cache *>(memory);
    if (!memory && !ctx.get_memory()) {
        throw std::runtime_error("the model remembers nothing of earlier tokens: an encoder");
    }
    if (!kv) {
        throw std::runtime_error("the model's memory is of another kind than K/V, keys of an indexer and recurrent states: its sparse attention chooses blocks of tokens");
    }
    return *kv;
}

llama_kv_cache & asl_get_kv_cache(llama_context & ctx) {
    llama_kv_cache & kv = asl_get_any_kv_cache(ctx);
    if (kv.get_n_stream() != 1) {
        throw std::runtime_error("the decode context has one KV stream per sequence; create it with n_seq_max = 1 or kv_unified");
    }
    return kv;
}

llama_kv_cache * asl_get_kv_cache_swa(llama_context & ctx) {
    if (auto * sparse = dynamic_cast<llama_kv_cache_dsa_iswa *>(asl_attention_memory(ctx))) {
        return sparse->get_swa();
    }
    auto * both = dynamic_cast<llama_kv_cache_iswa *>(asl_attention_memory(ctx));
    return both ? both->get_swa() : nullptr;
}

llama_kv_cache * asl_get_kv_cache_indexer(llama_context & ctx) {
    llama_kv_cache_dsa * sparse = get_sparse(ctx);
    return sparse ? sparse->get_lid() : nullptr;
}

llama_kv_cache & asl_get_kv_cache(llama_context & ctx, int32_t il) {
    llama_kv_cache * swa = asl_get_kv_cache_swa(ctx);
    return swa && asl_is_sliding(ctx.get_model(), il) ? *swa : asl_get_any_kv_cache(ctx);
}

struct asl_kv_access {
    static size_t index(const llama_kv_cache & kv, int32_t il) { return kv.map_layer_ids.at(il); }

    static size_t n_layers(const llama_kv_cache & kv) { return kv.layers.size(); }

    static bool has(const llama_kv_cache & kv, int32_t il) { return kv.map_layer_ids.count(il) > 0; }

    static asl_kv_layout & layout(llama_kv_cache & kv) { return kv.asl_layout; }
};

asl_kv_layout & asl_get_layout(llama_kv_cache & kv) {
    return asl_kv_access::layout(kv);
}

bool asl_has_indexer(llama_context & ctx, int32_t il) {
    const llama_kv_cache * keys = asl_get_kv_cache_indexer(ctx);
    return keys && asl_kv_access::has(*keys, il);
}

uint32_t asl_get_version(const llama_kv_cache_context * mctx) {
    return mctx ? mctx->get_asl_version() : 0;
}

// the sliding layers' cells are alike in every layer
uint32_t asl_get_version(const llama_kv_cache_iswa_context * mctx) {
    return mctx ? asl_get_version(mctx->get_base()) : 0;
}

uint32_t asl_get_version(const llama_kv_cache_dsa_context * mctx) {
    return mctx ? asl_get_version(mctx->get_mla()) : 0;
}

uint32_t asl_get_first_cell(llama_context & ctx, int32_t il) {
    llama_kv_cache & kv = asl_get_kv_cache(ctx, il);
    return asl_kv_access::layout(kv).get_first(asl_kv_access::index(kv, il));
}

static void set_first_cell(llama_kv_cache & kv, int32_t il, uint32_t first) {
    asl_kv_access::layout(kv).set_first(asl_kv_access::n_layers(kv), asl_kv_access::index(kv, il), first);
}

void asl_set_first_cell(llama_context & ctx, int32_t il, uint32_t first) {
    set_first_cell(asl_get_kv_cache(ctx, il), il, first);
    if (asl_has_indexer(ctx, il)) {
        set_first_cell(*asl_get_kv_cache_indexer(ctx), il, first);
    }
}

asl_kv_layer asl_get_kv_layer(llama_context & ctx, int32_t il) {
    const auto & hparams = ctx.get_model().hparams;
    llama_kv_cache & kv = asl_get_kv_cache(ctx, il);

    // get_k and get_v return views that know the cache tensor; the slot info only selects the stream
    ggml_context_ptr tmp { ggml_init({ 4 * ggml_tensor_overhead(), nullptr, true }) };
    llama_kv_cache::slot_info sinfo;
    sinfo.s0 = 0;
    sinfo.s1 = 0;

    asl_kv_layer layer;
    layer.k = kv.get_k_storage(il);
    layer.n_head_kv = hparams.n_head_kv(il);
    layer.n_embd_head_k = hparams.n_embd_head_k(il);
    layer.n_embd_head_v = hparams.n_embd_head_v(il);
    if (hparams.is_mla()) {
        layer.v = asl_has_indexer(ctx, il) ? asl_get_kv_cache_indexer(ctx)->get_k_storage(il) : nullptr;
        layer.n_embd_head_v = layer.v ? layer.v->ne[0] : 0;
        return layer;
    }
    const ggml_tensor * v = kv.get_v(tmp.get(), il, 1 + asl_get_first_cell(ctx, il), sinfo);
    layer.v = v->view_src;
    layer.v_trans = v->ne[1] == layer.n_head_kv && v->ne[0] == 1 && v->ne[2] == layer.n_embd_head_v &&
                    v->nb[2] == ggml_row_size(v->type, kv.get_size());
    return layer;
}

int64_t asl_kv_bytes(const llama_context & ctx) {
    int64_t n_bytes = 0;
    const llama_memory_i * memory = asl_attention_memory(const_cast<llama_context &>(ctx));
    for (const auto & [buft, size] : (memory ? memory : ctx.get_memory())->memory_breakdown()) {
        n_bytes += size;
    }
    return n_bytes;
}

int64_t asl_kv_bytes_cell(llama_context & ctx, const llama_kv_cache & kv) {
    int64_t n_bytes = 0;
    for (uint32_t il : kv.get_layer_ids()) {
        n_bytes += asl_row_bytes(ctx, il);
    }
    return n_bytes;
}

void asl_read_keys(llama_context & ctx, int32_t il, int64_t n_rows, float * dst) {
    const asl_kv_layer layer = asl_get_kv_layer(ctx, il);
    const auto * traits = ggml_get_type_traits(layer.k->type);

    std::vector<uint8_t> row(layer.k->nb[1]);
    for (int64_t i = 0; i < n_rows; ++i) {
        ggml_backend_tensor_get(layer.k, row.data(), i * layer.k->nb[1], row.size());
        float * to = dst + i * layer.k->ne[0];
        if (layer.k->type == GGML_TYPE_F32) {
            memcpy(to, row.data(), row.size());
        } else {
            traits->to_float(row.data(), to, layer.k->ne[0]);
        }
    }
}

// Cells of a layer, and the bytes of a row of the array that holds them token by token.
struct asl_row_range {
    int64_t begin;
    int64_t end;
    size_t n_row;
};

size_t asl_key_bytes(llama_context & ctx, int32_t il) {
    const ggml_tensor * k = asl_get_kv_layer(ctx, il).k;
    return ggml_row_size(k->type, k->ne[0]);
}

size_t asl_row_bytes(llama_context & ctx, int32_t il) {
    const asl_kv_layer layer = asl_get_kv_layer(ctx, il);
    return ggml_row_size(layer.k->type, layer.k->ne[0]) + (layer.v ? ggml_row_size(layer.v->type, layer.v->ne[0]) : 0);
}

size_t asl_rows_size(llama_context & ctx, int32_t il, int64_t n_rows) {
    return asl_owns_rows(ctx.get_model(), il) ? n_rows * asl_row_bytes(ctx, il) : 0;
}

// The part of each row at byte `at`, n_bytes long, to or from contiguous memory.
static void copy_rows(const asl_row_range & r, ggml_tensor * t, size_t n_bytes, size_t at, uint8_t * dst, const uint8_t * src) {
    std::vector<uint8_t> part((r.end - r.begin) * n_bytes);
    if (dst) {
        ggml_backend_tensor_get(t, part.data(), r.begin * n_bytes, part.size());
    }
    for (int64_t i = 0; i < r.end - r.begin; ++i) {
        uint8_t * here = part.data() + i * n_bytes;
        dst ? memcpy(dst + i * r.n_row + at, here, n_bytes) : memcpy(here, src + i * r.n_row + at, n_bytes);
    }
    if (src) {
        ggml_backend_tensor_set(t, part.data(), r.begin * n_bytes, part.size());
    }
}

// The same for V stored transposed, [n_cells] per channel, in elements of type T. In squares, because one of the two
// sides is always far apart.
template <typename T>
static void copy_columns(const asl_row_range & r, ggml_tensor * t, size_t at, uint8_t * dst, const uint8_t * src) {
    const int64_t N_SQUARE = 32;
    const int64_t n = r.end - r.begin;
    const int64_t n_channels = t->ne[0];

    std::vector<T> part(n * n_channels); // [n_channels][n]
    for (int64_t c = 0; dst && c < n_channels; ++c) {
        ggml_backend_tensor_get(t, part.data() + c * n, (c * t->ne[1] + r.begin) * sizeof(T), n * sizeof(T));
    }
    for (int64_t i0 = 0; i0 < n; i0 += N_SQUARE) {
        for (int64_t c0 = 0; c0 < n_channels; c0 += N_SQUARE) {
            for (int64_t i = i0; i < std::min(n, i0 + N_SQUARE); ++i) {
                for (int64_t c = c0; c < std::min(n_channels, c0 + N_SQUARE); ++c) {
                    const size_t there = i * r.n_row + at + c * sizeof(T);
                    T & here = part[c * n + i];
                    dst ? memcpy(dst + there, &here, sizeof(T)) : memcpy(&here, src + there, sizeof(T));
                }
            }
        }
    }
    for (int64_t c = 0; src && c < n_channels; ++c) {
        ggml_backend_tensor_set(t, part.data() + c * n, (c * t->ne[1] + r.begin) * sizeof(T), n * sizeof(T));
    }
}

// Cells whose rows go by way of the host at once: as many as a long prompt has would take as much memory again. On a device
// every channel of V stored transposed is a copy of its own.
static const int64_t N_CELLS_AT_ONCE = 16384;

static void copy_block(const asl_kv_layer & layer, const asl_row_range & range, uint8_t * dst, const uint8_t * src) {
    const size_t n_k = ggml_row_size(layer.k->type, layer.k->ne[0]);

    copy_rows(range, layer.k, n_k, 0, dst, src);
    if (!layer.v) {
        return;
    }
    if (!layer.v_trans) {
        copy_rows(range, layer.v, range.n_row - n_k, n_k, dst, src);
    } else if (ggml_type_size(layer.v->type) == sizeof(uint16_t)) {
        copy_columns<uint16_t>(range, layer.v, n_k, dst, src);
    } else {
        copy_columns<uint32_t>(range, layer.v, n_k, dst, src);
    }
}

static void copy_kv(llama_context & ctx, int32_t il, int64_t begin, int64_t end, uint8_t * dst, const uint8_t * src) {
    const asl_kv_layer layer = asl_get_kv_layer(ctx, il);
    const size_t n_row = asl_row_bytes(ctx, il);
    for (int64_t first = begin; first < end; first += N_CELLS_AT_ONCE) {
        const size_t at = (first - begin) * n_row;
        copy_block(layer, { first, std::min(end, first + N_CELLS_AT_ONCE), n_row }, dst ? dst + at : nullptr, src ? src + at : nullptr);
    }
}

void asl_get_rows(llama_context & ctx, int32_t il, int64_t begin, int64_t end, uint8_t * dst) {
    copy_kv(ctx, il, begin, end, dst, nullptr);
}

void asl_set_rows(llama_context & ctx, int32_t il, int64_t begin, int64_t end, const uint8_t * src) {
    copy_kv(ctx, il, begin, end, nullptr, src);
}
