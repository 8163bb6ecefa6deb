// The code of the AVX-512 attention kernel over 16 numbers in memory: what it computes can be tested on any processor.

#include "attend.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#define ASL_TARGET

#include "attend-rounded.h"

namespace {

struct plain16 {
    static const int64_t W = 16;
    static const int PANELS = 2;
    struct vec {
        float x[W];
    };

    struct ivec {
        int32_t x[W];
    };

    static ivec zero() { return ivec(); }
    static ivec dot2(const ivec & sum, const vec & a, const vec & b) {
        int16_t p[2 * W], q[2 * W];
        memcpy(p, a.x, sizeof(p));
        memcpy(q, b.x, sizeof(q));
        ivec result;
        for (int64_t i = 0; i < W; ++i) {
            result.x[i] = sum.x[i] + p[2 * i] * q[2 * i] + p[2 * i + 1] * q[2 * i + 1];
        }
        return result;
    }
    static vec to_float(const ivec & v) {
        return each([&](int64_t i) { return (float) v.x[i]; });
    }
    static void store16(char * dst, const vec & v) {
        for (int64_t i = 0; i < W; ++i) {
            const int16_t value = v.x[i] == v.x[i] ? (int16_t) std::nearbyint(std::min(32767.0f, std::max(-32768.0f, v.x[i]))) : 0;
            memcpy(dst + i * sizeof(value), &value, sizeof(value));
        }
    }
    static vec pairs(const char * lower, const char * upper) {
        int16_t both[2 * W];
        for (int64_t i = 0; i < W; ++i) {
            memcpy(both + 2 * i, lower + i * sizeof(int16_t), sizeof(int16_t));
            memcpy(both + 2 * i + 1, upper + i * sizeof(int16_t), sizeof(int16_t));
        }
        vec result;
        memcpy(result.x, both, sizeof(both));
        return result;
    }

    template <class F>
    static vec each(F f) {
        vec result;
        for (int64_t i = 0; i < W; ++i) {
            result.x[i] = f(i);
        }
        return result;
    }

    static vec load(const float * p) {
        return each([&](int64_t i) { return p[i]; });
    }
    static void store(float * p, const vec & v) { std::copy(v.x, v.x + W, p); }
    static vec set1(float x) {
        return each([&](int64_t) { return x; });
    }
    static vec add(const vec & a, const vec & b) {
        return each([&](int64_t i) { return a.x[i] + b.x[i]; });
    }
    static vec sub(const vec & a, const vec & b) {
        return each([&](int64_t i) { return a.x[i] - b.x[i]; });
    }
    static vec mul(const vec & a, const vec & b) {
        return each([&](int64_t i) { return a.x[i] * b.x[i]; });
    }
    static vec div(const vec & a, const vec & b) {
        return each([&](int64_t i) { return a.x[i] / b.x[i]; });
    }
    static vec fma(const vec & a, const vec & b, const vec & c) {
        return each([&](int64_t i) { return std::fma(a.x[i], b.x[i], c.x[i]); });
    }
    static vec max(const vec & a, const vec & b) {
        return each([&](int64_t i) { return a.x[i] > b.x[i] ? a.x[i] : b.x[i]; });
    }
    static vec min(const vec & a, const vec & b) {
        return each([&](int64_t i) { return a.x[i] < b.x[i] ? a.x[i] : b.x[i]; });
    }
    static vec abs(const vec & a) {
        return each([&](int64_t i) { return std::fabs(a.x[i]); });
    }
    static vec with_sign_of(const vec & a, const vec & sign) {
        return each([&](int64_t i) { return std::copysign(a.x[i], sign.x[i]); });
    }
    static vec round(const vec & a) {
        return each([&](int64_t i) { return std::nearbyint(a.x[i]); });
    }
    static vec pow2(const vec & n) {
        return each([&](int64_t i) { return std::ldexp(1.0f, (int) n.x[i]); });
    }
    static vec zero_below(const vec & a, float limit, const vec & y) {
        return each([&](int64_t i) { return a.x[i] < limit ? 0.0f : y.x[i]; });
    }
    static float first(const vec & a) { return a.x[0]; }
    static float max_of(const vec & a) { return *std::max_element(a.x, a.x + W); }
    static float sum_of(const vec * lanes) {
        vec sums = lanes[0];
        for (int64_t half = W / 2; half > 0; half /= 2) {
            for (int64_t i = 0; i < half; ++i) {
                sums.x[i] += sums.x[i + half];
            }
        }
        return sums.x[0];
    }
    static void read_f16(const uint16_t * src, float * dst, int64_t n) { asl_read_f32(GGML_TYPE_F16, src, dst, n); }
    static void transpose8(const float * src, int64_t ld, float * dst, int64_t ldd) {
        for (int64_t i = 0; i < 8; ++i) {
            for (int64_t j = 0; j < 8; ++j) {
                dst[i * ldd + j] = src[j * ld + i];
            }
        }
    }
};

} // namespace

const asl_attend_kernel * asl_attend_kernel_plain() {
    static const asl_attend_kernel kernel = { "plain 16", attend_block<plain16>, attend_block_rounded<plain16>, score_tile<plain16> };
    return &kernel;
}
