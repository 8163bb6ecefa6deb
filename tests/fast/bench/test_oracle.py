"""bench.oracle itself, on a tiny model and a case written from our own run: it agrees, and it notices what does not."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asl_gguf.bench import oracle
from asl_gguf.engine.prefill import prefill
from asl_gguf.inspect.recorder import PolicyRecorder
from asl_gguf.native.model import ContextOptions, Model, decode
from harness import llama_cpp, prompt

N_TOKENS = 120
WINDOW = 8
COMMON = {"window_size": WINDOW, "kernel_size": 7, "L_obs": 2}
NAMES = ("name", "method", "default_select_layer", "layer_th", "select_k", "cache_k")
SETTINGS = [
    ("full", "vanilla", None, None, None, None),
    ("snapkv_c40", "snapkv", None, None, None, 40),
    ("asl_tau2_k40_cNone", "asl", 2, 2.0, 40, None),
    ("asl_tau0_k40_c40", "asl", 1, 0.0, 40, 40),
    ("fastkv_k40_c40", "fastkv", 3, None, 40, 40),
    ("fastkv_k60_c40", "fastkv", 2, None, 60, 40),
]


@pytest.fixture(scope="module")
def model(tiny_model):
    model = Model(str(tiny_model("llama")), ContextOptions(n_threads=1, kv_type=oracle.F32))
    yield model
    model.close()


@pytest.fixture(scope="module")
def case(model) -> dict[str, Any]:
    """What a reference would have written, had it done what we do. Layers run, nothing is replayed."""
    tokens = prompt(N_TOKENS)
    case: dict[str, Any] = {"prompt": "tiny", "token_ids": tokens, "common": COMMON, "snapkv": {}, "settings": []}
    with model.context(256) as ctx, model.session(ctx, 256, 256, "off") as session:
        for values in SETTINGS:
            setting = dict(zip(NAMES, values, strict=True))
            policy, n_kept = oracle.policy_of(setting, COMMON, N_TOKENS)
            watch = PolicyRecorder(policy)
            report = prefill(session, tokens, watch.policy, n_kept, always_ask=True)
            selected = report.selection_layer is not None
            rows = {
                str(scores.layer): decision.rows.tolist()
                for scores, decision in watch.seen
                if decision.rows is not None and decision.rows.ndim == 2
            }
            if setting["name"] == "snapkv_c40":
                case["snapkv"]["c40"] = rows
            logits = logits_of(model, ctx)
            best = np.argsort(-logits)[:20].tolist()
            case["settings"].append(
                setting
                | {
                    "select_layer": report.selection_layer,
                    "selected": list(report.selected) if selected else None,
                    "trace": [[layer, ratio, variance, 0] for layer, variance, ratio in report.variance],
                    "kv_len_end_of_prefill": list(report.rows_by_layer),
                    "snapkv_after_select": {
                        k: v for k, v in rows.items() if selected and int(k) > report.selection_layer
                    },
                    "top20": [[token, float(logits[token])] for token in best],
                    "greedy": greedy(model, ctx, 5),
                }
            )
    return case


def logits_of(model: Model, ctx: Any) -> np.ndarray:
    n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model.handle))
    return np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(ctx, -1), shape=(n_vocab,)).copy()


def greedy(model: Model, ctx: Any, n_tokens: int) -> list[int]:
    result: list[int] = []
    while len(result) < n_tokens:
        result.append(int(logits_of(model, ctx).argmax()))
        decode(ctx, result[-1:])
    return result


def write(folder: Path, case: dict[str, Any], name: str = "tiny") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps({key: value for key, value in case.items() if key != "prompt"}))
    return folder


@pytest.fixture
def main(tiny_model, cache, capsys) -> Callable[..., tuple[int, str, str]]:
    """`main(folder, ...)`: exit code, stdout and stderr. The model's F32 copy goes to a cache of the test."""

    def main(folder: Path, *arguments: str) -> tuple[int, str, str]:
        code = oracle.main(["--cases", str(folder), "-m", str(tiny_model("llama")), "-t", "1", *arguments])
        return code, *capsys.readouterr()

    return main


