"""`python -m asl_gguf.bench.oracle`: our policies against traces of the ASL authors' own implementation.

A case is a JSON file with a prompt's token ids and, for each setting, what the authors' code did on F32 weights and
an F32 cache: rank variances, selection layer, kept tokens, SnapKV's kept rows per KV head, the 20 best logits after
the prefill, and 16 greedy tokens (tests/oracle/README.md describes the fields).

Sets of kept tokens may differ by ties: tokens whose scores differ by less than rounding does.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..engine.prefill import prefill
from ..engine.replay import Recording, Replay, record
from ..errors import AslError, OptionError
from ..inspect.recorder import PolicyRecorder
from ..models.f32 import expanded
from ..models.named import resolve
from ..native.bindings import llama_cpp
from ..native.model import ContextOptions, Model, decode
from ..policies import ASL, FastKV, Full, Policy, SnapKV
from ..policies.contract import Floats, Indices
from ..policies.scoring import ScoringPolicy
from ..report import PrefillReport

F32 = 0
TIE = 1e-4
"""relative gap of scores that rounding may turn round (sums of F32 products in another order)"""
VARIANCE = 2e-3
"""relative difference of a rank variance that swaps of tied ranks make"""
LOGIT = 1e-3
"""absolute difference of logits"""
LOGIT_TIED = 0.1
"""the same where a tied token or row was swapped"""


@dataclass(frozen=True)
class Agreement:
    """One setting of a case, ours beside theirs."""

    case: str
    setting: str
    selection_layer: tuple[int | None, int | None]
    """ours, theirs"""
    variance: float
    """largest relative difference of the trace's ratios"""
    swapped: int
    """kept tokens, and kept rows of every KV head that the case lists, that only one of the two keeps"""
    gap: float
    """largest relative distance of a swapped token's score from the last kept one's"""
    logit: float
    """largest absolute difference of their 20 best logits"""
    greedy: int
    """leading greedy tokens that agree, of n_greedy"""
    n_greedy: int
    complaints: tuple[str, ...]
    """where the two disagree beyond ties"""

    @property
    def agrees(self) -> bool:
        return not self.complaints


def policy_of(setting: dict[str, Any], common: dict[str, Any], n_tokens: int) -> tuple[Policy, int]:
    """The policy and the number of kept tokens that a setting names.

    Raises:
        OptionError: the method is unknown.
    """
    shared = {"window": common["window_size"], "kernel_size": common["kernel_size"]}
    select_k, cache_k = setting["select_k"], setting["cache_k"]
    method = setting["method"]
    if method == "vanilla":
        return Full(window=shared["window"]), n_tokens
    if method == "snapkv":
        return SnapKV(**shared), cache_k
    rows: Any = "all" if cache_k is None else "select_k" if cache_k == select_k else cache_k
    if method == "fastkv":
        return FastKV(**shared, tsp_layer=setting["default_select_layer"], cache_k=rows), select_k
    if method == "asl":
        monitored = {"min_layer": setting["default_select_layer"], "obs_layers": common["L_obs"]}
        return ASL(**shared, **monitored, tau=setting["layer_th"], cache_k=rows), select_k
    raise OptionError(f"method: expected vanilla, snapkv, fastkv or asl, got {method!r}")


