#include "parts.h"

#include "ggml-backend.h"

#include <algorithm>
#include <ctime>
#include <unordered_map>

int64_t asl_thread_us() {
#ifdef CLOCK_THREAD_CPUTIME_ID
    timespec t;
    if (clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t) == 0) {
        return (int64_t) t.tv_sec * 1000000 + t.tv_nsec / 1000;
    }
#endif
    return ggml_time_us();
}

ggml_context * asl_part_memory::make(size_t n_bytes) {
    if (n_bytes > size) {
        data.reset(new uint8_t[n_bytes]);
        size = n_bytes;
    }
    return ggml_init({ n_bytes, data.get(), true });
}

// A digest of which tensors a graph computes and reads, by what ggml_gallocr goes by.
class form_of_part {
public:
    explicit form_of_part(ggml_cgraph * part) {
        for (int i = 0; i < ggml_graph_n_nodes(part); ++i) {
            add_node(ggml_graph_node(part, i));
        }
        n_leaves = (int) (places.size() - ggml_graph_n_nodes(part));
    }

    void add_leaf(const ggml_tensor * t) {
        if (places.emplace(t, places.size()).second) {
            ++n_leaves;
            add_tensor(t);
        }
    }

    uint64_t digest = 0;
    int n_leaves = 0;

private:
    void add(uint64_t value) { digest = (digest ^ value) * 0x100000001b3 + (digest >> 29); }

    void add_tensor(const ggml_tensor * t) {
        add(t->op);
        add(t->flags & (GGML_TENSOR_FLAG_INPUT | GGML_TENSOR_FLAG_OUTPUT));
        add(t->data != nullptr);
        add(t->buffer ? (uint64_t) (uintptr_t) ggml_backend_buffer_get_type(t->buffer) : 0);
    }

    uint64_t place(const ggml_tensor * t) {
        const auto [found, is_new] = places.emplace(t, places.size());
        if (is_new) {
            add_tensor(t);
        }
        return found->second;
    }

    void add_node(const ggml_tensor * node) {
        for (const ggml_tensor * src : node->src) {
            if (src) {
                add(place(src));
                // may be computed in place
                add(node->type == src->type && ggml_are_same_shape(node, src) && ggml_are_same_stride(node, src));
            }
        }
        add(place(node));
        if (node->view_src) {
            const auto found = places.find(node->view_src);
            add(found == places.end() ? UINT64_MAX : found->second);
        }
    }

    std::unordered_map<const ggml_tensor *, size_t> places;
};

int asl_part_forms::count_pads(ggml_cgraph * part, const std::vector<ggml_tensor *> & alone) {
    form_of_part now(part);
    for (const ggml_tensor * t : alone) {
        now.add_leaf(t);
    }
    if (now.digest != form) {
        n_pads = ggml_graph_n_nodes(part) == n_nodes && now.n_leaves == n_leaves;
    }
    form = now.digest;
    n_nodes = ggml_graph_n_nodes(part);
    n_leaves = now.n_leaves + n_pads;
    return n_pads;
}
