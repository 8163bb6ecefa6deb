// Products with packed weights on AVX-512 with VNNI. packed.cpp has the same in plain C++.

#include "packed.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#define ASL_VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")))
#define ASL_INLINE __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma"), always_inline)) static inline

// of activations that stay in the second-level cache while the panels pass
static const int64_t N_BLOCK_BYTES = 256 * 1024;

// Tokens of a tile, which has two panels. The last tile may have fewer, N.
static const int TILE = 6;
#define ASL_EACH(M) M(0) M(1) M(2) M(3) M(4) M(5)

ASL_INLINE __m512i broadcast4(const uint8_t * p) {
    int32_t four;
    memcpy(&four, p, sizeof(four));
    return _mm512_set1_epi32(four);
}

// all lanes by a mask: GCC 12 warns of the other form's own header
ASL_INLINE __m512 to_float(__m512i v) { return _mm512_maskz_cvtepi32_ps((__mmask16) 0xffff, v); }

namespace {

struct tile_sums {
#define M(i) __m512i a##i, b##i;
    ASL_EACH(M)
#undef M
};

struct tile_rows {
    const uint8_t * q[TILE];
};

} // namespace

template <int WIDTH, int N>
ASL_INLINE tile_sums dot8(const uint8_t * w0, const uint8_t * w1, const tile_rows & rows) {
    tile_sums sums;
#define M(i) sums.a##i = sums.b##i = _mm512_setzero_si512();
    ASL_EACH(M)
#undef M
    for (int g = 0; g < WIDTH / 4; ++g) {
        const __m512i a = _mm512_load_si512(w0 + g * 64);
        const __m512i b = _mm512_load_si512(w1 + g * 64);
        __m512i x;
#define M(i) \
    if constexpr (i < N) { \
        x = broadcast4(rows.q[i] + g * 4); \
        sums.a##i = _mm512_dpbusd_epi32(sums.a##i, a, x); \
        sums.b##i = _mm512_dpbusd_epi32(sums.b##i, b, x); \
    }
        ASL_EACH(M)
#undef M
    }
    return sums;
}

template <int WIDTH, int N>
ASL_INLINE tile_sums dot16(const uint8_t * w0, const uint8_t * w1, const tile_rows & rows) {
    const __m512i low = _mm512_set1_epi16(0xff);
    tile_sums sums;
#define M(i) sums.a##i = sums.b##i = _mm512_setzero_si512();
    ASL_EACH(M)
#undef M
    for (int g = 0; g < WIDTH / 4; ++g) {
        const __m512i a = _mm512_load_si512(w0 + g * 64);
        const __m512i b = _mm512_load_si512(w1 + g * 64);
        const __m512i a02 = _mm512_and_si512(a, low), b02 = _mm512_and_si512(b, low);
        const __m512i a13 = _mm512_srli_epi16(a, 8), b13 = _mm512_srli_epi16(b, 8);
        __m512i x;
#define M(i) \
    if constexpr (i < N) { \
        x = broadcast4(rows.q[i] + g * 8); \
        sums.a##i = _mm512_dpwssd_epi32(sums.a##i, a02, x); \
        sums.b##i = _mm512_dpwssd_epi32(sums.b##i, b02, x); \
        x = broadcast4(rows.q[i] + g * 8 + 4); \
        sums.a##i = _mm512_dpwssd_epi32(sums.a##i, a13, x); \
        sums.b##i = _mm512_dpwssd_epi32(sums.b##i, b13, x); \
    }
        ASL_EACH(M)
#undef M
    }
    return sums;
}

