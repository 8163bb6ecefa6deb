"""f32.expanded(): the same model with its weights in F32, made once."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from asl_gguf.errors import ModelError
from asl_gguf.models.f32 import expanded
from harness import Model, prompt

F32 = gguf.GGMLQuantizationType.F32


def metadata(reader: gguf.GGUFReader) -> dict[str, tuple]:
    """Value and types of every key, but for those the writer makes and the file type."""
    return {
        name: (field.contents(), field.types)
        for name, field in reader.fields.items()
        if not name.startswith("GGUF.") and name != gguf.Keys.General.FILE_TYPE
    }


@pytest.mark.parametrize(
    "architecture, weight_type",
    [("llama", "Q4_1"), ("llama", "Q8_0"), ("phi3", "F16"), ("llama-moe", "Q4_1"), ("qwen3", "F32")],
)
def test_tensors_and_metadata(tiny_model, cache, architecture, weight_type):
    source = tiny_model(architecture, weight_type=weight_type)
    target = expanded(source)
    assert target.parent == cache and target.stem.startswith(f"{source.stem}-f32-")
    stored, found = gguf.GGUFReader(source), gguf.GGUFReader(target)
    assert [tensor.name for tensor in found.tensors] == [tensor.name for tensor in stored.tensors]
    for tensor, original in zip(found.tensors, stored.tensors):
        values = gguf.quants.dequantize(original.data, original.tensor_type)
        assert tensor.tensor_type == F32 and tensor.shape.tolist() == original.shape.tolist()
        assert np.array_equal(tensor.data, values), tensor.name
    assert metadata(found) == metadata(stored)
    assert found.get_field(gguf.Keys.General.FILE_TYPE).contents() == gguf.LlamaFileType.ALL_F32


def test_llama_cpp_loads_it(tiny_model, cache):
    """Its logits are those of the quantised model but for the products' rounding."""
    logits = []
    for path in (tiny_model("llama", weight_type="Q8_0"), expanded(tiny_model("llama", weight_type="Q8_0"))):
        model = Model(path)
        with model.context() as context:
            logits.append(context.prefill(prompt(60)))
        model.close()
    difference = np.abs(logits[0] - logits[1]).max()
    assert 0 < difference < 0.5, difference


def test_it_is_made_once(tiny_model, cache, tmp_path):
    """And again for another file under the same name. Nothing else is left in the cache."""
    source = tmp_path / "model.gguf"
    source.write_bytes(tiny_model("llama", n_layer=1, weight_type="Q4_1").read_bytes())
    first = expanded(source)
    made = first.stat()
    assert expanded(str(source)) == first and first.stat() == made
    assert list(cache.iterdir()) == [first]
    source.write_bytes(tiny_model("llama", n_layer=2, weight_type="Q4_1").read_bytes())
    second = expanded(source)
    assert second != first and sorted(cache.iterdir()) == sorted([first, second])


@pytest.mark.parametrize("n_bytes", [0, 4, 1000, 300_000])
def test_a_file_that_was_cut(tiny_model, cache, tmp_path, n_bytes):
    source = tmp_path / "model.gguf"
    source.write_bytes(tiny_model("llama", weight_type="Q4_1").read_bytes()[:n_bytes])
    with pytest.raises(ModelError, match=r"expected a GGUF model that the gguf package can .*, got .*model\.gguf"):
        expanded(source)
    assert not list(cache.iterdir())


def test_a_file_that_is_no_model(cache, tmp_path):
    source = tmp_path / "model.gguf"
    source.write_bytes(b"no GGUF at all")
    with pytest.raises(ModelError, match=r"expected a GGUF model .*, got .*model\.gguf: GGUF magic invalid"):
        expanded(source)
    assert not list(cache.iterdir())
