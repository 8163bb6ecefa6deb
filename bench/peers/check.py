"""Whether transformers computes what llama.cpp computes: logits of one prompt, and kvpress's rows of a shared prefill.

    python bench/peers/check.py --python PEERS/bin/python

llama.cpp runs the file's F32 copy (asl_gguf/models/f32.py) with an F32 cache, transformers the file, dequantised by itself.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from peer import Peer, open_both, parser, run

from asl_gguf.bench.prefill import make_prompt
from asl_gguf.errors import NativeError
from asl_gguf.eval.measure import divergence, logits
from asl_gguf.models.f32 import expanded
from asl_gguf.native.model import ContextOptions, Model, stock_prefill
from asl_gguf.policies.contract import Floats

TOLERANCE = 2e-3
"""absolute, of logits: sums of F32 products in another order, over all layers"""


def main() -> None:
    made = parser(__doc__ or "")
    made.add_argument("--tokens", type=int, default=1024, help="prompt length (default %(default)s)")
    args = made.parse_args()
    model, peer = open_both(args)
    try:
        tokens = make_prompt(model, args.tokens)
        theirs = np.array(peer.ask("logits", tokens=tokens), dtype=np.float32)
        print("versions:", ", ".join(f"{name} {version}" for name, version in peer.versions.items()))
        _compare("llama.cpp, F32 copy and F32 cache", _ours(str(expanded(model.path)), 0, args, tokens), theirs, True)
        _compare("llama.cpp, the file and F16 cache", _ours(model.path, 1, args, tokens), theirs, False)
        _check_sharing(peer, tokens)
    finally:
        peer.close()
        model.close()


def _ours(path: str, kv_type: int, args: Any, tokens: list[int]) -> Floats:
    model = Model(path, ContextOptions(args.threads, kv_type=kv_type))
    try:
        with model.context(len(tokens) + 1) as ctx:
            stock_prefill(ctx, tokens, model.options.n_ubatch)
            return logits(model, ctx, -1)
    finally:
        model.close()


def _compare(name: str, ours: Floats, theirs: Floats, must_agree: bool) -> None:
    difference = np.abs(ours - theirs)
    best = [np.argsort(-row)[:5].tolist() for row in (ours, theirs)]
    print(
        f"{name} beside transformers: logits differ by {difference.max():.2g} at most, {difference.mean():.2g} on "
        f"average, KL {divergence(theirs, ours):.2g} nats, best five tokens {'equal' if best[0] == best[1] else best}"
    )
    if must_agree and (difference.max() > TOLERANCE or best[0][0] != best[1][0]):
        raise NativeError(f"expected logits within {TOLERANCE}, got {difference.max():.3g}")


def _check_sharing(peer: Peer, tokens: list[int]) -> None:
    kept = [len(tokens) // 10, len(tokens) // 5]
    wanted = [
        {"press": press, "n_kept": n_kept} for press in ("snapkv:window_size=32", "streaming_llm") for n_kept in kept
    ]
    if not peer.ask("shared_equals_own", tokens=tokens, wanted=wanted):
        raise NativeError("expected the shared prefill to keep the rows that a prefill of each press keeps")
    print(f"one prefill for {len(wanted)} presses and budgets: rows and logits equal those of prefills of their own")


if __name__ == "__main__":
    sys.exit(run(main))
