#include "chunks.h"

#include "error.h"

#include "llama-batch.h"
#include "llama-context.h"
#include "llama-model.h"

llama_memory_context_ptr asl_place_tokens(llama_context & ctx, llama_memory_i & memory, const std::vector<llama_token> & ids, const llama_pos * positions) {
    llama_batch_ext batch(&ctx);
    for (size_t i = 0; i < ids.size(); ++i) {
        const int32_t idx = batch.add_token(0);
        if (idx < 0 || !batch.set_token_id(idx, ids[i]) || !batch.set_token_pos(idx, positions + i)) {
            throw asl_error(ASL_ERR_INTERNAL, "token " + std::to_string(i) + " was refused by llama_batch_ext");
        }
    }
    const auto & model = ctx.get_model();
    llama_batch_allocr balloc(model.hparams.n_pos_per_embd());
    balloc.asl_allow_pos_gaps = true;
    if (!balloc.init(batch, model.vocab, false)) {
        throw asl_error(ASL_ERR_INTERNAL, "the positions of the kept tokens were refused");
    }
    auto mctx = memory.init_batch(balloc, ids.size(), false);
    if (!mctx || mctx->get_status() != LLAMA_MEMORY_STATUS_SUCCESS) {
        throw asl_error(ASL_ERR_INTERNAL, "no free cells for " + std::to_string(ids.size()) + " tokens");
    }
    return mctx;
}

llama_memory_context_i & asl_chunk_plan::get(
        llama_context & ctx, int32_t begin, const std::vector<llama_token> & ids, const llama_pos * positions) {
    auto & chunk = chunks[begin];
    if (!chunk) {
        chunk = asl_place_tokens(ctx, *ctx.get_memory(), ids, positions);
    }
    return *chunk;
}
