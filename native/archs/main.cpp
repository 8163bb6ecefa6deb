// Writes tiny random models of llama.cpp's architectures as GGUF files, from the hyper-parameters of its own
// tests/test-llama-archs.cpp (included with other layers counts, see CMakeLists.txt). For asl_gguf.bench.conformance.
//
//     asl-archs --list                          one "ARCHITECTURE VARIANT" a line
//     asl-archs ARCHITECTURE VARIANT SEED FILE  one model; one process each, because a fixture may abort

#include <cstdint>

static uint32_t asl_n_layer = 4; // read by the included test where it does not ask for more

#define main test_llama_archs_main
#include ASL_ARCHS_TEST
#undef main

#include "../src/llama-model.h"

#include <functional>
#include <map>
#include <set>

// What a variant changes of an architecture's fixture.
struct variant {
    bool moe = false;
    uint32_t n_layer = 4;
    std::function<void(gguf_context *, const std::string &)> change;
};

static void set_pattern(gguf_context * ctx, const std::string & arch, const std::vector<uint8_t> & sliding) {
    gguf_set_arr_data(ctx, (arch + ".attention.sliding_window_pattern").c_str(), GGUF_TYPE_BOOL, sliding.data(), sliding.size());
}

static variant make_gemma4(uint32_t n_per_layer, uint32_t n_shared) {
    const uint32_t n_layer = 8;
    return { false, n_layer, [=](gguf_context * ctx, const std::string & arch) {
        std::vector<uint8_t> sliding;
        for (uint32_t il = 0; il < n_layer; ++il) {
            sliding.push_back(il % 2 == 0);
        }
        set_pattern(ctx, arch, sliding);
        gguf_set_val_u32(ctx, (arch + ".block_count").c_str(), n_layer);
        gguf_set_val_u32(ctx, (arch + ".embedding_length_per_layer_input").c_str(), n_per_layer);
        gguf_set_val_u32(ctx, (arch + ".attention.shared_kv_layers").c_str(), n_shared);
    } };
}

// as E2B is: heads of other sizes in the two kinds of layers, one KV head, wider layers where K/V are shared
static variant make_gemma4_e2b() {
    const uint32_t n_layer = 10;
    const uint32_t n_own = 5;
    return { false, n_layer, [=](gguf_context * ctx, const std::string & arch) {
        std::vector<uint8_t> sliding;
        std::vector<uint32_t> n_ff;
        for (uint32_t il = 0; il < n_layer; ++il) {
            sliding.push_back(il % 5 != 4);
            n_ff.push_back(il < n_own ? 192 : 384);
        }
        set_pattern(ctx, arch, sliding);
        gguf_set_arr_data(ctx, (arch + ".feed_forward_length").c_str(), GGUF_TYPE_UINT32, n_ff.data(), n_ff.size());
        const std::map<const char *, uint32_t> numbers = {
            { ".block_count", n_layer },
            { ".attention.shared_kv_layers", n_layer - n_own },
            { ".embedding_length_per_layer_input", 64 },
            { ".attention.head_count_kv", 1 },
            { ".attention.key_length", 128 },
            { ".attention.value_length", 128 },
            { ".rope.dimension_count", 128 },
            { ".rope.dimension_count_swa", 64 },
        };
        for (const auto & [key, value] : numbers) {
            gguf_set_val_u32(ctx, (arch + key).c_str(), value);
        }
        gguf_set_val_f32(ctx, (arch + ".final_logit_softcapping").c_str(), 30.0f);
    } };
}

// one layer of multi-token prediction after four others
static variant make_mtp(bool moe) {
    return { moe, 5, [](gguf_context * ctx, const std::string & arch) {
        gguf_set_val_u32(ctx, (arch + ".nextn_predict_layers").c_str(), 1);
    } };
}