// Columns of two panels for the tokens of a tile, whose activations lie at these addresses.
template <int ACT, int WIDTH, int N>
ASL_VNNI static void tile(const asl_act_form & form, const uint8_t * w0, const uint8_t * w1, const uint8_t * const * acts,
        float * const * y) {
    tile_rows rows;
    const float * d[TILE];
    const float * s[TILE];
    for (int i = 0; i < N; ++i) {
        rows.q[i] = acts[i];
        d[i] = (const float *) (acts[i] + form.d_offset());
        s[i] = (const float *) (acts[i] + form.s_offset());
    }
#define M(i) __m512 a##i = _mm512_setzero_ps(), b##i = a##i;
    ASL_EACH(M)
#undef M
    const int64_t n_blocks = form.n_in / WIDTH;
    for (int64_t b = 0; b < n_blocks; ++b) {
        tile_sums sums;
        if constexpr (ACT == 16) {
            sums = dot16<WIDTH, N>(w0, w1, rows);
        } else {
            sums = dot8<WIDTH, N>(w0, w1, rows);
        }
        const __m512 d0 = _mm512_load_ps(w0 + WIDTH * ASL_PANEL), m0 = _mm512_load_ps(w0 + WIDTH * ASL_PANEL + 64);
        const __m512 d1 = _mm512_load_ps(w1 + WIDTH * ASL_PANEL), m1 = _mm512_load_ps(w1 + WIDTH * ASL_PANEL + 64);
        __m512 x;
#define M(i) \
    if constexpr (i < N) { \
        x = _mm512_set1_ps(d[i][b * WIDTH / ASL_ACT_BLOCK]); \
        a##i = _mm512_fmadd_ps(_mm512_mul_ps(to_float(sums.a##i), d0), x, a##i); \
        b##i = _mm512_fmadd_ps(_mm512_mul_ps(to_float(sums.b##i), d1), x, b##i); \
        x = _mm512_set1_ps(s[i][b]); \
        a##i = _mm512_fmadd_ps(m0, x, a##i); \
        b##i = _mm512_fmadd_ps(m1, x, b##i); \
        rows.q[i] += WIDTH * (ACT / 8); \
    }
        ASL_EACH(M)
#undef M
        w0 += WIDTH * ASL_PANEL + 2 * ASL_PANEL * sizeof(float);
        w1 += WIDTH * ASL_PANEL + 2 * ASL_PANEL * sizeof(float);
    }
#define M(i) \
    if constexpr (i < N) { \
        _mm512_storeu_ps(y[i], a##i); \
        _mm512_storeu_ps(y[i] + ASL_PANEL, b##i); \
    }
    ASL_EACH(M)
#undef M
}

template <int ACT, int WIDTH>
ASL_VNNI static void product(const asl_packed_matrix & w, const asl_act_form & form, const asl_packed_tokens & tokens,
        int64_t begin, int64_t end) {
    const int64_t n_row = form.row_bytes();
    const int64_t n_blocks = tokens.n * n_row / N_BLOCK_BYTES + 1;
    const int64_t n_block = (tokens.n + n_blocks * TILE - 1) / (n_blocks * TILE) * TILE; // whole tiles
    for (int64_t t0 = 0; t0 < tokens.n; t0 += n_block) {
        const int64_t t1 = std::min(tokens.n, t0 + n_block);
        for (int64_t p = begin; p < end; p += 2) {
            const int64_t p1 = std::min(p + 1, end - 1); // past the end: the last panel again
            const int64_t n_out = std::min((p1 - p + 1) * ASL_PANEL, w.n_out - p * ASL_PANEL);
            for (int64_t t = t0; t < t1; t += TILE) {
                const int64_t n = std::min<int64_t>(TILE, t1 - t);
                const uint8_t * rows[TILE]; // past the end: the last token again
                for (int64_t i = 0; i < TILE; ++i) {
                    rows[i] = tokens.get_acts(form, std::min(t + i, t1 - 1));
                }
                const bool is_whole = n_out == 2 * ASL_PANEL && n == TILE;
                float out[TILE][2 * ASL_PANEL];
                float * columns[TILE];
                for (int64_t i = 0; i < TILE; ++i) {
                    columns[i] = is_whole ? tokens.get_y(t + i) + p * ASL_PANEL : out[i];
                }
                auto * run = n > 4 ? tile<ACT, WIDTH, 6> : n > 2 ? tile<ACT, WIDTH, 4>
                                                                 : tile<ACT, WIDTH, 2>;
                run(form, w.data + p * w.panel_bytes(), w.data + p1 * w.panel_bytes(), rows, columns);
                for (int64_t i = 0; !is_whole && i < n; ++i) {
                    memcpy(tokens.get_y(t + i) + p * ASL_PANEL, out[i], n_out * sizeof(float));
                }
            }
        }
    }
}

ASL_VNNI static void product_any(const asl_packed_matrix & w, const asl_act_form & form, const asl_packed_tokens & tokens,
        int64_t begin, int64_t end) {
    auto * run = form.n_bits == 16 ? (w.form.width == 16 ? product<16, 16> : product<16, 32>)
                                   : (w.form.width == 16 ? product<8, 16> : product<8, 32>);
    run(w, form, tokens, begin, end);
}

bool asl_has_avx512_vnni() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
}

const asl_packed_kernel * asl_packed_kernel_avx512() {
    const asl_packed_kernel * avx2 = asl_packed_kernel_avx2(); // rounding activations takes little
    if (!avx2 || !asl_has_avx512_vnni()) {
        return nullptr;
    }
    static const asl_packed_kernel kernel = { "AVX-512 VNNI", avx2->quantise, product_any };
    return &kernel;
}

#else

bool asl_has_avx512_vnni() { return false; }

const asl_packed_kernel * asl_packed_kernel_avx512() { return nullptr; }

#endif
