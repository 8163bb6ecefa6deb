#include "adapters.h"

#include "access.h"

#include "llama-adapter.h"

#include "ggml-backend.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

namespace {

constexpr size_t n_whole = 1 << 16;  // bytes of a tensor that are read whole
constexpr size_t n_sample = 1 << 12; // of larger ones: so many, in so many places
constexpr size_t n_samples = 8;

// 64 bits, eight bytes at a time: no cipher, but quick enough to be asked before every prompt
struct digest {
    uint64_t value = 0xcbf29ce484222325;

    void add(uint64_t word) {
        value = (value ^ word) * 0x9e3779b97f4a7c15;
        value ^= value >> 32;
    }

    void add(const void * data, size_t n_bytes) {
        const auto * bytes = static_cast<const char *>(data);
        for (size_t i = 0; i < n_bytes; i += sizeof(uint64_t)) {
            uint64_t word = 0;
            memcpy(&word, bytes + i, std::min(sizeof(word), n_bytes - i));
            add(word);
        }
        add(n_bytes);
    }

    void add(const ggml_tensor & tensor, bool whole) {
        add(tensor.type);
        for (const int64_t ne : tensor.ne) {
            add(ne);
        }
        const size_t n_bytes = ggml_nbytes(&tensor);
        const size_t n_parts = whole || n_bytes <= n_whole ? 1 : n_samples;
        std::vector<char> part(n_parts == 1 ? n_bytes : n_sample);
        for (size_t i = 0; i < n_parts; ++i) {
            const size_t begin = n_parts == 1 ? 0 : (n_bytes - n_sample) * i / (n_samples - 1);
            ggml_backend_tensor_get(&tensor, part.data(), begin, part.size());
            add(part.data(), part.size());
        }
    }
};

uint64_t digest_of(const llama_adapter_lora & adapter, float scale) {
    uint64_t sum = 0; // the map has no order
    for (const auto & [name, weight] : adapter.ab_map) {
        digest one;
        one.add(name.data(), name.size());
        one.add(*weight.a, false);
        one.add(*weight.b, false);
        sum += one.value;
    }
    digest all;
    all.add(sum);
    all.add(&adapter.alpha, sizeof(adapter.alpha));
    all.add(&scale, sizeof(scale));
    return all.value;
}

} // namespace

uint64_t asl_adapters_digest(llama_context & ctx) {
    uint64_t sum = 0;
    for (const auto & [adapter, scale] : asl_context_access::loras(ctx)) {
        sum += digest_of(*adapter, scale);
    }
    const int32_t n_layer = ctx.get_model().hparams.n_layer();
    for (int32_t il = 0; il < n_layer; ++il) {
        if (const ggml_tensor * vector = asl_context_access::control_vectors(ctx).tensor_for(il)) {
            digest one; // its numbers can be changed in place
            one.add(il);
            one.add(*vector, true);
            sum += one.value;
        }
    }
    return sum;
}
