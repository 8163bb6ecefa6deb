"""`asl-gguf bench`: every command measures what it says, on a tiny model."""

from __future__ import annotations

import json
import re

import pytest

from asl_gguf.cli import main


def test_bench_saved(capsys, model):
    arguments = ["--tokens", "300", "--runs", "1", "-t", "1", "--policy", "snapkv", "--json"]
    assert main(["bench", "saved", "-m", model, *arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["prompt_tokens"], found["kept_tokens"]) == (300, 33)
    assert 0 < found["pruned_bytes"] < found["stock_bytes"]
    steps = ("prefill", "save", "load")
    assert all(found[f"{name}_{step}_seconds"] > 0 for name in ("pruned", "stock") for step in steps)


def test_bench_slices(capsys, model):
    arguments = ["--tokens", "300", "--runs", "1", "-t", "1", "--n-ubatch", "64", "--dequant", "off", "--json"]
    assert main(["bench", "slices", "-m", model, *arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    n_layer, n_chunks = 6, 5
    assert n_layer < found["slices"] <= n_layer * (n_chunks + 1) + 4  # a selection in each layer, contexts, head, end
    for clock in ("", "_cpu"):
        assert 0 < found[f"median_slice{clock}"] <= found[f"longest_slice{clock}"]
        assert found[f"sliced_to_unsliced{clock}"] > 0
    assert found["spreads"].keys() < found.keys()


def test_bench_host(capsys, model):
    arguments = ["--tokens", "300", "--runs", "1", "-t", "1", "--n-ubatch", "64", "--dequant", "off", "--json"]
    assert main(["bench", "host", "-m", model, *arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parts_unpruned"] == 5 * 5 >= found["parts_pruned"]  # chunks of all layers but the last
    for kind in ("unpruned", "pruned"):
        assert found[f"host_ms_{kind}"] > 0 < found[f"host_ms_{kind}_rebuilt"]


@pytest.mark.long
def test_bench_agents(capsys, model):
    arguments = ["--tokens", "600", "--turns", "2", "--turn-tokens", "400", "--runs", "1", "-t", "1", "--json"]
    assert main(["bench", "agents", "-m", model, *arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    for way in ("full_cache", "pruned", "pruned_full_kv"):
        assert len(found[way]["seconds_by_turn"]) == 3 and min(found[way]["seconds_by_turn"]) > 0
        assert 0 <= found[way]["right_older"] <= 1
    assert 0 <= found["pruned_full_kv"]["right_older_of_full_cache_on_same_prompts"] <= 1
    assert found["pruned"]["kv_bytes"] < 0.5 * found["full_cache"]["kv_bytes"]
    later = found["pruned"]["seconds_by_turn"][1:], found["full_cache"]["seconds_by_turn"][1:]
    assert found["pruned"]["seconds_to_full_later_turns"] == pytest.approx(sum(later[0]) / sum(later[1]))


@pytest.mark.long
def test_bench_prefill(capsys, model):
    assert main(["bench", "prefill", "-m", model, "--tokens", "128", "--runs", "1", "-t", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {
        "ratio_unpruned",
        "ratio_pruned",
        "ratio_limit",
        "selection_layer",
        "kept_tokens",
        "prompt_tokens",
        "spreads",
    } <= set(found)
    assert (found["prompt_tokens"], found["kept_tokens"], found["runs"]) == (128, 25, 1)
    assert 0 < found["ratio_limit"] <= 1
    assert {"f32", "int8", "int8_int16"} >= set(found["limit_cpu_seconds"])
    assert all(0 < share < 2 for share in found["share_of_limit"].values())
    for name in ("ratio_unpruned", "ratio_pruned", "ratio_unpruned_cpu", "ratio_pruned_cpu"):
        low, high = found["spreads"][name]
        assert 0 < low <= found[name] <= high
    assert main(["bench", "prefill", "-m", model, "--tokens", "128", "--runs", "1", "-t", "1"]) == 0
    assert re.search(r"^ratio_unpruned +\d+\.\d+$", capsys.readouterr().out, re.MULTILINE)


def test_bench_decode(capsys, model):
    arguments = ["bench", "decode", "-m", model, "--tokens", "128", "--runs", "1", "-t", "1", "--decode", "4", "--json"]
    assert main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["prompt_tokens"], found["kept_tokens"], found["decoded_tokens"]) == (128, 17, 4)
    assert set(found["tokens_per_second"]) == {"pruned", "stock_kept", "stock_full"}
    for name in ("ratio_to_stock_kept", "ratio_to_stock_full"):
        low, high = found["spreads"][name]
        assert 0 < low <= found[name] <= high
    assert "selection_layer" in found


@pytest.mark.parametrize(
    "arguments",
    [["--tokens", "10"], ["--runs", "0"], ["--budget", "none"], ["--budget", "2.0"], ["--policy", "x"]],
    ids=str,
)
@pytest.mark.parametrize("kind", ["prefill", "decode"])
def test_bench_wrong_use(capsys, model, kind, arguments):
    assert main(["bench", kind, "-m", model, "--tokens", "128", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and re.fullmatch("asl-gguf: .*expected .*, got .*\n", err)


def test_bench_decodes_at_least_a_token(capsys, model):
    assert main(["bench", "decode", "-m", model, "--tokens", "128", "--runs", "1", "--decode", "0"]) == 2
