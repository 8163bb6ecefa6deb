"""A model file in several parts, as llama.cpp's gguf-split and convert_hf_to_gguf.py write them."""

from __future__ import annotations

from pathlib import Path

import gguf


def split(source: Path, folder: Path, n_tensors: int, *, small_first: bool = False, name: str = "tiny") -> list[Path]:
    """Parts of n_tensors tensors each.

    Args:
        small_first: the first one holds metadata alone.
    """
    reader = gguf.GGUFReader(source)
    architecture = reader.get_field(gguf.Keys.General.ARCHITECTURE).contents()
    writer = gguf.GGUFWriter(
        folder / f"{name}.gguf", architecture, split_max_tensors=n_tensors, small_first_shard=small_first
    )
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != gguf.Keys.General.ARCHITECTURE:
            sub_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=sub_type)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(folder.glob(f"{name}-*-of-*.gguf"))
