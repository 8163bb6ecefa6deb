// Weights, as stored or as llama.cpp repacked them, brought into packed form.

#include "packed.h"

#include "blocks.h"

#include <algorithm>
#include <stdexcept>
#include <string>

// Stored blocks of the rows of a panel, taken apart: a weight is d*q + m.
struct unpacked_block {
    uint8_t q[256];
    float d[16]; // of each part
    float m[16];
};

// ggml's own is a call for each number
static float to_f32(uint16_t half) {
    const bool is_finite = (half & 0x7c00) != 0x7c00;
    const uint32_t bits = is_finite ? (uint32_t) (half & 0x7fff) << 13 : 0x7f800000u | (uint32_t) (half & 0x3ff) << 13;
    float value;
    memcpy(&value, &bits, sizeof(value));
    value = is_finite ? value * 0x1p112f : value; // from the exponent's bias of f16 to that of f32
    return half & 0x8000 ? -value : value;
}

// 2^(e - 128): MXFP4's values are twice what they stand for
static float exponent_to_f32(uint8_t e) {
    const uint32_t bits = e < 2 ? 0x00200000u << e : (uint32_t) (e - 1) << 23;
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

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

static void unpack(const block_4_0 & x, unpacked_block & to) {
    set_nibbles(x.qs, to.q);
    to.d[0] = to_f32(x.d);
    to.m[0] = -8 * to.d[0];
}

static void unpack(const block_4_1 & x, unpacked_block & to) {
    set_nibbles(x.qs, to.q);
    to.d[0] = to_f32(x.d);
    to.m[0] = to_f32(x.m);
}

static void unpack(const block_5_0 & x, unpacked_block & to) {
    set_nibbles(x.qs, to.q);
    add_fifth_bits(x.qh, to.q);
    to.d[0] = to_f32(x.d);
    to.m[0] = -16 * to.d[0];
}

static void unpack(const block_5_1 & x, unpacked_block & to) {
    set_nibbles(x.qs, to.q);
    add_fifth_bits(x.qh, to.q);
    to.d[0] = to_f32(x.d);
    to.m[0] = to_f32(x.m);
}

static void unpack(const block_8_0 & x, unpacked_block & to) {
    for (int i = 0; i < 32; ++i) {
        to.q[i] = (uint8_t) (x.qs[i] + 128);
    }
    to.d[0] = to_f32(x.d);
    to.m[0] = -128 * to.d[0];
}

static void look_up_nibbles(const uint8_t * qs, const uint8_t * values, uint8_t * q) {
    for (int i = 0; i < 16; ++i) {
        q[i] = values[qs[i] & 15];
        q[i + 16] = values[qs[i] >> 4];
    }
}

static void unpack(const block_4_nl & x, unpacked_block & to) {
    static const uint8_t VALUES[16] = { 1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241 }; // + 128
    look_up_nibbles(x.qs, VALUES, to.q);
    to.d[0] = to_f32(x.d);
    to.m[0] = -128 * to.d[0];
}

static void unpack(const block_4_mx & x, unpacked_block & to) {
    set_nibbles(x.qs, to.q);
    for (int i = 0; i < 32; ++i) {
        // 0 1 2 3 4 6 8 12, then the same negative: the largest of three lines, each moved up by 16. No table, so that
        // compilers compute 16 at a time
        const uint8_t n = to.q[i] & 7;
        const uint8_t value = std::max({ (uint8_t) (n + 16), (uint8_t) (2 * n + 12), (uint8_t) (4 * n) }) - 16;
        to.q[i] = to.q[i] & 8 ? 12 - value : 12 + value;
    }
    to.d[0] = exponent_to_f32(x.e);
    to.m[0] = -12 * to.d[0];
}

static void unpack(const block_2_k & x, unpacked_block & to) {
    const float d = to_f32(x.d), m = to_f32(x.m);
    for (int j = 0; j < 16; ++j) {
        to.d[j] = d * (x.scales[j] & 15);
        to.m[j] = -m * (x.scales[j] >> 4);
    }
    for (int part = 0; part < 8; ++part) {
        for (int i = 0; i < 32; ++i) {
            to.q[part * 32 + i] = (x.qs[part / 4 * 32 + i] >> (part % 4 * 2)) & 3;
        }
    }
}

static void set_scales_of_eight(uint16_t half_d, uint16_t half_m, const uint8_t * packed, unpacked_block & to) {
    uint8_t scales[8], mins[8];
    get_scales(packed, scales, mins);
    const float d = to_f32(half_d), m = to_f32(half_m);
    for (int j = 0; j < 8; ++j) {
        to.d[j] = d * scales[j];
        to.m[j] = -m * mins[j];
    }
}

static void unpack(const block_4_k & x, unpacked_block & to) {
    set_scales_of_eight(x.d, x.m, x.scales, to);
    for (int j = 0; j < 4; ++j) {
        for (int i = 0; i < 32; ++i) {
            to.q[j * 64 + i] = x.qs[j * 32 + i] & 15;
            to.q[j * 64 + 32 + i] = x.qs[j * 32 + i] >> 4;
        }
    }
}

static void unpack(const block_5_k & x, unpacked_block & to) {
    set_scales_of_eight(x.d, x.m, x.scales, to);
    for (int j = 0; j < 4; ++j) {
        for (int i = 0; i < 32; ++i) {
            const uint8_t high = x.qh[i] >> (2 * j);
            to.q[j * 64 + i] = (x.qs[j * 32 + i] & 15) | ((high & 1) << 4);
            to.q[j * 64 + 32 + i] = (x.qs[j * 32 + i] >> 4) | ((high & 2) << 3);
        }
    }
}

static void unpack(const block_6_k & x, unpacked_block & to) {
    const float d = to_f32(x.d);
    for (int j = 0; j < 16; ++j) {
        to.d[j] = d * x.scales[j];
        to.m[j] = -32 * to.d[j];
    }
    for (int half = 0; half < 2; ++half) {
        const uint8_t * ql = x.ql + half * 64;
        const uint8_t * qh = x.qh + half * 32;
        uint8_t * q = to.q + half * 128;
        for (int i = 0; i < 32; ++i) {
            q[i] = (ql[i] & 15) | ((qh[i] & 3) << 4);
            q[i + 32] = (ql[i + 32] & 15) | ((qh[i] & 12) << 2);
            q[i + 64] = (ql[i] >> 4) | (qh[i] & 48);
            q[i + 96] = (ql[i + 32] >> 4) | ((qh[i] & 192) >> 2);
        }
    }
}

// Blocks of a panel's rows to packed ones, those of N_IN inputs. Rows that do not exist are NULL.
template <class Block, int N_IN, int WIDTH>
static void pack_blocks(const uint8_t * const * rows, uint8_t * dst) {
    static const int N_PARTS = N_IN / WIDTH;
    unpacked_block blocks[ASL_PANEL];
    for (int r = 0; r < ASL_PANEL; ++r) {
        if (rows[r]) {
            unpack(*(const Block *) rows[r], blocks[r]);
        } else {
            blocks[r] = {};
        }
    }
    for (int part = 0; part < N_PARTS; ++part) {
        for (int at = part * WIDTH; at < (part + 1) * WIDTH; at += 4) {
            for (int r = 0; r < ASL_PANEL; ++r, dst += 4) {
                memcpy(dst, blocks[r].q + at, 4);
            }
        }
        float scales[2][ASL_PANEL];
        for (int r = 0; r < ASL_PANEL; ++r) {
            scales[0][r] = blocks[r].d[part];
            scales[1][r] = blocks[r].m[part];
        }
        memcpy(dst, scales, sizeof(scales));
        dst += sizeof(scales);
    }
}

struct packer {
    ggml_type type;
    size_t block_size;
    int n_in; // of a stored block
    asl_packed_form form;
    void (*pack_blocks)(const uint8_t * const * rows, uint8_t * dst);
};

static const packer PACKERS[] = {
    { GGML_TYPE_Q4_0, sizeof(block_4_0), 32, { 32, 4 }, pack_blocks<block_4_0, 32, 32> },
    { GGML_TYPE_Q4_1, sizeof(block_4_1), 32, { 32, 4 }, pack_blocks<block_4_1, 32, 32> },
    { GGML_TYPE_Q5_0, sizeof(block_5_0), 32, { 32, 5 }, pack_blocks<block_5_0, 32, 32> },
    { GGML_TYPE_Q5_1, sizeof(block_5_1), 32, { 32, 5 }, pack_blocks<block_5_1, 32, 32> },
    { GGML_TYPE_Q8_0, sizeof(block_8_0), 32, { 32, 8 }, pack_blocks<block_8_0, 32, 32> },
    { GGML_TYPE_IQ4_NL, sizeof(block_4_nl), 32, { 32, 8 }, pack_blocks<block_4_nl, 32, 32> },
    { GGML_TYPE_MXFP4, sizeof(block_4_mx), 32, { 32, 5 }, pack_blocks<block_4_mx, 32, 32> },
    { GGML_TYPE_Q2_K, sizeof(block_2_k), 256, { 16, 2 }, pack_blocks<block_2_k, 256, 16> },
    { GGML_TYPE_Q4_K, sizeof(block_4_k), 256, { 32, 4 }, pack_blocks<block_4_k, 256, 32> },
    { GGML_TYPE_Q5_K, sizeof(block_5_k), 256, { 32, 5 }, pack_blocks<block_5_k, 256, 32> },
    { GGML_TYPE_Q6_K, sizeof(block_6_k), 256, { 16, 6 }, pack_blocks<block_6_k, 256, 16> },
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

void asl_pack(ggml_type type, const void * src, asl_repacked_form repacked, const asl_packed_matrix & w, int64_t begin, int64_t end,
        uint8_t * dst) {
    const packer * p = find_packer(type);
    if (!p) {
        throw std::runtime_error(std::string("expected a type of weights that can be packed, got ") + ggml_type_name(type));
    }
    const size_t n_row = ggml_row_size(type, w.n_in);
    const size_t n_packed = p->n_in / w.form.width * w.block_bytes();
    uint8_t restored[ASL_PANEL * sizeof(block_6_k)]; // the largest
    for (int64_t first = begin * ASL_PANEL; first < end * ASL_PANEL; first += ASL_PANEL) {
        const uint8_t * top = (const uint8_t *) src + first * n_row;
        uint8_t * packed = dst + first / ASL_PANEL * w.panel_bytes();
        for (int64_t column = 0; column < w.n_in / p->n_in; ++column, packed += n_packed) {
            const uint8_t * rows[ASL_PANEL] = {};
            for (int64_t r = 0; r < ASL_PANEL && first + r < w.n_out; ++r) {
                rows[r] = repacked.rows > 0 ? restored + r * p->block_size : top + r * n_row + column * p->block_size;
            }
            for (int64_t r = 0; repacked.rows > 0 && r < ASL_PANEL && first + r < w.n_out; r += repacked.rows) {
                const uint8_t * group = top + r * n_row + column * repacked.rows * p->block_size;
                asl_restore_blocks(type, repacked, group, restored + r * p->block_size);
            }
            p->pack_blocks(rows, packed);
        }
    }
}
