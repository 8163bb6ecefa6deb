#include "inputs.h"

#include "llama-graph.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <unordered_map>
#include <utility>

// bytes of a buffer, but for small prompts and larger inputs: a chunk's take some 10 KB
static const size_t N_BUFFER = 1024 * 1024;

void asl_chunk_inputs::reset(ggml_backend_buffer_type_t buft, size_t n_bytes) {
    clear();
    this->buft = buft;
    n_bytes_max = n_bytes;
}

void asl_chunk_inputs::clear() {
    copies.clear();
    buffers.clear();
    n_bytes = n_last = n_used = 0;
}

// Gives the tensor memory, if there is room for it.
bool asl_chunk_inputs::place(ggml_tensor * tensor) {
    const size_t n = GGML_PAD(ggml_backend_buft_get_alloc_size(buft, tensor), ggml_backend_buft_get_alignment(buft));
    if (n > n_last - n_used) {
        const size_t n_buffer = std::max(n, std::min(N_BUFFER, n_bytes_max / 4));
        if (n_bytes + n_buffer > n_bytes_max) {
            return false;
        }
        ggml_backend_buffer_ptr buffer { ggml_backend_buft_alloc_buffer(buft, n_buffer) };
        if (!buffer) {
            n_bytes_max = 0; // what is not there will not be asked for again
            return false;
        }
        buffers.push_back(std::move(buffer));
        n_bytes += n_buffer;
        n_last = n_buffer;
        n_used = 0;
    }
    ggml_backend_buffer_t buffer = buffers.back().get();
    ggml_backend_tensor_alloc(buffer, tensor, (char *) ggml_backend_buffer_get_base(buffer) + n_used);
    n_used += n;
    return true;
}

static bool are_alike(const ggml_tensor * a, const ggml_tensor * b) {
    return a->type == b->type && ggml_are_same_shape(a, b) && strcmp(a->name, b->name) == 0;
}

// The copy of an input, made if there is room for it; NULL if not.
asl_chunk_inputs::copy * asl_chunk_inputs::find(int32_t begin, size_t i_input, const ggml_tensor * input) {
    const auto key = std::make_pair(begin, i_input);
    const auto found = copies.find(key);
    if (found != copies.end()) {
        return are_alike(found->second.tensor, input) ? &found->second : nullptr;
    }
    copy c;
    c.ctx.reset(ggml_init({ ggml_tensor_overhead(), nullptr, true }));
    c.tensor = ggml_dup_tensor(c.ctx.get(), input);
    ggml_set_name(c.tensor, input->name);
    if (!place(c.tensor)) {
        return nullptr;
    }
    return &copies.emplace(key, std::move(c)).first->second;
}

// Takes what llama.cpp has written to the inputs before it.
class asl_input_copier : public llm_graph_input_i {
public:
    void add(const ggml_tensor * input, asl_chunk_inputs::copy * copy) {
        pairs.emplace_back(input, copy);
    }

    bool is_empty() const { return pairs.empty(); }

    void set_input(const llama_ubatch *) override {
        std::vector<uint8_t> data;
        for (auto & [input, copy] : pairs) {
            data.resize(ggml_nbytes(input));
            ggml_backend_tensor_get(input, data.data(), 0, data.size());
            ggml_backend_tensor_set(copy->tensor, data.data(), 0, data.size());
            copy->filled = true;
        }
    }

private:
    std::vector<std::pair<const ggml_tensor *, asl_chunk_inputs::copy *>> pairs;
};

void asl_chunk_inputs::replace(
        llm_graph_result & res, int32_t begin, const std::vector<ggml_tensor *> & inputs, const std::vector<ggml_tensor *> & nodes) {
    if (!buft) {
        return;
    }
    std::unordered_map<const ggml_tensor *, copy *> used;
    auto copier = std::make_unique<asl_input_copier>();
    for (ggml_tensor * node : nodes) {
        for (auto & src : node->src) {
            const auto i = src ? std::find(inputs.begin(), inputs.end(), src) : inputs.end();
            if (i == inputs.end() || src == res.t_inp_tokens || src == res.t_inp_embd || ggml_is_empty(src)) {
                continue;
            }
            const auto [entry, is_new] = used.emplace(src, nullptr);
            if (is_new) {
                entry->second = find(begin, i - inputs.begin(), src);
                if (entry->second && !entry->second->filled) {
                    copier->add(src, entry->second);
                }
            }
            if (entry->second && entry->second->filled) {
                src = entry->second->tensor;
            }
        }
    }
    if (!copier->is_empty()) {
        res.add_input(std::move(copier));
    }
}
