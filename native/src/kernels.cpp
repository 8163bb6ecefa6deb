#include "kernels.h"

#include "packed-weights.h"

#include "ggml-backend.h"
#include "ggml-cpp.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <random>
#include <set>
#include <stdexcept>
#include <vector>

// A type whose products are faster packed.
struct measured_packing {
    int stored_from;   // tokens of a layer from which it pays to pack weights as stored in host memory. 0: it never does
    int repacked_from; // the same for weights that llama.cpp has repacked
    // the same for matrices of experts, of the tokens of a chunk that an expert gets on average
    int experts_stored_from;
    int experts_repacked_from;

    int get_from(const asl_weight_use & use) const {
        return use.of_experts ? (use.repacked ? experts_repacked_from : experts_stored_from)
                              : (use.repacked ? repacked_from : stored_from);
    }
};

// What was measured (docs/LOG.md, 2026-11-28 and 29; `asl-gguf bench kernels` does it again). A row holds where the CPU
// backend has all its features; the first that does is in force.
struct measured_row {
    const char * name;
    std::vector<const char *> features; // as ggml_backend_get_features names them
    std::set<ggml_type> expands; // to F16
    std::map<ggml_type, measured_packing> packs; // where the product can be computed so
    int act_bits;                                // of activations of packed weights: the most exact that is fast enough
};

static const std::vector<measured_row> & table() {
    static const std::vector<measured_row> rows = {
        { "AVX-512 VNNI", { "AVX512_VNNI", "LLAMAFILE" },
                { GGML_TYPE_Q4_0, GGML_TYPE_Q4_1, GGML_TYPE_Q5_0, GGML_TYPE_Q5_1, GGML_TYPE_IQ4_NL, GGML_TYPE_MXFP4 },
                {
                        { GGML_TYPE_Q4_0, { 32, 64, 16, 8 } },
                        { GGML_TYPE_Q4_1, { 32, 0, 8, 0 } },
                        { GGML_TYPE_Q5_0, { 32, 0, 8, 0 } },
                        { GGML_TYPE_Q5_1, { 32, 0, 8, 0 } },
                        { GGML_TYPE_Q8_0, { 32, 0, 8, 0 } },
                        { GGML_TYPE_IQ4_NL, { 64, 128, 32, 32 } },
                        { GGML_TYPE_MXFP4, { 64, 128, 8, 8 } },
                        { GGML_TYPE_Q2_K, { 0, 64, 0, 8 } },
                        { GGML_TYPE_Q4_K, { 256, 64, 16, 8 } },
                        { GGML_TYPE_Q5_K, { 256, 0, 16, 0 } },
                        { GGML_TYPE_Q6_K, { 256, 0, 16, 0 } },
                },
                8 },
        { "AVX2", { "AVX2", "LLAMAFILE" },
                { GGML_TYPE_Q4_0, GGML_TYPE_Q4_1, GGML_TYPE_Q5_0, GGML_TYPE_Q5_1, GGML_TYPE_IQ4_NL, GGML_TYPE_MXFP4,
                        GGML_TYPE_NVFP4, GGML_TYPE_Q2_0 },
                {
                        { GGML_TYPE_Q4_0, { 32, 0, 0, 0 } },
                        { GGML_TYPE_Q4_1, { 32, 0, 0, 0 } },
                        { GGML_TYPE_Q5_0, { 32, 0, 0, 0 } },
                        { GGML_TYPE_Q5_1, { 32, 0, 0, 0 } },
                        { GGML_TYPE_Q8_0, { 32, 0, 0, 0 } },
                },
                16 },
    };
    return rows;
}

static ggml_backend_dev_t cpu_device() {
    return ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
}

static std::set<std::string> find_features() {
    std::set<std::string> result;
    ggml_backend_dev_t device = cpu_device();
    auto get = device ? (ggml_backend_get_features_t) ggml_backend_reg_get_proc_address(
                                ggml_backend_dev_backend_reg(device), "ggml_backend_get_features")
                      : nullptr;
    for (auto * f = get ? get(ggml_backend_dev_backend_reg(device)) : nullptr; f && f->name; ++f) {
        if (strcmp(f->value, "0") != 0) {
            result.insert(f->name);
        }
    }
    return result;
}

