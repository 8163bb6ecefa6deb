#include "attend.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

// Numbers that a block of rows and what is read for it take together: they should stay in the second-level cache.
static const int64_t N_BLOCK_NUMBERS = 384 * 128;
static const int64_t N_ROWS_MIN = 96;
static const int64_t N_ROWS_MAX = 384;

float asl_mask_value(const asl_attend & a, int64_t t, int64_t cell) {
    const char * row = a.mask + t * a.nb_mask;
    return a.mask_type == GGML_TYPE_F16 ? ggml_fp16_to_fp32(((const ggml_fp16_t *) row)[cell]) : ((const float *) row)[cell];
}

void asl_read_f32(ggml_type type, const void * src, float * dst, int64_t n) {
    if (type == GGML_TYPE_F32) {
        memcpy(dst, src, n * sizeof(float));
    } else {
        ggml_get_type_traits(type)->to_float(src, dst, n);
    }
}

// The scalar kernel: what the others must compute, bit for bit.

// exp(x) = 2^n*(1 + q), for x from ASL_EXP_MIN to 88: the series of exp(r) - 1, where |r| is at most half of ln 2
static void split_exp(float x, float & n, float & q) {
    static const float TERMS[] = { 1.0f / 5040, 1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f };
    n = std::nearbyint(x * 1.44269504f);
    float r = std::fma(n, -0.693359375f, x); // ln 2, in two parts
    r = std::fma(n, 2.12194440e-4f, r);
    float p = TERMS[0];
    for (int i = 1; i < 6; ++i) {
        p = std::fma(p, r, TERMS[i]);
    }
    q = std::fma(p, r * r, r);
}

static float exp_of(float x) {
    if (x < ASL_EXP_MIN) {
        return 0.0f;
    }
    float n, q;
    split_exp(x, n, q);
    return (q + 1.0f) * std::ldexp(1.0f, (int) n);
}

// With e = exp(2|x|) - 1, tanh(|x|) is e/(e + 2): small x keep their digits.
static float tanh_of(float x) {
    float n, q;
    split_exp(std::min(2 * std::fabs(x), 40.0f), n, q);
    const float power = std::ldexp(1.0f, (int) n);
    const float e = std::fma(power, q, power - 1.0f);
    return std::copysign(e / (e + 2.0f), x);
}

// One head of a cell.
static void read_cell(const asl_head_rows & rows, int64_t cell, int64_t head, std::vector<float> & dst) {
    const char * src = rows.data + cell * rows.nb_cell + head * rows.nb_head;
    if (!rows.transposed) {
        asl_read_f32(rows.type, src, dst.data(), rows.n_embd);
        return;
    }
    for (int64_t d = 0; d < rows.n_embd; ++d) {
        asl_read_f32(rows.type, src + d * rows.nb_embd, &dst[d], 1);
    }
}

// The scaled query of token t and one head.
static std::vector<float> scaled_query(const asl_attend & a, int64_t t, int64_t head) {
    const float * q = (const float *) (a.q + t * a.nb_q_token + head * a.nb_q_head);
    std::vector<float> query(q, q + a.k.n_embd);
    for (float & x : query) {
        x *= a.cap != 0.0f ? a.cap_scale : a.scale;
    }
    return query;
}

// Of token t and one head for the keys of a tile. product: of the scaled query and a key
template <class Product>
static void fill_logits(const asl_attend & a, int64_t t, int64_t head, int64_t tile, Product product, float * s) {
    const asl_key_range range = asl_keys_of(a, t);
    std::vector<float> key(a.k.n_embd);
    for (int64_t i = 0; i < ASL_KEY_TILE; ++i) {
        const int64_t cell = tile * ASL_KEY_TILE + i;
        if (cell < range.begin || cell >= range.end) {
            s[i] = -INFINITY;
            continue;
        }
        read_cell(a.k, cell, head / a.n_group(), key);
        s[i] = product(key);
        s[i] = a.cap != 0.0f ? tanh_of(s[i]) * (a.cap * a.scale) : s[i];
        s[i] += a.mask ? asl_mask_value(a, t, cell) : 0.0f;
    }
}

static void compute_logits(const asl_attend & a, int64_t t, int64_t head, int64_t tile, float * s) {
    const std::vector<float> query = scaled_query(a, t, head);
    const auto product = [&](const std::vector<float> & key) {
        float sum = 0.0f;
        for (size_t d = 0; d < key.size(); ++d) {
            sum = std::fma(query[d], key[d], sum);
        }
        return sum;
    };
    fill_logits(a, t, head, tile, product, s);
}

// Halves added to halves.
static float sum_of_lanes(float * lanes) {
    for (int half = 8; half > 0; half /= 2) {
        for (int i = 0; i < half; ++i) {
            lanes[i] += lanes[i + half];
        }
    }
    return lanes[0];
}

