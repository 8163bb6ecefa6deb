// Blocks of quantised weights as ggml stores them (ggml/src/ggml-common.h): what GGUF files hold.

#pragma once

#include <cstdint>
#include <cstring>

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
struct block_4_nl {
    uint16_t d;
    uint8_t qs[16];
};
struct block_4_mx {
    uint8_t e;
    uint8_t qs[16];
};
struct block_2_k {
    uint8_t scales[16];
    uint8_t qs[64];
    uint16_t d, m;
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

// Eight scales and eight minima of six bits each, which take 12 bytes: the first four of each in the low six bits of eight
// bytes, the others in four bits of four bytes and in two bits of the first eight.

inline void get_scales(const uint8_t * packed, uint8_t * scales, uint8_t * mins) {
    uint32_t word[3];
    memcpy(word, packed, sizeof(word));
    const uint32_t s[2] = { word[0] & 0x3f3f3f3f, (word[2] & 0x0f0f0f0f) | ((word[0] >> 2) & 0x30303030) };
    const uint32_t m[2] = { word[1] & 0x3f3f3f3f, ((word[2] >> 4) & 0x0f0f0f0f) | ((word[1] >> 2) & 0x30303030) };
    memcpy(scales, s, sizeof(s));
    memcpy(mins, m, sizeof(m));
}

inline void set_scales(uint8_t * packed, const uint8_t * scales, const uint8_t * mins) {
    uint32_t s[2], m[2];
    memcpy(s, scales, sizeof(s));
    memcpy(m, mins, sizeof(m));
    const uint32_t word[3] = {
        s[0] | ((s[1] & 0x30303030) << 2),
        m[0] | ((m[1] & 0x30303030) << 2),
        (s[1] & 0x0f0f0f0f) | ((m[1] & 0x0f0f0f0f) << 4),
    };
    memcpy(packed, word, sizeof(word));
}