// NULL: nothing is known of this CPU
static const measured_row * row_in_force() {
    static const measured_row * row = []() -> const measured_row * {
        const auto features = find_features();
        for (const measured_row & r : table()) {
            if (std::all_of(r.features.begin(), r.features.end(), [&](const char * f) { return features.count(f) > 0; })) {
                return &r;
            }
        }
        return nullptr;
    }();
    return row;
}

static bool expands(const measured_row * row, ggml_type type) {
    return row && row->expands.count(type) > 0;
}

static bool has_fast_kernel() {
    static const bool result = &asl_packed_kernel_in_force() != asl_find_packed_kernel("scalar");
    return result;
}

// NULL: it does not pay, or cannot be done here
static const measured_packing * find_packing(const measured_row * row, ggml_type type) {
    const auto found = row ? row->packs.find(type) : std::map<ggml_type, measured_packing>::const_iterator();
    return row && found != row->packs.end() && has_fast_kernel() ? &found->second : nullptr;
}

int asl_act_bits(asl_dequant mode) {
    const measured_row * row = row_in_force();
    return mode == ASL_DEQUANT_INT8 || (mode == ASL_DEQUANT_AUTO && row && row->act_bits == 8) ? 8 : 16;
}

asl_held asl_choose_held(asl_dequant mode, const asl_weight_use & use) {
    if (mode == ASL_DEQUANT_OFF || !ggml_is_quantized(use.type) || use.n_tokens < ASL_PACK_TOKENS_MIN) {
        return asl_held::stored;
    }
    const asl_held packed = asl_act_bits(mode) == 8 ? asl_held::int8 : asl_held::int16;
    const bool by_name = mode == ASL_DEQUANT_INT8 || mode == ASL_DEQUANT_INT16;
    if (by_name && use.can_pack && has_fast_kernel() && (!use.of_experts || use.n_tokens_expert >= ASL_PACK_EXPERT_TOKENS_MIN)) {
        return packed;
    }
    const measured_packing * packing = use.can_pack ? find_packing(row_in_force(), use.type) : nullptr;
    const int from = packing ? packing->get_from(use) : 0;
    const bool pays = from > 0 && (use.of_experts ? use.n_tokens_expert : use.n_tokens) >= from;
    if (use.repacked) {
        return mode == ASL_DEQUANT_AUTO && pays ? packed : asl_held::stored;
    }
    if (mode == ASL_DEQUANT_ALL) {
        return asl_held::f16;
    }
    if (from > 0) {
        return pays ? packed : asl_held::stored;
    }
    return expands(row_in_force(), use.type) ? asl_held::f16 : asl_held::stored;
}

static std::string describe(const measured_packing & p, int act_bits) {
    std::string result = "packed for activations of " + std::to_string(act_bits) + " bits (";
    if (p.stored_from > 0) {
        result += "in host memory from " + std::to_string(p.stored_from) + " tokens on";
    }
    if (p.repacked_from > 0) {
        result += (p.stored_from > 0 ? ", " : "") + std::string("where llama.cpp repacks them from ") + std::to_string(p.repacked_from);
    }
    return result + ")";
}

std::string asl_kernel_reason(ggml_type type) {
    const measured_row * row = row_in_force();
    if (!ggml_is_quantized(type)) {
        return "as stored: not quantised";
    }
    if (!row) {
        return "as stored: not measured on this CPU";
    }
    if (const measured_packing * packing = find_packing(row, type)) {
        return describe(*packing, row->act_bits) + ", as stored elsewhere: faster on " + row->name;
    }
    return std::string(expands(row, type) ? "expanded to F16 in host memory, as stored elsewhere: F16 was faster on "
                                          : "as stored: F16 was no faster on ") +
           row->name;
}

const std::string & asl_kernel_rule_line() {
    static const std::string line = [] {
        const measured_row * row = row_in_force();
        if (!row) {
            return std::string("nothing is expanded: no measurements for this CPU");
        }
        std::string packed, repacked, expanded;
        for (int i = 0; i < GGML_TYPE_COUNT; ++i) {
            const ggml_type type = (ggml_type) i;
            const measured_packing * packing = find_packing(row, type);
            const bool packs = packing && packing->stored_from > 0;
            const std::string name = ggml_type_name(type) ? ggml_type_name(type) : "";
            if (packs || expands(row, type)) {
                std::string & names = packs ? packed : expanded;
                names += (names.empty() ? "" : ", ") + name;
            }
            if (packing && packing->repacked_from > 0) {
                repacked += (repacked.empty() ? "" : ", ") + name;
            }
        }
        std::vector<std::string> parts;
        if (!packed.empty()) {
            parts.push_back(packed + " are packed for activations of " + std::to_string(row->act_bits) + " bits");
        }
        if (!expanded.empty()) {
            parts.push_back(expanded + " are expanded to F16");
        }
        if (!repacked.empty()) {
            parts.push_back("of those that llama.cpp repacks " + repacked + " are packed");
        }
        std::string result = std::string(row->name) + ": in host memory ";
        for (size_t i = 0; i < parts.size(); ++i) {
            result += (i > 0 ? "; " : "") + parts[i];
        }
        return result;
    }();
    return line;
}

