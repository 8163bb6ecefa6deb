#include "packed.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

// Blocks as ggml stores them (ggml/src/ggml-common.h): what GGUF files hold.
struct block_4_0 {
    uint16_t d;
    uint8_t qs[16];
};
struct block_4_1 {
    uint16_t d, m;
    uint8_t qs[16];
};
struct block_5_0 {
    uint16_t d;
    uint8_t qh[4];
    uint8_t qs[16];
};
struct block_5_1 {
    uint16_t d, m;
    uint8_t qh[4];
    uint8_t qs[16];
};
struct block_8_0 {
    uint16_t d;
    int8_t qs[32];
};
struct block_4_k {
    uint16_t d, m;
    uint8_t scales[12];
    uint8_t qs[128];
};
struct block_5_k {
    uint16_t d, m;
    uint8_t scales[12];
    uint8_t qh[32];
    uint8_t qs[128];
};
struct block_6_k {
    uint8_t ql[128];
    uint8_t qh[64];
    int8_t scales[16];
    uint16_t d;
};

// One row of weights, taken apart.
struct unpacked_row {
    std::vector<uint8_t> q; // [n_in]
    std::vector<float> d; // [n_in/width]
    std::vector<float> m;
};

static float to_f32(uint16_t half) { return ggml_fp16_to_fp32(half); }

static void set_nibbles(const uint8_t * qs, uint8_t * q) {
    for (int i = 0; i < 16; ++i) {
        q[i] = qs[i] & 15;
        q[i + 16] = qs[i] >> 4;
    }
}

static void add_fifth_bits(const uint8_t * qh, uint8_t * q) {
    uint32_t bits;
    memcpy(&bits, qh, sizeof(bits));
    for (int i = 0; i < 32; ++i) {
        q[i] |= ((bits >> i) & 1) << 4;
    }
}

// scale and minimum j of eight, in six bits each
static void get_scale_min(const uint8_t * scales, int j, int & scale, int & min) {
    if (j < 4) {
        scale = scales[j] & 63;
        min = scales[j + 4] & 63;
    } else {
        scale = (scales[j + 4] & 15) | (scales[j - 4] >> 6 << 4);
        min = (scales[j + 4] >> 4) | (scales[j] >> 6 << 4);
    }
}

// What a block adds to a row: its weights q, and (d, m) of each part of it.

static void unpack(const block_4_0 & x, uint8_t * q, float * d, float * m) {
    set_nibbles(x.qs, q);
    *d = to_f32(x.d);
    *m = -8 * to_f32(x.d);
}

static void unpack(const block_4_1 & x, uint8_t * q, float * d, float * m) {
    set_nibbles(x.qs, q);
    *d = to_f32(x.d);
    *m = to_f32(x.m);
}

static void unpack(const block_5_0 & x, uint8_t * q, float * d, float * m) {
    set_nibbles(x.qs, q);
    add_fifth_bits(x.qh, q);
    *d = to_f32(x.d);
    *m = -16 * to_f32(x.d);
}

static void unpack(const block_5_1 & x, uint8_t * q, float * d, float * m) {
    set_nibbles(x.qs, q);
    add_fifth_bits(x.qh, q);
    *d = to_f32(x.d);
    *m = to_f32(x.m);
}

static void unpack(const block_8_0 & x, uint8_t * q, float * d, float * m) {
    for (int i = 0; i < 32; ++i) {
        q[i] = (uint8_t) (x.qs[i] + 128);
    }
    *d = to_f32(x.d);
    *m = -128 * to_f32(x.d);
}

static void unpack(const block_4_k & x, uint8_t * q, float * d, float * m) {
    for (int j = 0; j < 8; ++j) {
        int scale, min;
        get_scale_min(x.scales, j, scale, min);
        d[j] = to_f32(x.d) * scale;
        m[j] = -to_f32(x.m) * min;
        for (int i = 0; i < 32; ++i) {
            q[j * 32 + i] = (x.qs[j / 2 * 32 + i] >> (j % 2 * 4)) & 15;
        }
    }
}

static void unpack(const block_5_k & x, uint8_t * q, float * d, float * m) {
    for (int j = 0; j < 8; ++j) {
        int scale, min;
        get_scale_min(x.scales, j, scale, min);
        d[j] = to_f32(x.d) * scale;
        m[j] = -to_f32(x.m) * min;
        for (int i = 0; i < 32; ++i) {
            q[j * 32 + i] = ((x.qs[j / 2 * 32 + i] >> (j % 2 * 4)) & 15) | (((x.qh[i] >> j) & 1) << 4);
        }
    }
}

static void unpack(const block_6_k & x, uint8_t * q, float * d, float * m) {
    for (int j = 0; j < 16; ++j) {
        d[j] = to_f32(x.d) * x.scales[j];
        m[j] = -32 * d[j];
    }
    for (int half = 0; half < 2; ++half) {
        const uint8_t * ql = x.ql + half * 64;
        const uint8_t * qh = x.qh + half * 32;
        for (int part = 0; part < 4; ++part) {
            for (int i = 0; i < 32; ++i) {
                const int low = (ql[part % 2 * 32 + i] >> (part / 2 * 4)) & 15;
                const int high = (qh[i] >> (part * 2)) & 3;
                q[half * 128 + part * 32 + i] = (uint8_t) (low | (high << 4));
            }
        }
    }
}

