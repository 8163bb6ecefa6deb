"""Weights that llama.cpp brought into the form of its own kernels: they are packed as if they were stored."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from asl_gguf.bench.kernels import REPACKED, measure, packed_kernel, repacked_form, type_names
from asl_gguf.engine.prefill import prefill
from asl_gguf.native.bindings import lib
from asl_gguf.policies import make_policy
from harness import Model, prompt
from twins import repacked
from weights import draw, floats, product

FORMS = {
    "q4_0": [(8, 8), (4, 8), (4, 4)],
    "q8_0": [(4, 8), (4, 4)],
    "iq4_nl": [(8, 8), (4, 4)],
    "mxfp4": [(8, 8), (4, 4)],
    "q2_K": [(8, 8)],
    **{name: [(8, 8), (8, 4)] for name in ("q4_K", "q5_K", "q6_K")},
}
"""rows that llama.cpp interleaves, and bytes of a row together, on x86 and ARM"""


@pytest.mark.parametrize(("name", "form"), [(name, form) for name, forms in FORMS.items() for form in forms])
def test_weights_that_llama_cpp_repacked(name, form):
    """They are packed to the bytes of the stored ones: products have the same bits."""
    for n_out, n_in in ((8, 256), (16, 512), (40, 768)):
        weights, x = draw(n_out, name, 3, n_out, n_in)
        expected = product("scalar", name, weights, x, 16)
        assert np.array_equal(product("scalar", name, repacked(name, weights, *form), x, 16, form), expected)
        assert not np.array_equal(product("scalar", name, weights, x, 16, form), expected)


@pytest.mark.parametrize("form", [(8, 2), (16, 1), (3, 8), (-8, 8), (8, -8), (0, 8)])
def test_forms_that_are_not_known(form):
    weights, x = draw(0, "q4_0", 1, 48, 64)
    arguments = (weights.ctypes.data, *form, 48, 64, 8, floats(x), 1, floats(np.empty(48, np.float32)))
    assert lib.packed_product(b"scalar", type_names()["q4_0"], *arguments) == (form[0] == 0)


def test_rows_that_are_no_whole_group():
    weights, x = draw(0, "q4_0", 1, 12, 64)
    arguments = (weights.ctypes.data, 8, 8, 12, 64, 8, floats(x), 1, floats(np.empty(12, np.float32)))
    assert not lib.packed_product(b"scalar", type_names()["q4_0"], *arguments)


@pytest.mark.parametrize("name", type_names())
def test_what_llama_cpp_repacks_here_is_known(name):
    """Found by trial: weights that it repacks must come back."""
    form = repacked_form(type_names()[name])
    measured = measure(type_names()[name], REPACKED, (64, 4, 256), 1)
    assert (form is not None) == (measured is not None and measured[1] == "CPU_REPACK")
    assert form is None or form in FORMS[name]


def cells(path: Path, repack: bool, mode: str) -> np.ndarray:
    with closing(Model(path, repack=repack)) as model, model.context() as ours:
        session = ours.session()
        session.set_dequant(mode)
        report = prefill(session, prompt(110), make_policy("none"), 110)
        assert report.n_dequantised == 7 * model.n_layer - 3  # the last FFN has one token
        return np.concatenate([np.ravel(rows) for rows in (*ours.cells().keys, *ours.cells().values)])


@pytest.mark.skipif(packed_kernel() == "scalar", reason="this processor has no kernel beside the scalar one")
@pytest.mark.parametrize("mix", ["q4_k", "q4_k_m"])
def test_a_prefill_of_repacked_weights(script, tmp_path, mix):
    """The same K/V, bit for bit, whether llama.cpp has repacked the weights or not."""
    script.write_model(str(tmp_path / "k.gguf"), script.SHAPES["tiny"], mix)
    for mode in ("int8", "int16"):
        assert np.array_equal(*(cells(tmp_path / "k.gguf", repack, mode) for repack in (False, True)))
