#include "steering.h"

#include "llama-adapter.h"
#include "llama-graph.h"
#include "llama-hparams.h"

std::vector<const ggml_tensor *> asl_find_steering(const llm_graph_params & params) {
    std::vector<const ggml_tensor *> result;
    for (uint32_t il = 0; params.cvec && il < params.hparams.n_layer(); ++il) {
        result.push_back(params.cvec->tensor_for(il));
    }
    return result;
}
