#include "repacked.h"

#include "blocks.h"

#include "ggml-backend.h"
#include "ggml-cpp.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

// A part of a stored block, in the order in which repacked blocks have them: n_bytes of every row, unit by unit.
struct block_field {
    size_t offset; // in the stored block
    size_t n_bytes;
    size_t unit; // CHUNK: that of the form
    uint8_t flipped = 0; // bits of each byte
};

static const size_t CHUNK = 0;
static const size_t SCALES = SIZE_MAX; // 12 bytes of scales and minima: of all rows by part of the block, not of all parts by row

struct repacked_type {
    ggml_type type;
    size_t block_size;
    std::vector<asl_repacked_form> forms;
    std::vector<block_field> fields;
};

static const std::vector<repacked_type> & types() {
    static const std::vector<repacked_type> result = {
        { GGML_TYPE_Q4_0, sizeof(block_4_0), { { 8, 8 }, { 4, 8 }, { 4, 4 } },
                { { offsetof(block_4_0, d), 2, 2 }, { offsetof(block_4_0, qs), 16, CHUNK, 0x88 } } },
        { GGML_TYPE_Q8_0, sizeof(block_8_0), { { 4, 8 }, { 4, 4 } },
                { { offsetof(block_8_0, d), 2, 2 }, { offsetof(block_8_0, qs), 32, CHUNK } } },
        { GGML_TYPE_IQ4_NL, sizeof(block_4_nl), { { 8, 8 }, { 4, 4 } },
                { { offsetof(block_4_nl, d), 2, 2 }, { offsetof(block_4_nl, qs), 16, CHUNK } } },
        { GGML_TYPE_MXFP4, sizeof(block_4_mx), { { 8, 8 }, { 4, 4 } },
                { { offsetof(block_4_mx, e), 1, 1 }, { offsetof(block_4_mx, qs), 16, CHUNK } } },
        { GGML_TYPE_Q2_K, sizeof(block_2_k), { { 8, 8 } },
                { { offsetof(block_2_k, d), 2, 2 }, { offsetof(block_2_k, m), 2, 2 }, { offsetof(block_2_k, scales), 16, 2 },
                        { offsetof(block_2_k, qs), 64, CHUNK } } },
        { GGML_TYPE_Q4_K, sizeof(block_4_k), { { 8, 8 }, { 8, 4 } },
                { { offsetof(block_4_k, d), 2, 2 }, { offsetof(block_4_k, m), 2, 2 }, { offsetof(block_4_k, scales), 12, SCALES },
                        { offsetof(block_4_k, qs), 128, CHUNK } } },
        { GGML_TYPE_Q5_K, sizeof(block_5_k), { { 8, 8 }, { 8, 4 } },
                { { offsetof(block_5_k, d), 2, 2 }, { offsetof(block_5_k, m), 2, 2 }, { offsetof(block_5_k, scales), 12, SCALES },
                        { offsetof(block_5_k, qh), 32, CHUNK }, { offsetof(block_5_k, qs), 128, CHUNK } } },
        { GGML_TYPE_Q6_K, sizeof(block_6_k), { { 8, 8 }, { 8, 4 } },
                { { offsetof(block_6_k, d), 2, 2 }, { offsetof(block_6_k, scales), 16, 1 }, { offsetof(block_6_k, ql), 128, CHUNK },
                        { offsetof(block_6_k, qh), 64, CHUNK } } },
    };
    return result;
}

static const repacked_type * find_type(ggml_type type) {
    for (const repacked_type & t : types()) {
        if (t.type == type && t.block_size == ggml_type_size(type)) {
            return &t;
        }
    }
    return nullptr;
}

bool asl_knows_repacked(ggml_type type, asl_repacked_form form) {
    if (const repacked_type * t = find_type(type)) {
        for (const asl_repacked_form & known : t->forms) {
            if (known.rows == form.rows && known.chunk == form.chunk) {
                return true;
            }
        }
    }
    return false;
}

template <size_t UNIT>
static void restore_units(const block_field & field, size_t block_size, int rows, const uint8_t * src, uint8_t * dst) {
    uint8_t mask[UNIT];
    memset(mask, field.flipped, UNIT);
    for (size_t at = 0; at < field.n_bytes; at += UNIT) {
        for (int r = 0; r < rows; ++r, src += UNIT) {
            uint8_t unit[UNIT];
            memcpy(unit, src, UNIT);
            for (size_t i = 0; i < UNIT; ++i) {
                unit[i] ^= mask[i];
            }
            memcpy(dst + r * block_size + field.offset + at, unit, UNIT);
        }
    }
}