template <class Block, int N_IN, int WIDTH>
static void unpack_row(const void * src, int64_t n_in, unpacked_row & row) {
    const Block * blocks = (const Block *) src;
    for (int64_t b = 0; b < n_in / N_IN; ++b) {
        unpack(blocks[b], row.q.data() + b * N_IN, row.d.data() + b * (N_IN / WIDTH), row.m.data() + b * (N_IN / WIDTH));
    }
}

struct packer {
    ggml_type type;
    size_t block_size;
    asl_packed_form form;
    void (*unpack_row)(const void * src, int64_t n_in, unpacked_row & row);
};

static const packer PACKERS[] = {
    { GGML_TYPE_Q4_0, sizeof(block_4_0), { 32, 4 }, unpack_row<block_4_0, 32, 32> },
    { GGML_TYPE_Q4_1, sizeof(block_4_1), { 32, 4 }, unpack_row<block_4_1, 32, 32> },
    { GGML_TYPE_Q5_0, sizeof(block_5_0), { 32, 5 }, unpack_row<block_5_0, 32, 32> },
    { GGML_TYPE_Q5_1, sizeof(block_5_1), { 32, 5 }, unpack_row<block_5_1, 32, 32> },
    { GGML_TYPE_Q8_0, sizeof(block_8_0), { 32, 8 }, unpack_row<block_8_0, 32, 32> },
    { GGML_TYPE_Q4_K, sizeof(block_4_k), { 32, 4 }, unpack_row<block_4_k, 256, 32> },
    { GGML_TYPE_Q5_K, sizeof(block_5_k), { 32, 5 }, unpack_row<block_5_k, 256, 32> },
    { GGML_TYPE_Q6_K, sizeof(block_6_k), { 16, 6 }, unpack_row<block_6_k, 256, 16> },
};

static const packer * find_packer(ggml_type type) {
    for (const packer & p : PACKERS) {
        if (p.type == type && p.block_size == ggml_type_size(type)) {
            return &p;
        }
    }
    return nullptr;
}

asl_packed_form asl_find_packed_form(ggml_type type) {
    const packer * p = find_packer(type);
    return p ? p->form : asl_packed_form();
}

void asl_pack(ggml_type type, const void * src, const asl_packed_matrix & w, int64_t begin, int64_t end, uint8_t * dst) {
    const packer * p = find_packer(type);
    if (!p) {
        throw std::runtime_error(std::string("expected a type of weights that can be packed, got ") + ggml_type_name(type));
    }
    const size_t n_row = ggml_row_size(type, w.n_in);
    const int64_t n_blocks = w.n_in / w.form.width;
    unpacked_row row { std::vector<uint8_t>(w.n_in), std::vector<float>(n_blocks), std::vector<float>(n_blocks) };
    for (int64_t o = begin * ASL_PANEL; o < end * ASL_PANEL; ++o) {
        if (o < w.n_out) {
            p->unpack_row((const char *) src + o * n_row, w.n_in, row);
        } else {
            std::fill(row.q.begin(), row.q.end(), 0);
            std::fill(row.d.begin(), row.d.end(), 0.0f);
            std::fill(row.m.begin(), row.m.end(), 0.0f);
        }
        uint8_t * block = dst + o / ASL_PANEL * w.panel_bytes();
        const int64_t i = o % ASL_PANEL;
        for (int64_t b = 0; b < n_blocks; ++b, block += w.block_bytes()) {
            for (int g = 0; g < w.form.width / 4; ++g) {
                memcpy(block + (g * ASL_PANEL + i) * 4, row.q.data() + b * w.form.width + g * 4, 4);
            }
            float * scales = (float *) (block + w.form.width * ASL_PANEL);
            scales[i] = row.d[b];
            scales[ASL_PANEL + i] = row.m[b];
        }
    }
}

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

static void product_scalar(const asl_packed_matrix & w, const asl_act_form & form, const uint8_t * acts, int64_t n_tokens,
        int64_t begin, int64_t end, float * y, int64_t ldy) {
    const int width = w.form.width;
    for (int64_t o = begin * ASL_PANEL; o < std::min(w.n_out, end * ASL_PANEL); ++o) {
        for (int64_t t = 0; t < n_tokens; ++t) {
            const uint8_t * row = acts + t * form.row_bytes();
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
            y[t * ldy + o] = sum;
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

static void multiply(const asl_packed_kernel & kernel, const asl_packed_matrix & w, int act_bits, const float * x,
        int64_t n_tokens, float * y) {
    const asl_act_form form { act_bits, w.form.width, w.n_in };
    std::vector<uint8_t> acts(n_tokens * form.row_bytes());
    for (int64_t t = 0; t < n_tokens; ++t) {
        kernel.quantise(form, x + t * w.n_in, acts.data() + t * form.row_bytes());
    }
    kernel.product(w, form, acts.data(), n_tokens, 0, w.n_panels(), y, w.n_out);
}

bool asl_compute_packed(const asl_packed_kernel & kernel, ggml_type type, const void * weights, int64_t n_out, int64_t n_in,
        int act_bits, const float * x, int64_t n_tokens, float * y) {
    asl_packed_matrix w;
    w.form = asl_find_packed_form(type);
    w.n_out = n_out;
    w.n_in = n_in;
    if (w.form.width == 0 || n_out < 1 || n_in < 1 || n_tokens < 1 || n_in % ggml_blck_size(type) != 0) {
        return false;
    }
    const aligned_bytes packed(w.n_bytes());
    asl_pack(type, weights, w, 0, w.n_panels(), packed.data);
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
    for (const packer & p : PACKERS) {
        asl_packed_matrix w;
        w.form = p.form;
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
