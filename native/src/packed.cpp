#include "packed.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

static const size_t ALIGNMENT = 64; // of packed matrices
static const int64_t N_GROUP_BYTES = 512 * 1024; // of panels that are packed and multiplied at a time

// The scalar kernel: what the others must compute, bit for bit.

static int64_t act_index(int n_bits, int64_t k) {
    static const int ORDER[4] = { 0, 2, 1, 3 }; // its own inverse
    return n_bits == 16 ? k / 4 * 4 + ORDER[k % 4] : k;
}

static int get_act(const asl_act_form & form, const uint8_t * row, int64_t k) {
    const int64_t i = act_index(form.n_bits, k);
    return form.n_bits == 16 ? ((const int16_t *) row)[i] : ((const int8_t *) row)[i];
}

static void quantise_scalar(const asl_act_form & form, const float * x, uint8_t * dst) {
    const float max = form.n_bits == 16 ? 32767.0f : 127.0f;
    float * d = (float *) (dst + form.d_offset());
    float * s = (float *) (dst + form.s_offset());
    for (int64_t b = 0; b < form.n_in / ASL_ACT_BLOCK; ++b) {
        float max_abs = 0.0f;
        for (int64_t k = b * ASL_ACT_BLOCK; k < (b + 1) * ASL_ACT_BLOCK; ++k) {
            max_abs = std::max(max_abs, std::fabs(x[k]));
        }
        const bool is_zero = !(max_abs > ASL_MIN_ABS);
        d[b] = is_zero ? 0.0f : max_abs / max;
        const float inverse = is_zero ? 0.0f : 1.0f / d[b];
        for (int64_t k = b * ASL_ACT_BLOCK; k < (b + 1) * ASL_ACT_BLOCK; ++k) {
            const int value = (int) std::nearbyint(x[k] * inverse);
            const int64_t i = act_index(form.n_bits, k);
            if (form.n_bits == 16) {
                ((int16_t *) dst)[i] = (int16_t) std::max(-32767, std::min(32767, value));
            } else {
                ((int8_t *) dst)[i] = (int8_t) std::max(-127, std::min(127, value));
            }
        }
        for (int64_t part = b * ASL_ACT_BLOCK / form.width; part < (b + 1) * ASL_ACT_BLOCK / form.width; ++part) {
            int sum = 0;
            for (int64_t k = part * form.width; k < (part + 1) * form.width; ++k) {
                sum += get_act(form, dst, k);
            }
            s[part] = d[b] * (float) sum;
        }
    }
}

static void product_scalar(const asl_packed_matrix & w, const asl_act_form & form, const asl_packed_tokens & tokens, int64_t begin,
        int64_t end) {
    const int width = w.form.width;
    for (int64_t o = begin * ASL_PANEL; o < std::min(w.n_out, end * ASL_PANEL); ++o) {
        for (int64_t t = 0; t < tokens.n; ++t) {
            const uint8_t * row = tokens.get_acts(form, t);
            const float * d = (const float *) (row + form.d_offset());
            const float * s = (const float *) (row + form.s_offset());
            const uint8_t * block = w.data + o / ASL_PANEL * w.panel_bytes();
            float sum = 0.0f;
            for (int64_t b = 0; b < w.n_in / width; ++b, block += w.block_bytes()) {
                int32_t dot = 0;
                for (int k = 0; k < width; ++k) {
                    dot += block[(k / 4 * ASL_PANEL + o % ASL_PANEL) * 4 + k % 4] * get_act(form, row, b * width + k);
                }
                const float * scales = (const float *) (block + width * ASL_PANEL) + o % ASL_PANEL;
                sum = std::fma((float) dot * scales[0], d[b * width / ASL_ACT_BLOCK], sum);
                sum = std::fma(scales[ASL_PANEL], s[b], sum);
            }
            tokens.get_y(t)[o] = sum;
        }
    }
}

static const asl_packed_kernel SCALAR = { "scalar", quantise_scalar, product_scalar };

const asl_packed_kernel * asl_find_packed_kernel(const char * name) {
    for (const asl_packed_kernel * kernel : { &SCALAR, asl_packed_kernel_avx2(), asl_packed_kernel_avx512() }) {
        if (kernel && strcmp(kernel->name, name) == 0) {
            return kernel;
        }
    }
    return nullptr;
}

// Bytes whose first one lies at a multiple of 64.
struct aligned_bytes {
    explicit aligned_bytes(size_t n) : memory(n + 64), data(memory.data() + (64 - (uintptr_t) memory.data() % 64) % 64) {}

    std::vector<uint8_t> memory;
    uint8_t * data;
};

