"""1,000 damaged or forged prompt files: each is a StateError, or answers as the file that was saved."""

from __future__ import annotations

import io
import json
import random
import zipfile
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asl_gguf import Llama, StateError
from asl_gguf.policies import ASL
from prompt_files import parts_of, rewritten, sealed
from tiny_llama import DOCUMENT, QUESTIONS, greedy

N_BYTES, N_SEALED, N_PARTS = 400, 300, 300
OPTIONS = {"asl_budget": 0.4, "asl_min_prompt": 80, "asl_policy": ASL(min_layer=2, obs_layers=2, tau=2)}
TURN = DOCUMENT + QUESTIONS[0]


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Bytes that are flipped, cut out, doubled, moved or put in place of others."""
    at, n = rng.randrange(len(data)), rng.choice((1, 1, 2, 8, 64, 4096))
    kind = rng.choice(("flip", "cut", "double", "end", "random", "swap", "name"))
    if kind == "flip":
        return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    if kind == "cut":
        return data[:at] + data[at + n :]
    if kind == "double":
        return data[: at + n] + data[at:]
    if kind == "end":
        return data[:at]
    if kind == "random":
        return data[:at] + rng.randbytes(n) + data[at + n :]
    if kind == "swap":
        other = rng.randrange(len(data))
        low, high = sorted((at, other))
        return data[:low] + data[high : high + n] + data[low + n : high] + data[low : low + n] + data[high + n :]
    name = rng.choice((b"tokens", b"cells", b"logits", b"about", b"first_cells", b"hidden", b"full_0"))
    return data.replace(name, name[:-1] + b"x", rng.choice((1, 2)))


def forged(parts: dict[str, np.ndarray], rng: random.Random) -> bytes:
    """A part of another type, shape or value, or other values in its JSON; whether it is right elsewhere or not."""
    parts, name = dict(parts), rng.choice(list(parts))
    part = parts[name]
    if name == "about":
        about: dict[str, Any] = json.loads(part.tobytes())
        values = (None, True, -1, 0, 7, 2**31, 2**70, 0.5, "x", [], {}, [[]] * 9, {"a": {}}, float("nan"))
        key = rng.choice([*about, "other"])
        about[key] = rng.choice(values)
        if key in ("sampled", "n_pruned") and about[key] in (0, 7):
            about[key] = -7  # 0 and 7 are values that another prompt may have: no check can tell
        parts[name] = np.frombuffer(json.dumps(about).encode(), np.uint8)
        return rewritten(parts)
    kind = rng.choice(("type", "shape", "short", "long", "gone", "renamed", "empty", "values"))
    types = (
        np.uint8,
        np.int8,
        np.int32,
        np.int64,
        np.float16,
        np.float32,
        np.float64,
        np.complex64,
        np.bool_,
        "S3",
        "U2",
    )
    if kind == "type":
        parts[name] = part.astype(rng.choice(types))
    elif kind == "shape":
        parts[name] = rng.choice((part[None], part.reshape(-1, 1), np.array(3, part.dtype), part[..., None]))
    elif kind == "short":
        parts[name] = part[: rng.randrange(max(1, len(part)))]
    elif kind == "long":
        parts[name] = np.concatenate([part, part[:1]])
    elif kind == "gone":
        del parts[name]
    elif kind == "renamed":
        parts[rng.choice(("x", "full_9", "full_x", "hidden", "more.npy"))] = parts.pop(name)
    elif kind == "empty":
        parts[name] = np.empty(0, part.dtype)
    elif (
        name not in ("cells", "logits", "hidden") and not name.startswith("full_") and part.size
    ):  # those have no wrong values
        low = rng.choice((-1, 10**6, -(2**31)))
        parts[name] = np.where(np.arange(part.size) == rng.randrange(part.size), low, part).astype(part.dtype)
    return rewritten(parts)


def members(data: bytes, rng: random.Random) -> bytes:
    """An archive with the right digest whose members are no arrays, or arrays that say of themselves what is not true."""
    file, kept = io.BytesIO(), zipfile.ZipFile(io.BytesIO(data))
    victim = rng.choice(kept.namelist())
    with zipfile.ZipFile(file, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for name in kept.namelist():
            content = kept.read(name)
            if name == victim:
                head = content.index(b"\n") if b"\n" in content[:400] else 100
                content = damaged(content[:head], rng) + content[head:]
            archive.writestr(name, content)
    return sealed(file.getvalue())


@pytest.mark.parametrize("full_kv", [False, True])
def test_a_thousand_files(tiny_model, tmp_path: Path, full_kv):
    rng, path = random.Random(7 + full_kv), tmp_path / "prompt"
    with closing(
        Llama(str(tiny_model("llama")), n_ctx=1024, n_threads=1, n_threads_batch=1, asl_full_kv=full_kv, **OPTIONS)
    ) as llm:
        llm.prefill(DOCUMENT)
        llm.save_prompt(path)
        data, expected = path.read_bytes(), greedy(llm, TURN, 4)
        parts = parts_of(data)
        made = [lambda: damaged(data, rng)] * N_BYTES + [lambda: forged(parts, rng)] * N_SEALED
        made += [lambda: members(data, rng)] * N_PARTS
        n_refused = 0
        for make in made[full_kv::2]:
            path.write_bytes(make())
            try:
                tokens = llm.load_prompt(path)
            except StateError:
                n_refused += 1
                continue
            # a member that is compressed otherwise, a float that was 0 anyway: the prompt is what was saved
            assert tokens == DOCUMENT and greedy(llm, TURN, 4) == expected
        assert n_refused > 0.8 * len(made) / 2
        path.write_bytes(data)
        assert llm.load_prompt(path) == DOCUMENT and greedy(llm, TURN, 4) == expected