def test_the_case_has_what_it_compares(case):
    settings = {setting["name"]: setting for setting in case["settings"]}
    assert settings["asl_tau2_k40_cNone"]["select_layer"] == 2 and len(settings["asl_tau2_k40_cNone"]["selected"]) == 40
    assert settings["asl_tau2_k40_cNone"]["kv_len_end_of_prefill"] == [120] * 3 + [40] * 3
    assert settings["asl_tau0_k40_c40"]["select_layer"] is None and len(settings["asl_tau0_k40_c40"]["trace"]) == 5
    assert list(settings["fastkv_k60_c40"]["snapkv_after_select"]) == ["3", "4", "5"]
    assert len(case["snapkv"]["c40"]) == 6


def test_agreement(main, case, tmp_path):
    write(write(tmp_path / "cases", case), case, "again")
    code, out, err = main(tmp_path / "cases")
    assert (code, err) == (0, "") and out.endswith("\n12 of 12 settings agree\n")
    lines = out.splitlines()
    assert len(lines) == 2 + 12 + 2 and all(line.endswith("| yes |") for line in lines[2:14])
    assert lines[2].startswith("| again | full | - (-) |")


def test_agreement_as_json(main, case, tmp_path):
    code, out, err = main(write(tmp_path / "cases", case), "--json")
    rows = json.loads(out)
    assert (code, err, out.count("\n")) == (0, "", 1)
    assert [row["setting"] for row in rows] == [setting[0] for setting in SETTINGS]
    for row in rows:
        assert row["agrees"] and row["complaints"] == [] and row["case"] == "tiny"
        assert (row["swapped"], row["gap"], row["variance"], row["greedy"], row["n_greedy"]) == (0, 0, 0, 5, 5)
        assert row["logit"] == 0 and row["selection_layer"][0] == row["selection_layer"][1]


def swap(kept: list[int]) -> None:
    """The first token that is kept for its score gives way to one that is not kept."""
    kept[0] = min(set(range(N_TOKENS - WINDOW)) - set(kept))
    kept.sort()


SWAPPED = "kept tokens differ by more than ties: 1 swapped, gap [0-9.e-]+"
# the setting, what is changed in it (or in the case), the complaint
CHANGES: dict[str, tuple[str, Callable[[dict[str, Any], dict[str, Any]], object], str]] = {
    "layer": ("asl_tau2_k40_cNone", lambda s, c: s.update(select_layer=3), "selection layer 2, expected 3"),
    "no-layer": (
        "asl_tau2_k40_cNone",
        lambda s, c: s.update(select_layer=None, selected=None),
        "selection layer 2, expected None",
    ),
    "ratio": ("asl_tau0_k40_c40", lambda s, c: scale(s["trace"][0], 1, 1.01), "rank variance differs by 9.9e-03"),
    "variance": ("asl_tau0_k40_c40", lambda s, c: scale(s["trace"][-1], 2, 0.99), "rank variance differs by 1.0e-02"),
    "monitored": (
        "asl_tau0_k40_c40",
        lambda s, c: s["trace"].pop(),
        r"monitored layers \[1, 2, 3, 4, 5\], expected \[1, 2, 3, 4\]",
    ),
    "token-asl": ("asl_tau2_k40_cNone", lambda s, c: swap(s["selected"]), SWAPPED),
    "token-fastkv": ("fastkv_k40_c40", lambda s, c: swap(s["selected"]), SWAPPED),
    "row": ("snapkv_c40", lambda s, c: swap(c["snapkv"]["c40"]["4"][1]), SWAPPED),
    "row-after": ("fastkv_k60_c40", lambda s, c: swap(s["snapkv_after_select"]["3"][0]), SWAPPED),
    "count": (
        "asl_tau2_k40_cNone",
        lambda s, c: scale(s["kv_len_end_of_prefill"], -1, 2),
        "other numbers of K/V rows per layer",
    ),
    "logit": ("full", lambda s, c: s["top20"][7].__setitem__(1, s["top20"][7][1] + 0.01), "logits differ by 0.01"),
    "logit-nan": ("full", lambda s, c: s["top20"][7].__setitem__(1, math.nan), "logits differ by inf"),
    "ratio-nan": ("asl_tau0_k40_c40", lambda s, c: scale(s["trace"][2], 1, math.nan), "rank variance differs by inf"),
    "greedy": ("snapkv_c40", lambda s, c: s["greedy"].__setitem__(3, 5), "greedy token 3 differs"),
}


def scale(values: list[float], i: int, factor: float) -> None:
    values[i] *= factor