bool asl_is_weight_type(int32_t type) {
    if (type < 0 || type >= GGML_TYPE_COUNT || type == GGML_TYPE_Q8_1 || type == GGML_TYPE_Q8_K) {
        return false; // those two hold activations
    }
    // types that were removed have blocks of no weights
    const bool is_float = type == GGML_TYPE_F32 || type == GGML_TYPE_F16 || type == GGML_TYPE_BF16;
    return is_float || (ggml_is_quantized((ggml_type) type) && ggml_blck_size((ggml_type) type) > 0);
}

// Random numbers. How long a product takes does not depend on the values, as long as none is denormal, infinite or NaN: bytes
// from 0x30 to 0x3f are ordinary numbers in every form of a scale. (Rounding numbers to IQ types takes seconds.)
static std::vector<uint8_t> draw_weights(ggml_type type, int64_t n_out, int64_t n_in) {
    std::mt19937 rng(0);
    std::vector<uint8_t> result(n_out * ggml_row_size(type, n_in));
    for (uint8_t & byte : result) {
        byte = 0x30 | (rng() & 0xf);
    }
    return result;
}

// The buffer type into which llama.cpp brings the weights of this product; NULL if it leaves them alone.
static ggml_backend_buffer_type_t find_repacked(ggml_tensor * product) {
    ggml_backend_dev_t device = cpu_device();
    auto get = (ggml_backend_dev_get_extra_bufts_t) ggml_backend_reg_get_proc_address(
            ggml_backend_dev_backend_reg(device), "ggml_backend_dev_get_extra_bufts");
    for (auto * buft = get ? get(device) : nullptr; buft && *buft; ++buft) {
        // as llama.cpp asks when it loads a model: with a buffer of no bytes
        ggml_backend_buffer_ptr dummy { ggml_backend_buft_alloc_buffer(*buft, 0) };
        product->src[0]->buffer = dummy.get();
        const bool fits = dummy && ggml_backend_dev_supports_op(device, product);
        product->src[0]->buffer = nullptr;
        if (fits) {
            return *buft;
        }
    }
    return nullptr;
}

