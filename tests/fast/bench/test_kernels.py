"""Which weight types `asl_dequant="auto"` expands, and the bench that says how fast each is."""

from __future__ import annotations

import json
from contextlib import closing

import numpy as np
import pytest

from asl_gguf.bench import kernels
from asl_gguf.cli import main
from asl_gguf.engine.prefill import prefill
from asl_gguf.policies import make_policy
from harness import Model, prompt

SMALL = (64, 40, 256)
"""outputs, tokens, inputs"""
TYPES = kernels.type_names()
MEASURED = "no measurements" not in kernels.rule()
"""a row of the table holds on this machine"""
K_AND_IQ = [name for name in TYPES if name.lower().endswith("_k") or name.startswith("iq")]
PACKED_ON_AVX512 = ("q4_K", "q5_K", "q6_K")
FASTER_AS_STORED = [name for name in K_AND_IQ if name not in ("iq4_nl", *PACKED_ON_AVX512)]
ON_AVX512 = kernels.rule().startswith("AVX-512 VNNI") and kernels.packed_kernel() != "scalar"
PACKS = kernels.packed_kernel() != "scalar"


def test_the_types_are_those_of_model_files():
    assert {"f32", "f16", "bf16", "q4_1", "q6_K", "iq4_nl", "mxfp4"} <= set(TYPES)
    assert not {"q8_1", "q8_K", "i32"} & set(TYPES)  # activations, integers


@pytest.mark.parametrize("name", FASTER_AS_STORED)
def test_k_and_iq_types_stay_as_stored(name):
    assert not kernels.expands(TYPES[name])[0]


@pytest.mark.parametrize("name", PACKED_ON_AVX512)
def test_k_types_are_packed_where_that_was_measured(name):
    packs, reason = kernels.expands(TYPES[name])
    assert packs == ON_AVX512
    assert reason.startswith("packed for activations of 8 bits" if ON_AVX512 else "as stored")


@pytest.mark.skipif(not MEASURED, reason="nothing is known of this CPU, so nothing is expanded")
@pytest.mark.parametrize("name", ["q4_1", "q5_1"])
def test_types_without_a_fast_product_are_expanded(name):
    assert kernels.expands(TYPES[name]) == (True, kernels.expands(TYPES["q4_1"])[1])
    assert name in kernels.rule()


def count_expanded(model: Model, mode: str, n_tokens: int = 110) -> int:
    with model.context() as ours:
        session = ours.session()
        session.set_dequant(mode)
        return prefill(session, prompt(n_tokens), make_policy("none"), n_tokens).n_dequantised


@pytest.mark.skipif(not MEASURED, reason="nothing is known of this CPU, so nothing is expanded")
def test_auto_expands_q4_1(tiny_model):
    with closing(Model(tiny_model("llama", weight_type="Q4_1"), repack=False)) as model:
        assert count_expanded(model, "auto") == count_expanded(model, "all") > 0


@pytest.mark.skipif(not (MEASURED and PACKS), reason="nothing is packed here")
def test_auto_is_the_mode_that_the_rule_names(tiny_model):
    """8 bits where that is much faster (AVX-512 VNNI), else 16."""
    bits = 8 if "activations of 8 bits" in kernels.rule() else 16
    assert f"activations of {bits} bits" in kernels.expands(TYPES["q4_1"])[1]
    with closing(Model(tiny_model("llama", weight_type="Q4_1"), repack=False)) as model, model.context() as context:
        logits = {}
        for mode in ("auto", "int8", "int16"):
            session = context.session()
            session.set_dequant(mode)
            prefill(session, prompt(110), make_policy("none"), 110)
            logits[mode] = context.logits()
    assert np.array_equal(logits["auto"], logits[f"int{bits}"])
    assert not np.array_equal(logits["int8"], logits["int16"])


def test_integers_are_no_slower_than_floats():
    f32, int16, int8 = (kernels.peak(n_bits) for n_bits in (32, 16, 8))
    assert (f32, int16, int8) == (0, 0, 0) or 1 < f32 < 1.2 * int16 < 1.5 * int8
    assert kernels.peak(7) == 0


@pytest.mark.parametrize("mix", ["q4_k", "q6_k"])
def test_auto_leaves_k_types_of_short_prompts_alone(script, tmp_path, mix):
    script.write_model(str(tmp_path / "k.gguf"), script.SHAPES["tiny"], mix)
    with closing(Model(tmp_path / "k.gguf", repack=False)) as model:
        assert count_expanded(model, "auto") == 0 < count_expanded(model, "all")
        assert count_expanded(model, "auto", 300) == (count_expanded(model, "all", 300) if ON_AVX512 else 0)