// Sixteen sums, each of every sixteenth number, then all of them.
static float sum_of(const float * x) {
    float lanes[16] = {};
    for (int64_t i = 0; i < ASL_KEY_TILE; ++i) {
        lanes[i % 16] += x[i];
    }
    return sum_of_lanes(lanes);
}

// Logits of a row become weights relative to its running maximum. Returns what the sums so far are multiplied by.
static float soften(float * s, float & max, float & sum) {
    const float before = max;
    max = std::max(max, *std::max_element(s, s + ASL_KEY_TILE));
    if (max == -INFINITY) {
        std::fill(s, s + ASL_KEY_TILE, 0.0f);
        return 1.0f;
    }
    for (int64_t i = 0; i < ASL_KEY_TILE; ++i) {
        s[i] = exp_of(s[i] - max);
    }
    const float factor = before == max ? 1.0f : exp_of(before - max);
    sum = std::fma(sum, factor, sum_of(s));
    return factor;
}

// A row of numbers as integers, filled up with zeros to a multiple of 16.
struct rounded_row {
    rounded_row(std::vector<float> x, bool is_value) : q((x.size() + 15) / 16 * 16) {
        x.resize(q.size());
        float largest = 0.0f, lanes[16] = {};
        for (size_t i = 0; i < x.size(); ++i) {
            largest = std::max(largest, std::fabs(x[i]));
            lanes[i % 16] = std::fma(x[i], x[i], lanes[i % 16]);
        }
        const asl_rounding r = asl_round_to(largest, sum_of_lanes(lanes), is_value);
        unit = r.unit;
        for (size_t i = 0; i < x.size(); ++i) {
            q[i] = round(x[i] * r.inverse);
        }
    }

    static int32_t round(float x) { return x == x ? (int32_t) std::nearbyint(std::min(ASL_INT_MAX, std::max(-ASL_INT_MAX, x))) : 0; }

    std::vector<int32_t> q;
    float unit;
};

// The same of integers.
static void compute_logits_rounded(const asl_attend & a, int64_t t, int64_t head, int64_t tile, float * s) {
    const rounded_row query(scaled_query(a, t, head), false);
    const auto product = [&](const std::vector<float> & key) {
        const rounded_row rounded(key, false);
        int32_t sum = 0;
        for (size_t d = 0; d < key.size(); ++d) {
            sum += query.q[d] * rounded.q[d];
        }
        return (float) sum * rounded.unit * query.unit;
    };
    fill_logits(a, t, head, tile, product, s);
}

// o = o*factor + the weights s times the values of a tile
static void add_values_rounded(const asl_attend & a, int64_t head, int64_t tile, float * s, float factor, std::vector<float> & o) {
    std::vector<float> value(a.v.n_embd);
    std::vector<rounded_row> values;
    float largest = 0.0f;
    for (int64_t i = 0; i < ASL_KEY_TILE; ++i) {
        std::fill(value.begin(), value.end(), 0.0f);
        if (tile * ASL_KEY_TILE + i < a.n_keys()) {
            read_cell(a.v, tile * ASL_KEY_TILE + i, head / a.n_group(), value);
        }
        values.emplace_back(value, true);
        s[i] *= values[i].unit;
        largest = std::max(largest, s[i]);
    }
    const float total = sum_of(s), scale = std::min(ASL_INT_MAX / largest, ASL_WEIGHTS_MAX / total);
    const float inverse = largest < ASL_UNIT_MIN ? 0.0f : scale;
    const float unit = std::fma(total, 0.0f, largest < ASL_UNIT_MIN ? 0.0f : 1.0f / scale);
    for (size_t d = 0; d < o.size(); ++d) {
        int32_t sum = 0;
        for (int64_t i = 0; i < ASL_KEY_TILE; ++i) {
            sum += rounded_row::round(s[i] * inverse) * values[i].q[d];
        }
        o[d] = std::fma((float) sum, unit, o[d] * factor);
    }
}

// o = o*factor + the weights s times the values of a tile
static void add_values(const asl_attend & a, int64_t head, int64_t tile, const float * s, float factor, std::vector<float> & o) {
    std::vector<float> value(a.v.n_embd);
    for (float & x : o) {
        x *= factor;
    }
    for (int64_t i = 0; i < ASL_KEY_TILE && tile * ASL_KEY_TILE + i < a.n_keys(); ++i) {
        read_cell(a.v, tile * ASL_KEY_TILE + i, head / a.n_group(), value);
        for (int64_t d = 0; d < a.v.n_embd; ++d) {
            o[d] = std::fma(s[i], value[d], o[d]);
        }
    }
}