void asl_pack_and_multiply(const asl_packed_kernel & kernel, const asl_packed_source & source, const asl_packed_matrix & shape,
        const asl_act_form & form, const asl_packed_tokens & tokens, int64_t begin, int64_t end) {
    static thread_local std::vector<uint8_t> memory;
    const size_t n_row = ggml_row_size(source.type, shape.n_in);
    // pairs, as the kernels have them: each of the groups reads all activations
    const int64_t n_most = std::max<int64_t>(2, N_GROUP_BYTES / shape.panel_bytes() / 2 * 2);
    for (int64_t first = begin; first < end; first += n_most) {
        const int64_t n = std::min(n_most, end - first);
        asl_packed_matrix group = shape;
        group.n_out = std::min(n * ASL_PANEL, shape.n_out - first * ASL_PANEL);
        memory.resize(std::max(memory.size(), group.n_bytes() + ALIGNMENT));
        uint8_t * data = (uint8_t *) GGML_PAD((uintptr_t) memory.data(), ALIGNMENT);
        group.data = data;
        // groups of repacked rows never cross a panel: they have 4 or 8 rows
        asl_pack(source.type, source.data + first * ASL_PANEL * n_row, source.repacked, group, 0, n, data);
        asl_packed_tokens outputs = tokens;
        outputs.y += first * ASL_PANEL;
        kernel.product(group, form, outputs, 0, n);
    }
}

static void multiply(const asl_packed_kernel & kernel, const asl_packed_matrix & w, int act_bits, const float * x,
        int64_t n_tokens, float * y) {
    const asl_act_form form { act_bits, w.form.width, w.n_in };
    std::vector<uint8_t> acts(n_tokens * form.row_bytes());
    for (int64_t t = 0; t < n_tokens; ++t) {
        kernel.quantise(form, x + t * w.n_in, acts.data() + t * form.row_bytes());
    }
    asl_packed_tokens tokens;
    tokens.acts = acts.data();
    tokens.y = y;
    tokens.ldy = w.n_out;
    tokens.n = n_tokens;
    kernel.product(w, form, tokens, 0, w.n_panels());
}

bool asl_shape_packed(ggml_type type, asl_repacked_form repacked, int64_t n_out, int64_t n_in, asl_packed_matrix & shape) {
    shape.form = asl_find_packed_form(type);
    shape.n_out = n_out;
    shape.n_in = n_in;
    const bool is_whole = shape.form.width > 0 && n_out > 0 && n_in > 0 && n_in % ggml_blck_size(type) == 0;
    return is_whole && (repacked.rows == 0 || (asl_knows_repacked(type, repacked) && n_out % repacked.rows == 0));
}

bool asl_compute_packed(const asl_packed_kernel & kernel, ggml_type type, const void * weights, asl_repacked_form repacked,
        int64_t n_out, int64_t n_in, int act_bits, const float * x, int64_t n_tokens, float * y) {
    asl_packed_matrix w;
    if (n_tokens < 1 || !asl_shape_packed(type, repacked, n_out, n_in, w)) {
        return false;
    }
    const aligned_bytes packed(w.n_bytes());
    asl_pack(type, weights, repacked, w, 0, w.n_panels(), packed.data);
    w.data = packed.data;
    multiply(kernel, w, act_bits, x, n_tokens, y);
    return true;
}

// Small numbers that are the same in every run.
class small_numbers {
public:
    // 0 <= number < n
    int draw(int n) { return (int) ((state = state * 1664525u + 1013904223u) >> 8) % n; }

private:
    uint32_t state = 1;
};

// Random weights of a form, in packed shape.
static void fill(const asl_packed_matrix & w, small_numbers & numbers, uint8_t * dst) {
    for (uint8_t * block = dst; block < dst + w.n_bytes(); block += w.block_bytes()) {
        for (int i = 0; i < w.form.width * ASL_PANEL; ++i) {
            block[i] = (uint8_t) numbers.draw(1 << w.form.bits);
        }
        for (int i = 0; i < 2 * ASL_PANEL; ++i) {
            ((float *) (block + w.form.width * ASL_PANEL))[i] = (numbers.draw(2001) - 1000) / 1000.0f;
        }
    }
}

// Whether a kernel gives the scalar one's bits for every form: tokens and outputs that fill no tile.
static bool is_right(const asl_packed_kernel & kernel) {
    const int64_t N_OUT = 37, N_IN = 96, N_TOKENS = 7;
    small_numbers numbers;
    std::vector<float> x(N_TOKENS * N_IN);
    for (float & v : x) {
        v = (numbers.draw(20001) - 10000) / 3000.0f;
    }
    for (int type = 0; type < GGML_TYPE_COUNT; ++type) {
        asl_packed_matrix w;
        w.form = asl_find_packed_form((ggml_type) type);
        if (w.form.width == 0) {
            continue;
        }
        w.n_out = N_OUT;
        w.n_in = N_IN;
        const aligned_bytes weights(w.n_bytes());
        fill(w, numbers, weights.data);
        w.data = weights.data;
        for (const int n_bits : { 8, 16 }) {
            std::vector<float> want(N_TOKENS * N_OUT), got(N_TOKENS * N_OUT);
            multiply(SCALAR, w, n_bits, x.data(), N_TOKENS, want.data());
            multiply(kernel, w, n_bits, x.data(), N_TOKENS, got.data());
            if (memcmp(want.data(), got.data(), want.size() * sizeof(float)) != 0) {
                return false;
            }
        }
    }
    return true;
}

const asl_packed_kernel & asl_packed_kernel_in_force() {
    static const asl_packed_kernel & kernel = []() -> const asl_packed_kernel & {
        for (const asl_packed_kernel * k : { asl_packed_kernel_avx512(), asl_packed_kernel_avx2() }) {
            if (k && is_right(*k)) {
                return *k;
            }
        }
        return SCALAR;
    }();
    return kernel;
}