@pytest.mark.parametrize("name, change, complaint", CHANGES.values(), ids=CHANGES)
def test_disagreement(model, case, name, change, complaint):
    """In one thing: one complaint, which names it."""
    case = copy.deepcopy(case)
    case["settings"] = [setting for setting in case["settings"] if setting["name"] == name]
    change(case["settings"][0], case)
    (row,) = oracle.compare_case(model, case)
    assert not row.agrees and len(row.complaints) == 1
    assert re.fullmatch(complaint, row.complaints[0]), row.complaints


def test_disagreement_is_said(main, case, tmp_path):
    case = copy.deepcopy(case)
    case["settings"][2]["select_layer"] = 3
    folder = write(tmp_path / "cases", case)
    code, out, err = main(folder)
    assert (code, err) == (1, "") and out.endswith("\n5 of 6 settings agree\n")
    assert "| 2 (3) |" in out and "| NO: selection layer 2, expected 3 |" in out
    code, out, _ = main(folder, "--json")
    assert code == 1 and [row["agrees"] for row in json.loads(out)] == [True, True, False, True, True, True]


def test_ties_are_no_disagreement():
    """A swap of tokens whose scores differ by rounding alone has a gap below the tolerance."""
    scores = np.array([0.9, 0.5, 0.50001, 0.1, 0.7], dtype=np.float32)
    ours, theirs = np.array([0, 2, 4, 5, 6]), [0, 1, 4, 5, 6]
    swapped, gap = oracle._swap(ours, theirs, scores)
    assert swapped == 1 and 0 < gap < oracle.TIE
    swapped, gap = oracle._swap(ours, [0, 3, 4, 5, 6], scores)
    assert swapped == 1 and gap == pytest.approx(0.8, rel=1e-3)
    assert oracle._swap(ours, ours.tolist(), scores) == (0, 0.0)


def bad_folders(folder: Path, case: dict[str, Any], what: str) -> str:
    """Writes a folder that is none of cases; returns the message."""
    if what == "missing":
        return r"--cases: expected a folder with \*.json cases, got "
    write(folder, case)
    if what == "empty":
        (folder / "tiny.json").unlink()
        return r"--cases: expected a folder with \*.json cases, got "
    if what == "text":
        (folder / "tiny.json").write_text("{")
        return "--cases: expected a JSON case, got .*tiny.json: "
    if what == "other":
        (folder / "tiny.json").write_text('{"token_ids": []}')
        return "--cases: expected a case with token_ids, settings, common and snapkv, got .*tiny.json"
    case = copy.deepcopy(case)
    case["settings"][0]["method"] = "h2o"
    write(folder, case)
    return "method: expected vanilla, snapkv, fastkv or asl, got 'h2o'"


@pytest.mark.parametrize("what", ["missing", "empty", "text", "other", "method"])
def test_a_bad_folder(main, case, tmp_path, what):
    message = bad_folders(tmp_path / "cases", case, what)
    code, out, err = main(tmp_path / "cases")
    assert (code, out) == (2, "") and re.fullmatch(f"error: {message}.*\n", err), err


def test_no_such_model(case, cache, tmp_path, capsys):
    folder = write(tmp_path / "cases", case)
    assert oracle.main(["--cases", str(folder), "-m", "nope"]) == 2
    assert capsys.readouterr().err.startswith("error: expected a GGUF file or a named model, got neither: 'nope'")


@pytest.mark.parametrize("logits, agreed", [([math.nan] * 3, 0), ([0.0, 1.0, 0.0], 0), ([0.0, 0.15, 0.0], 2)], ids=str)
def test_greedy_tokens_of_no_logits_or_other_ones(monkeypatch, logits, agreed):
    """However far the logits after the prefill are off."""
    monkeypatch.setattr(oracle, "_logits", lambda *_: np.array(logits))
    monkeypatch.setattr(oracle, "decode", lambda *_: None)
    assert oracle._compare_greedy(None, None, [0, 2], 20.0) == agreed


@pytest.mark.parametrize("off, agrees", [(0.05, True), (0.5, False)])
def test_a_swapped_tie_excuses_small_differences_alone(monkeypatch, model, case, off, agrees):
    case = copy.deepcopy(case)
    case["settings"] = [setting for setting in case["settings"] if setting["name"] == "full"]
    case["settings"][0]["top20"][7][1] += off
    monkeypatch.setattr(oracle, "_token_swaps", lambda *_: [(1, oracle.TIE)])
    (row,) = oracle.compare_case(model, case)
    assert row.agrees == agrees and row.swapped == 1
