"""Prefills one after another in one run: transformers, kvpress's presses, stock llama.cpp and asl_gguf.

Wall clock and CPU time of all threads: medians, smallest and largest. Ratios are those of one round.

    python bench/peers/speed.py --python PEERS/bin/python

transformers runs F32 weights (dequantised), llama.cpp those of the file.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from statistics import median
from typing import Any

from peer import Peer, open_both, parser, run

from asl_gguf.bench.prefill import make_prompt
from asl_gguf.budget.share import Budget, round_cells
from asl_gguf.engine.prefill import prefill
from asl_gguf.native.model import Model, Timing, stock_prefill, timed
from asl_gguf.policies import Full, make_policy

_TRANSFORMERS, _STOCK = "transformers, full cache", "llama.cpp"


def main() -> None:
    made = parser(__doc__ or "")
    made.add_argument("--tokens", type=int, default=2048, help="prompt length (default %(default)s)")
    made.add_argument("--budget", type=float, default=0.2, help="share of the prompt (default %(default)s)")
    made.add_argument("--press", default="snapkv:window_size=32", help="of kvpress (default %(default)s)")
    made.add_argument("--runs", type=int, default=3, help="medians of so many (default %(default)s)")
    args = made.parse_args()
    model, peer = open_both(args)
    try:
        _measure(model, peer, args)
    finally:
        peer.close()
        model.close()


def _measure(model: Model, peer: Peer, args: Any) -> None:
    tokens = make_prompt(model, args.tokens)
    n_tokens = len(tokens)
    n_kept = Budget(args.budget, 0).kept(n_tokens, 1)
    n_cells = round_cells(n_tokens)
    with (
        model.context(n_cells) as stock,
        model.context(n_cells) as ctx,
        model.session(ctx, n_cells, n_tokens, "auto") as session,
    ):

        def theirs(press: str | None, rows: int) -> Callable[[], Timing]:
            def call() -> Timing:
                answer = peer.ask("time", tokens=tokens, press=press, n_kept=rows)
                return Timing(answer["wall"], answer["cpu"])

            return call

        def ours(policy: Any, rows: int) -> Callable[[], Timing]:
            return lambda: timed(lambda: prefill(session, tokens, policy, rows))[1]

        calls = {
            _TRANSFORMERS: theirs(None, n_tokens),
            f"kvpress {args.press}": theirs(args.press, n_kept),
            _STOCK: lambda: timed(lambda: stock_prefill(stock, tokens, model.options.n_ubatch))[1],
            "asl_gguf, nothing pruned": ours(Full(), n_tokens),
            "asl_gguf, asl-span": ours(make_policy("asl-span"), n_kept),
        }
        rounds: list[dict[str, Timing]] = []
        for i in range(1 + args.runs):
            found = {name: call() for name, call in calls.items()}
            rounds += [found] * bool(i)  # the first round warms up
    versions = ", ".join(f"{name} {version}" for name, version in peer.versions.items())
    print(f"{n_tokens} tokens, {n_kept} kept where pruned, {args.threads} thread(s), {args.runs} runs; {versions}\n")
    print("| prefill | seconds | CPU seconds | CPU time to llama.cpp's | to transformers' |\n|---|---|---|---|---|")
    for name in calls:
        wall, cpu = (_spread([getattr(one[name], kind) for one in rounds]) for kind in ("wall", "cpu"))
        ratios = [_spread([one[name].cpu / one[to].cpu for one in rounds]) for to in (_STOCK, _TRANSFORMERS)]
        print(f"| {name} | {wall} | {cpu} | {ratios[0]} | {ratios[1]} |")


def _spread(values: list[float]) -> str:
    return f"{median(values):.2f} [{min(values):.2f}-{max(values):.2f}]"


if __name__ == "__main__":
    sys.exit(run(main))