static ggml_backend_buffer_ptr place(ggml_backend_buffer_type_t buft, ggml_tensor * t) {
    ggml_backend_buffer_ptr buffer { ggml_backend_buft_alloc_buffer(buft, ggml_backend_buft_get_alloc_size(buft, t)) };
    if (!buffer) {
        throw std::runtime_error("cannot allocate a matrix of " + std::to_string(ggml_nbytes(t)) + " bytes");
    }
    ggml_backend_buffer_set_usage(buffer.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    ggml_backend_tensor_alloc(buffer.get(), t, ggml_backend_buffer_get_base(buffer.get()));
    return buffer;
}

// seconds of the quickest run
static double time_graph(ggml_backend_t backend, ggml_cgraph * gf) {
    const int64_t N_LEAST = 3;
    const int64_t N_MOST = 50; // of a tiny product
    const int64_t N_US = 400 * 1000;

    int64_t best = INT64_MAX;
    int64_t total = 0;
    for (int64_t i = -1; i < N_LEAST || (total < N_US && i < N_MOST); ++i) {
        const int64_t begin = ggml_time_us();
        if (ggml_backend_graph_compute(backend, gf) != GGML_STATUS_SUCCESS) {
            throw std::runtime_error("the product failed to compute");
        }
        const int64_t taken = std::max<int64_t>(1, ggml_time_us() - begin);
        if (i >= 0) { // the first one warms up
            best = std::min(best, taken);
            total += taken;
        }
    }
    return best / 1e6;
}

asl_measured asl_measure_product(const asl_product & p) {
    asl_measured result;
    if (!asl_is_weight_type(p.type) || p.n_out < 1 || p.n_tokens < 1 || p.n_in < 1 || p.n_in % ggml_blck_size(p.type) != 0) {
        throw std::runtime_error("expected sizes of at least 1, and rows of whole blocks of " +
                                 std::to_string(asl_is_weight_type(p.type) ? ggml_blck_size(p.type) : 1) + " weights");
    }
    ggml_backend_ptr backend { ggml_backend_dev_init(cpu_device(), nullptr) };
    if (!backend) {
        throw std::runtime_error("the CPU backend cannot be used");
    }
    auto set_threads = (ggml_backend_set_n_threads_t) ggml_backend_reg_get_proc_address(
            ggml_backend_dev_backend_reg(cpu_device()), "ggml_backend_set_n_threads");
    if (set_threads) {
        set_threads(backend.get(), p.n_threads);
    }
    ggml_context_ptr ctx { ggml_init({ 8 * ggml_tensor_overhead() + ggml_graph_overhead_custom(8, false), nullptr, true }) };
    ggml_tensor * w = ggml_new_tensor_2d(ctx.get(), p.type, p.n_in, p.n_out);
    ggml_tensor * x = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, p.n_in, p.n_tokens);
    ggml_tensor * y = ggml_mul_mat(ctx.get(), w, x);

    ggml_backend_buffer_type_t buft = p.held == 1 ? find_repacked(y) : ggml_backend_cpu_buffer_type();
    if (!buft || (p.held > 1 && !asl_packed_weights::can_pack(y))) {
        return result;
    }
    result.buffer_name = ggml_backend_buft_name(buft);
    const ggml_backend_buffer_ptr weights = place(buft, w);
    const std::vector<uint8_t> drawn = draw_weights(p.type, p.n_out, p.n_in);
    ggml_backend_tensor_set(w, drawn.data(), 0, ggml_nbytes(w));
    const ggml_backend_buffer_ptr in = place(ggml_backend_cpu_buffer_type(), x);
    const ggml_backend_buffer_ptr out = place(ggml_backend_cpu_buffer_type(), y);
    const std::vector<uint8_t> activations = draw_weights(GGML_TYPE_F32, p.n_tokens, p.n_in);
    ggml_backend_tensor_set(x, activations.data(), 0, ggml_nbytes(x));

    asl_packed_weights packed;
    if (asl_packed_weights::can_pack(y) && (p.held == 0 || (p.held == 1 && asl_find_repacked_form(w).rows > 0))) {
        for (int i = 0; i < 4; ++i) { // the first one takes the memory
            const int64_t begin = ggml_time_us();
            packed.prepare({ { w, 8, false } }, p.n_threads);
            const double ns = 1e3 * (ggml_time_us() - begin) / ((double) p.n_out * p.n_in);
            result.pack_ns = i < 2 ? ns : std::min(result.pack_ns, ns);
        }
    }
    if (p.held > 1) {
        packed.prepare({ { w, p.held == 2 ? 8 : 16, false } }, p.n_threads);
        packed.replace({ y }, ctx.get());
        result.buffer_name = p.held == 2 ? "packed int8" : "packed int16";
    }
    ggml_cgraph * gf = ggml_new_graph_custom(ctx.get(), 8, false);
    ggml_build_forward_expand(gf, y);
    // the rounded activations
    const ggml_backend_buffer_ptr acts = y->src[1] ? nullptr : place(ggml_backend_cpu_buffer_type(), y->src[0]);
    result.gflops = 2e-9 * p.n_out * p.n_tokens * p.n_in / time_graph(backend.get(), gf);
    return result;
}

asl_repacked_form asl_repacked_here(ggml_type type) {
    const int64_t N_ROWS = 16;
    ggml_context_ptr ctx { ggml_init({ 4 * ggml_tensor_overhead(), nullptr, true }) };
    ggml_tensor * w = ggml_new_tensor_2d(ctx.get(), type, ggml_blck_size(type), N_ROWS);
    ggml_tensor * x = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, w->ne[0], 1);
    ggml_backend_buffer_type_t buft = find_repacked(ggml_mul_mat(ctx.get(), w, x));
    if (!buft) {
        return {};
    }
    const ggml_backend_buffer_ptr buffer = place(buft, w);
    return asl_find_repacked_form(w);
}