static void attend_row(const asl_attend & a, int64_t t, int64_t head) {
    const asl_key_range range = asl_keys_of(a, t);
    std::vector<float> o(a.v.n_embd);
    float max = -INFINITY, sum = 0.0f;
    for (int64_t tile = range.begin / ASL_KEY_TILE; tile * ASL_KEY_TILE < range.end; ++tile) {
        float s[ASL_KEY_TILE];
        (a.is_rounded ? compute_logits_rounded : compute_logits)(a, t, head, tile, s);
        const float factor = soften(s, max, sum);
        if (a.is_rounded) {
            add_values_rounded(a, head, tile, s, factor, o);
        } else {
            add_values(a, head, tile, s, factor, o);
        }
    }
    float factor = 1.0f;
    if (a.sinks) {
        const float top = std::max(max, a.sinks[head]);
        factor = exp_of(max - top);
        sum = std::fma(sum, factor, exp_of(a.sinks[head] - top));
        max = top;
    }
    for (int64_t d = 0; d < a.v.n_embd; ++d) { // a row that attends to nothing is 0
        a.y[(t * a.n_head + head) * a.v.n_embd + d] = sum > 0.0f ? o[d] * factor / sum : sum == sum ? 0.0f
                                                                                                    : sum;
    }
    const int64_t i_query = t - (a.n_tokens - a.n_queries);
    if (i_query >= 0 && a.softmax) {
        a.softmax[(i_query * a.n_head + head) * 2] = max;
        a.softmax[(i_query * a.n_head + head) * 2 + 1] = sum;
    }
}

static void attend_scalar(const asl_attend & a, int64_t head_kv, int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
        for (int64_t g = 0; g < a.n_group(); ++g) {
            attend_row(a, t, head_kv * a.n_group() + g);
        }
    }
}

static void score_scalar(const asl_attend & a, int64_t head_kv, int64_t tile, float * dst) {
    const int64_t n = std::min(ASL_KEY_TILE, a.n_keys() - tile * ASL_KEY_TILE);
    std::fill(dst, dst + n, 0.0f);
    for (int64_t i_query = 0; i_query < a.n_queries; ++i_query) {
        for (int64_t head = head_kv * a.n_group(); head < (head_kv + 1) * a.n_group(); ++head) {
            const float * stats = a.softmax + (i_query * a.n_head + head) * 2;
            if (!(stats[1] > 0.0f)) {
                continue;
            }
            float s[ASL_KEY_TILE];
            compute_logits(a, a.n_tokens - a.n_queries + i_query, head, tile, s);
            const float factor = (a.weights ? a.weights[i_query] : 1.0f) / stats[1];
            for (int64_t i = 0; i < n; ++i) {
                dst[i] = std::fma(exp_of(s[i] - stats[0]), factor, dst[i]);
            }
        }
    }
}

static const asl_attend_kernel SCALAR = { "scalar", attend_scalar, attend_scalar, score_scalar };

const asl_attend_kernel * asl_find_attend_kernel(const char * name) {
    for (const asl_attend_kernel * kernel : { &SCALAR, asl_attend_kernel_plain(), asl_attend_kernel_avx2(), asl_attend_kernel_avx512() }) {
        if (kernel && strcmp(kernel->name, name) == 0) {
            return kernel;
        }
    }
    return nullptr;
}

// Parts are counted from the chunk's end, where tokens attend to most keys: the longest ones run first.
void asl_attend_part(const asl_attend_kernel & kernel, const asl_attend & a, int ith, int nth) {
    const int64_t n_numbers = std::max<int64_t>(1, a.k.n_embd + a.v.n_embd);
    const int64_t n_rows = std::max(N_ROWS_MIN, std::min(N_ROWS_MAX, N_BLOCK_NUMBERS / n_numbers));
    int64_t n_block = std::max<int64_t>(1, n_rows / a.n_group()); // tokens
    auto n_parts = [&] { return a.n_head_kv * ((a.n_tokens + n_block - 1) / n_block); };
    while (nth > 1 && n_parts() < 4 * nth && n_block * a.n_group() > 4 * ASL_ROW_GROUP) {
        n_block /= 2;
    }
    for (int64_t i = ith; i < n_parts(); i += nth) {
        const int64_t end = a.n_tokens - i / a.n_head_kv * n_block;
        (a.is_rounded ? kernel.attend_rounded : kernel.attend)(a, i % a.n_head_kv, std::max<int64_t>(0, end - n_block), end);
    }
}

void asl_score_part(const asl_attend_kernel & kernel, const asl_attend & a, float * scores, int64_t n_row, int ith, int nth) {
    const int64_t n_tiles = (a.n_keys() + ASL_KEY_TILE - 1) / ASL_KEY_TILE;
    for (int64_t i = ith; i < n_tiles * a.n_head_kv; i += nth) {
        const int64_t head = i % a.n_head_kv, tile = i / a.n_head_kv;
        kernel.score(a, head, tile, scores + head * n_row + tile * ASL_KEY_TILE);
    }
}