static std::map<std::string, variant> get_variants(llm_arch arch) {
    if (arch == LLM_ARCH_GEMMA4) {
        return { { "dense", make_gemma4(0, 0) }, { "ple", make_gemma4(64, 0) }, { "ple-shared", make_gemma4(64, 4) }, { "e2b", make_gemma4_e2b() } };
    }
    if (arch == LLM_ARCH_BAILINGMOE3) {
        // as the test does before it runs
        const std::vector<float> clamp = { 0.0f, 4.0f, 4.0f, 4.0f }; // of four layers, the test has two
        return { { "moe", { true, 4, [=](gguf_context * ctx, const std::string &) {
            gguf_remove_key(ctx, "bailingmoe3.kda.safe_gate");
            gguf_set_arr_data(ctx, "bailingmoe3.swiglu_clamp_exp", GGUF_TYPE_FLOAT32, clamp.data(), clamp.size());
            gguf_set_arr_data(ctx, "bailingmoe3.swiglu_clamp_shexp", GGUF_TYPE_FLOAT32, clamp.data(), clamp.size());
        } } } };
    }
    std::map<std::string, variant> result;
    if (arch == LLM_ARCH_KIMI_K3) {
        // checkpoints of the residual stream as models of more than a block of layers have: the fixture has one, of the input
        result["checkpoints"] = { moe_implemented(arch), 6, [](gguf_context * ctx, const std::string &) {
            gguf_set_val_u32(ctx, "kimi-k3.attn_res.block_size", 2);
        } };
    }
    if (arch == LLM_ARCH_LFM2) {
        // the fixture's attention slides in every layer; that of the published models does not
        result["full"] = { false, 4, [](gguf_context * ctx, const std::string &) { gguf_remove_key(ctx, "lfm2.attention.sliding_window"); } };
    }
    const std::set<llm_arch> has_indexer = { LLM_ARCH_DEEPSEEK32, LLM_ARCH_GLM_DSA, LLM_ARCH_DOTS3NOTE };
    if (has_indexer.count(arch)) {
        // the fixture's indexers choose all tokens
        result["few"] = { moe_implemented(arch), 4, [](gguf_context * ctx, const std::string & arch) {
            gguf_set_val_u32(ctx, (arch + ".attention.indexer.top_k").c_str(), 48);
        } };
    }
    if (!moe_mandatory(arch)) {
        result["dense"] = {};
    }
    if (moe_implemented(arch)) {
        result["moe"] = { true, 4, nullptr };
    }
    const std::set<llm_arch> has_mtp = { LLM_ARCH_MIMO2, LLM_ARCH_STEP35, LLM_ARCH_GLM4_MOE, LLM_ARCH_QWEN35, LLM_ARCH_QWEN35MOE };
    if (has_mtp.count(arch)) {
        result["mtp"] = make_mtp(moe_implemented(arch));
    }
    return result;
}

// Scales of the layer for multi-token prediction: llama.cpp makes them with the layer, and does not expect them without it.
static bool is_mtp_scale(const std::string & name, const llama_model & model) {
    const std::string prefix = "blk." + std::to_string(model.hparams.n_layer()) + ".";
    return name.compare(0, prefix.size(), prefix) == 0 && name.size() > 5 && name.compare(name.size() - 5, 5, "scale") == 0;
}

// Metadata of the fixture and all tensors of the model made from it: llama.cpp's own saver does not know every architecture.
static void write_file(const gguf_context * meta, const llama_model & model, const char * path) {
    gguf_context_ptr out { gguf_init_empty() };
    gguf_set_kv(out.get(), meta);
    std::set<std::string> seen;
    for (const auto & [name, tensor] : model.tensors_by_name) {
        if (!is_mtp_scale(name, model) && seen.insert(name).second) {
            ggml_tensor named = *tensor;
            ggml_set_name(&named, name.c_str());
            gguf_add_tensor(out.get(), &named);
            gguf_set_tensor_data(out.get(), name.c_str(), tensor->data);
        }
    }
    if (!gguf_write_to_file(out.get(), path, false)) {
        throw std::runtime_error("the file cannot be written");
    }
}

static void write_arch(llm_arch arch, const variant & v, size_t seed, const char * path) {
    asl_n_layer = v.n_layer;
    gguf_context_ptr meta = get_gguf_ctx(arch, v.moe);
    if (v.change) {
        v.change(meta.get(), llm_arch_name(arch));
    }
    ggml_backend_dev_t no_devices[1] = { nullptr };
    llama_model_params params = llama_model_default_params();
    params.progress_callback = silent_model_load_progress;
    params.devices = no_devices;
    params.use_extra_bufts = false;
    params.load_mtp = true; // their tensors are made; whoever loads the file leaves them out
    tensor_data_params data = { seed, 0.1f };
    llama_model_ptr model { llama_model_init_from_user(meta.get(), set_tensor_data, &data, params) };
    if (!model) {
        throw std::runtime_error("llama.cpp cannot make the model of the fixture");
    }
    write_file(meta.get(), *model, path);
}

int main(int argc, char ** argv) {
    llama_backend_init();
    if (argc == 2 && std::string(argv[1]) == "--list") {
        for (const llm_arch & arch : llm_arch_all()) {
            if (arch != LLM_ARCH_UNKNOWN) {
                for (const auto & [name, _] : get_variants(arch)) {
                    printf("%s %s\n", llm_arch_name(arch), name.c_str());
                }
            }
        }
        return 0;
    }
    if (argc != 5) {
        fprintf(stderr, "usage: asl-archs --list | asl-archs ARCHITECTURE VARIANT SEED FILE\n");
        return 2;
    }
    try {
        const llm_arch arch = llm_arch_from_string(argv[1]);
        const auto variants = get_variants(arch);
        const auto found = variants.find(argv[2]);
        if (arch == LLM_ARCH_UNKNOWN || found == variants.end()) {
            fprintf(stderr, "asl-archs: no architecture and variant %s %s (--list)\n", argv[1], argv[2]);
            return 2;
        }
        write_arch(arch, found->second, std::stoull(argv[3]), argv[4]);
        return 0;
    } catch (const std::exception & err) {
        fprintf(stderr, "asl-archs: %s\n", err.what());
        return 1;
    }
}
