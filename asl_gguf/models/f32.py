"""A copy of a GGUF model with every weight expanded to F32: what a reference implementation in F32 computes with."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np

from ..errors import ModelError
from .files import replacing
from .named import cache_dir
from .parts import parts_of

_F32 = int(gguf.LlamaFileType.ALL_F32)


def expanded(path: str | os.PathLike) -> Path:
    """The F32 copy of a model, made when it is first asked for and kept in the cache directory.

    Raises:
        ModelError: gguf cannot read the file, or has no dequantisation for one of its types.
    """
    parts = parts_of(Path(path))
    source, stats = parts[0], [part.stat() for part in parts]
    n_bytes, newest = sum(stat.st_size for stat in stats), max(stat.st_mtime_ns for stat in stats)
    target = cache_dir() / f"{source.stem}-f32-{n_bytes:x}-{newest:x}.gguf"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(target) as file:
            _write(parts, Path(file.name))
    except (ValueError, NotImplementedError, IndexError, KeyError) as err:
        raise ModelError(f"expected a GGUF model that the gguf package can dequantise, got {source}: {err}") from err
    return target


def _write(parts: Sequence[Path], target: Path) -> None:
    readers = [gguf.GGUFReader(part) for part in parts]
    reader, tensors = readers[0], [tensor for reader in readers for tensor in reader.tensors]
    architecture = reader.get_field(gguf.Keys.General.ARCHITECTURE)
    if architecture is None:
        raise ValueError("it names no architecture")
    writer = gguf.GGUFWriter(target, architecture.contents())
    for field in reader.fields.values():
        # the writer makes these itself
        if field.name.startswith(("GGUF.", "split.")) or field.name == gguf.Keys.General.ARCHITECTURE:
            continue
        sub_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        value = _F32 if field.name == gguf.Keys.General.FILE_TYPE else field.contents()
        writer.add_key_value(field.name, value, field.types[0], sub_type=sub_type)
    for tensor in tensors:
        writer.add_tensor_info(
            tensor.name, [int(n) for n in reversed(tensor.shape)], np.dtype(np.float32), int(tensor.n_elements) * 4
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:  # one at a time: the model may be larger than the memory
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        writer.write_tensor_data(np.ascontiguousarray(values))
    writer.close()