static void restore_scales(const block_field & field, size_t block_size, const uint8_t * src, uint8_t * dst) {
    const int N = 8; // rows, and parts of a block
    uint8_t scales[N][N], mins[N][N]; // [row][part]
    for (int part = 0; part < N; ++part) {
        uint8_t s[N], m[N];
        get_scales(src + part * field.n_bytes, s, m);
        for (int r = 0; r < N; ++r) {
            scales[r][part] = s[r];
            mins[r][part] = m[r];
        }
    }
    for (int r = 0; r < N; ++r) {
        set_scales(dst + r * block_size + field.offset, scales[r], mins[r]);
    }
}

void asl_restore_blocks(ggml_type type, asl_repacked_form form, const uint8_t * src, uint8_t * dst) {
    const repacked_type & t = *find_type(type);
    for (const block_field & field : t.fields) {
        switch (field.unit == CHUNK ? form.chunk : field.unit) {
        case SCALES:
            restore_scales(field, t.block_size, src, dst);
            break;
        case 1:
            restore_units<1>(field, t.block_size, form.rows, src, dst);
            break;
        case 2:
            restore_units<2>(field, t.block_size, form.rows, src, dst);
            break;
        case 4:
            restore_units<4>(field, t.block_size, form.rows, src, dst);
            break;
        default:
            restore_units<8>(field, t.block_size, form.rows, src, dst);
            break;
        }
        src += form.rows * field.n_bytes;
    }
}

// What llama.cpp makes of weights of a type in a kind of buffer.
struct repacking {
    const void * kernel = nullptr; // by which it computes their products. NULL: by none
    asl_repacked_form form;
};

static repacking try_out(ggml_backend_buffer_type_t buft, ggml_type type) {
    const int64_t N_ROWS = 16; // a multiple of what any form interleaves on x86 and ARM
    repacking result;
    const repacked_type * t = find_type(type);
    ggml_context_ptr ctx { ggml_init({ ggml_tensor_overhead(), nullptr, true }) };
    ggml_tensor * w = ggml_new_tensor_2d(ctx.get(), type, ggml_blck_size(type), N_ROWS); // rows of one block
    ggml_backend_buffer_ptr buffer { t ? ggml_backend_buft_alloc_buffer(buft, ggml_backend_buft_get_alloc_size(buft, w)) : nullptr };
    if (!buffer || ggml_backend_tensor_alloc(buffer.get(), w, ggml_backend_buffer_get_base(buffer.get())) != GGML_STATUS_SUCCESS ||
            !w->extra) {
        return result;
    }
    std::vector<uint8_t> stored(ggml_nbytes(w)), restored(stored.size());
    uint32_t state = 1;
    for (uint8_t & byte : stored) {
        state = state * 1664525u + 1013904223u;
        byte = (uint8_t) (state >> 24);
    }
    ggml_backend_tensor_set(w, stored.data(), 0, stored.size());
    result.kernel = w->extra;
    for (const asl_repacked_form & form : t->forms) {
        for (int64_t r = 0; r < N_ROWS; r += form.rows) {
            const size_t at = r * t->block_size;
            asl_restore_blocks(type, form, (const uint8_t *) w->data + at, restored.data() + at);
        }
        if (restored == stored) {
            result.form = form;
            break;
        }
    }
    return result;
}

asl_repacked_form asl_find_repacked_form(const ggml_tensor * w) {
    static std::mutex mutex;
    static std::map<std::pair<ggml_backend_buffer_type_t, ggml_type>, repacking> known;

    ggml_backend_buffer_type_t buft = w->buffer ? ggml_backend_buffer_get_type(w->buffer) : nullptr;
    if (!buft || !w->extra || strcmp(ggml_backend_buft_name(buft), "CPU_REPACK") != 0) {
        return {};
    }
    const std::lock_guard<std::mutex> lock(mutex);
    const auto key = std::make_pair(buft, w->type);
    auto found = known.find(key);
    if (found == known.end()) {
        found = known.emplace(key, try_out(buft, w->type)).first;
    }
    // another kernel, of another number of rows, would want another form
    return w->extra == found->second.kernel && w->ne[1] % std::max(1, found->second.form.rows) == 0 ? found->second.form
                                                                                                    : asl_repacked_form();
}