def test_auto_packs_what_llama_cpp_repacks(script, tmp_path):
    script.write_model(str(tmp_path / "k.gguf"), script.SHAPES["tiny"], "q4_k")
    with closing(Model(tmp_path / "k.gguf")) as model:
        assert count_expanded(model, "auto", 63) == 0 == count_expanded(model, "all")
        assert count_expanded(model, "auto", 64) == (
            7 * model.n_layer - 3 if ON_AVX512 else 0
        )  # the last FFN has one token


def test_weights_in_six_bits_keep_the_scale_of_their_input(script):
    import gguf

    weights = gguf.quants.dequantize(script.q6_k(np.random.default_rng(0), 64, 512), gguf.GGMLQuantizationType.Q6_K)
    assert np.var(weights) == pytest.approx(1 / 512, rel=0.02)


def test_a_mix_has_six_bits_where_llama_cpp_puts_them(script):
    more = [layer for layer in range(16) if script.uses_q6_k("q4_k_m", "ffn_down", layer, 16)]
    assert more == [0, 1, 4, 7, 10, 13, 14, 15]
    assert not any(script.uses_q6_k("q4_k_m", "attn_q", layer, 16) for layer in range(16))


def test_every_type_is_measured():
    rows = kernels.bench_kernels(SMALL, 1)
    stored = {row.type: row for row in rows if row.held == "CPU"}
    assert set(stored) == set(TYPES)
    assert [row.gflops for row in rows] == sorted((row.gflops for row in rows), reverse=True)
    assert all(0.001 < row.gflops < 1e5 for row in rows)
    assert stored["q3_K"].auto.startswith("as stored")
    assert not MEASURED or stored["q4_1"].auto.startswith("packed" if PACKS else "expanded")
    assert {row.held for row in rows if row.type == "q4_1"} >= {"packed int8", "packed int16"}
    assert not [row for row in rows if row.type.startswith(("iq2", "iq3")) and row.held.startswith("packed")]
    packed = {row.type for row in rows if row.held.startswith("packed")}
    assert all((row.pack_ns > 0) == (row.type in packed) for row in stored.values())


@pytest.mark.long
def test_a_longer_product_takes_longer():
    """Times are of the product asked for: eight times the outputs, about as many operations a second."""
    # the fastest of several: on a busy machine any one of them may be interrupted
    short, long = (
        max(kernels.measure(TYPES["f16"], kernels.STORED, (n_out, 64, 1024), 1)[0] for _ in range(9))
        for n_out in (256, 2048)
    )
    assert 0.3 < long / short < 3


@pytest.mark.parametrize("shape", [(64, 40, 100), (0, 40, 256), (64, -1, 256)])
def test_a_bad_shape(shape):
    with pytest.raises(ValueError, match="--shape: expected positive numbers"):
        kernels.bench_kernels(shape, 1)
    assert kernels.measure(TYPES["q4_1"], kernels.STORED, (64, 40, 100), 1) is None


def test_an_unknown_type():
    with pytest.raises(ValueError, match="--types: expected names among f32, .*, got 'q9'"):
        kernels.bench_kernels(SMALL, 1, ["q9"])


def test_the_command(capsys):
    arguments = ["bench", "kernels", "--shape", "64x40x256", "--types", "q4_1", "f16"]
    assert main([*arguments, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["rule"] == kernels.rule() and {row["type"] for row in printed["kernels"]} == {"q4_1", "f16"}
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (
        lines[0].split() == ["type", "held", "GF/s", "pack", "ns", "auto"]
        and lines[-1] == f"auto here: {kernels.rule()}"
    )


def test_a_shape_that_is_none(capsys):
    assert main(["bench", "kernels", "--shape", "64x40"]) != 0
    assert "--shape: expected OUTPUTSxTOKENSxINPUTS" in capsys.readouterr().err


def test_doctor_names_the_rule(capsys):
    main(["doctor"])
    assert kernels.rule() in capsys.readouterr().out


def test_doctor_says_why_a_model_is_not_pruned(tiny_model, capsys):
    main(["doctor", "-m", str(tiny_model("mamba"))])
    assert "answered from the full cache: the model is recurrent" in capsys.readouterr().out