def compare_case(model: Model, case: dict[str, Any]) -> Iterable[Agreement]:
    """Every setting of a case, over one recorded pass."""
    tokens = case["token_ids"]
    n_cells = -(-(len(tokens) + 32) // 256) * 256
    with model.context(n_cells) as ctx, model.session(ctx, n_cells, n_cells, "off") as session:
        recording = record(session, tokens, case["common"]["window_size"])
        for setting in case["settings"]:
            yield _compare(model, ctx, Replay(session, recording), recording, case, setting)


def _compare(
    model: Model, ctx: Any, replay: Replay, recording: Recording, case: dict[str, Any], setting: dict[str, Any]
) -> Agreement:
    inner, n_kept = policy_of(setting, case["common"], len(recording.tokens))
    watch = PolicyRecorder(inner)
    report = prefill(replay, recording.tokens, watch.policy, n_kept, always_ask=True)
    complaints: list[str] = []
    layers = (report.selection_layer, setting["select_layer"])
    if layers[0] != layers[1]:
        complaints.append(f"selection layer {layers[0]}, expected {layers[1]}")
    variance = _compare_trace(report, setting, complaints)
    swaps = [*_token_swaps(watch, setting), *_row_swaps(watch, case, setting)]
    swapped, gap = sum(n for n, _ in swaps), _largest(gap for _, gap in swaps)
    if gap > TIE:
        complaints.append(f"kept tokens differ by more than ties: {swapped} swapped, gap {gap:.1e}")
    if setting.get("kv_len_end_of_prefill") and list(report.rows_by_layer) != setting["kv_len_end_of_prefill"]:
        complaints.append("other numbers of K/V rows per layer")
    logits = _logits(model, ctx)
    logit = _largest(abs(float(logits[token]) - value) for token, value in setting["top20"])
    if logit > (LOGIT_TIED if swapped else LOGIT):
        complaints.append(f"logits differ by {logit:.3g}")
    greedy = _compare_greedy(model, ctx, setting["greedy"], logit)
    if greedy < len(setting["greedy"]):
        complaints.append(f"greedy token {greedy} differs")
    return Agreement(
        case["prompt"], setting["name"], layers, variance, swapped, gap, logit, greedy, len(setting["greedy"]),
        tuple(complaints),
    )  # fmt: skip


def _compare_trace(report: PrefillReport, setting: dict[str, Any], complaints: list[str]) -> float:
    ours = {layer: (ratio, variance) for layer, variance, ratio in report.variance}
    theirs = {row[0]: (row[1], row[2]) for row in setting["trace"]}
    if ours.keys() != theirs.keys():
        complaints.append(f"monitored layers {sorted(ours)}, expected {sorted(theirs)}")
        return float("inf")
    pairs = [pair for layer, values in theirs.items() for pair in zip(ours[layer], values, strict=True)]
    worst = _largest(abs(got - expected) / max(abs(expected), 1e-12) for got, expected in pairs)
    if worst > VARIANCE:
        complaints.append(f"rank variance differs by {worst:.1e}")
    return worst


def _largest(differences: Iterable[float]) -> float:
    """0 of none; infinite if one is no number: max() would pass over it."""
    return max((value if value == value else math.inf for value in differences), default=0.0)


def _swap(ours: Indices, theirs: Sequence[int], scores: Floats) -> tuple[int, float]:
    """Tokens that only one side keeps, and how far their scores lie from the last kept one's.

    Args:
        scores: float32 [n - window] of the tokens that compete.
    """
    different = np.setxor1d(ours, np.asarray(theirs))
    different = different[different < scores.size]
    if different.size == 0:
        return 0, 0.0
    last = scores[ours[ours < scores.size]].min()
    return int(different.size) // 2, float(np.abs(scores[different] - last).max() / max(last, 1e-30))


def _scoring(watch: PolicyRecorder) -> ScoringPolicy | None:
    return watch.policy if isinstance(watch.policy, ScoringPolicy) else None


def _token_swaps(watch: PolicyRecorder, setting: dict[str, Any]) -> Iterable[tuple[int, float]]:
    scoring = _scoring(watch)
    for scores, decision in watch.seen:
        if scoring and decision.tokens is not None and setting["selected"] is not None:
            yield _swap(decision.tokens, setting["selected"], scoring.head_scores(scores).sum(axis=0))


def _row_swaps(watch: PolicyRecorder, case: dict[str, Any], setting: dict[str, Any]) -> Iterable[tuple[int, float]]:
    scoring = _scoring(watch)
    before = case["snapkv"].get(f"c{setting['cache_k']}", {})
    after = setting.get("snapkv_after_select") or {}
    selected = False
    for scores, decision in watch.seen:
        listed = (after if selected else before).get(str(scores.layer))
        if scoring and listed is not None and decision.rows is not None:
            per_head = scoring.head_scores(scores)
            for head, theirs in enumerate(listed):
                yield _swap(decision.rows[head], theirs, per_head[head])
        selected = selected or decision.tokens is not None


def _logits(model: Model, ctx: Any) -> Floats:
    return np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(ctx, -1), shape=(model.n_vocab,)).copy()


def _compare_greedy(model: Model, ctx: Any, theirs: Sequence[int], tolerance: float) -> int:
    """Leading tokens that agree; where two logits tie, theirs is taken."""
    for i, token in enumerate(theirs):
        logits = _logits(model, ctx)
        if not logits.max() - logits[token] <= max(1e-3, 2 * min(tolerance, LOGIT_TIED)):
            return i
        if i < len(theirs) - 1:
            decode(ctx, [token])
    return len(theirs)


def read_cases(folder: Path) -> list[dict[str, Any]]:
    """The case files of a folder.

    Raises:
        OptionError: there are none, or one is no case.
    """
    cases = []
    for path in sorted(folder.glob("*.json")):
        try:
            case = json.loads(path.read_text())
        except json.JSONDecodeError as err:
            raise OptionError(f"--cases: expected a JSON case, got {path}: {err}") from None
        if not isinstance(case, dict) or not {"token_ids", "settings", "common", "snapkv"} <= case.keys():
            raise OptionError(f"--cases: expected a case with token_ids, settings, common and snapkv, got {path}")
        cases.append({"prompt": path.stem, **case})
    if not cases:
        raise OptionError(f"--cases: expected a folder with *.json cases, got {folder}")
    return cases


def format_table(rows: Sequence[Agreement]) -> str:
    """A Markdown table, one line per setting."""
    lines = [
        "| case | setting | selection layer (theirs) | variance | swapped (gap) | logits | greedy | agrees |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ours, theirs = ("-" if layer is None else layer for layer in row.selection_layer)
        gap = f" ({row.gap:.0e})" if row.swapped else ""
        verdict = "yes" if row.agrees else "NO: " + "; ".join(row.complaints)
        lines.append(
            f"| {row.case} | {row.setting} | {ours} ({theirs}) | {row.variance:.0e} | {row.swapped}{gap} "
            f"| {row.logit:.0e} | {row.greedy} of {row.n_greedy} | {verdict} |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m asl_gguf.bench.oracle", description=__doc__)
    parser.add_argument("--cases", type=Path, required=True, help="folder with case files")
    parser.add_argument("-m", "--model", default="smollm2-135m-instruct", help="GGUF file or name of a pulled model")
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print one JSON array")
    args = parser.parse_args(argv)
    try:
        cases = read_cases(args.cases)
        path = expanded(resolve(args.model))
        model = Model(str(path), ContextOptions(n_threads=args.threads, kv_type=F32))
        try:
            rows = [row for case in cases for row in compare_case(model, case)]
        finally:
            model.close()
    except AslError as err:
        print(f"error: {err}", file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps([{**asdict(row), "agrees": row.agrees} for row in rows]))
    else:
        print(format_table(rows))
        print(f"\n{sum(row.agrees for row in rows)} of {len(rows)} settings agree")
    return 0 if all(row.agrees for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
