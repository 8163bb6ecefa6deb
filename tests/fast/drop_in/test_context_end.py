"""Where a pruned state ends: at n_ctx, however many cells are left."""

from __future__ import annotations

from asl_gguf import Llama


def test_generation_ends_at_n_ctx_with_cells_to_spare(tiny_model):
    llm = Llama(str(tiny_model("llama")), n_ctx=512, n_threads=1, n_threads_batch=1, asl_budget=64, asl_decode_ctx=512)
    answer = list(llm.generate([5 + i % 200 for i in range(480)], temp=0.0))
    assert llm.last_prefill.kept_tokens == 64 and llm.n_cells > 64 + len(answer)
    assert len(answer) == 512 - 480 + 1  # the last one is sampled, not evaluated
