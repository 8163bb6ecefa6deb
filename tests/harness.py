"""llama.cpp at its lowest level for tests: a model, its contexts, and how stock llama.cpp runs them.

Import this, or asl_gguf, before llama_cpp. llama.cpp's log is silent from then on.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from asl_gguf.native.bindings import llama_cpp
from asl_gguf.native.session import Session

F32, F16, Q8_0 = 0, 1, 8  # ggml_type
KV_NAMES = {F32: "f32", F16: "f16", Q8_0: "q8_0"}
_QUANTISED = (Q8_0,)

_STATE_SEQ = 0

_silent = llama_cpp.llama_log_callback(lambda *_: None)  # llama.cpp holds no reference: this module does
llama_cpp.llama_backend_init()
llama_cpp.llama_log_set(_silent, None)


@dataclass(frozen=True)
class Options:
    """What a context is created with. One thread: two would wait for each other on a busy machine."""

    n_ctx: int = 512
    n_batch: int = 64
    n_ubatch: int = 64
    flash: bool = False
    kv: int = F16
    """type of K, and of V unless V would need flash attention"""
    n_seq_max: int = 1
    unified: bool = False
    swa_full: bool = True
    """cells for all tokens in layers with a sliding window"""

    def to_params(self) -> llama_cpp.llama_context_params:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = self.n_ctx
        params.n_batch = self.n_batch
        params.n_ubatch = self.n_ubatch
        params.n_threads = params.n_threads_batch = 1
        params.flash_attn_type = int(self.flash)
        params.type_k = self.kv
        params.type_v = F16 if self.kv in _QUANTISED and not self.flash else self.kv
        params.n_seq_max = self.n_seq_max
        params.kv_unified = self.unified
        params.swa_full = self.swa_full
        return params


class Context:
    """A llama_context, decoded as llama.cpp's own programs do, and sessions over it."""

    def __init__(self, model: Model, options: Options) -> None:
        self.model = model
        self.options = options
        self.params = options.to_params()
        self.handle = llama_cpp.llama_init_from_model(model.handle, self.params)
        assert self.handle, options
        self._sessions: list[Session] = []

    def __enter__(self) -> Context:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Frees the sessions, then the context."""
        for session in self._sessions:
            session.close()
        if self.handle:
            llama_cpp.llama_free(self.handle)
            self.handle = None

    def session(self, n_ctx: int | None = None) -> Session:
        """A session over this context; closed with it."""
        session = Session(self.handle, self.params, n_ctx or self.options.n_ctx)
        self._sessions.append(session)
        return session

    @property
    def memory(self) -> int:
        """The context's `llama_memory_t`."""
        return llama_cpp.llama_get_memory(self.handle)

    def clear(self) -> None:
        llama_cpp.llama_memory_clear(self.memory, True)

    def decode(self, tokens: Sequence[int]) -> np.ndarray:
        """Decodes tokens after those in the cache, n_batch at a time; returns the last one's logits."""
        for begin in range(0, len(tokens), self.options.n_batch):
            part = tokens[begin : begin + self.options.n_batch]
            ids = (ctypes.c_int32 * len(part))(*part)
            status = llama_cpp.llama_decode(self.handle, llama_cpp.llama_batch_get_one(ids, len(part)))
            assert status == 0, status
        return self.logits()

    def prefill(self, tokens: Sequence[int]) -> np.ndarray:
        """Stock prefill of a prompt in an empty cache; returns the last token's logits."""
        self.clear()
        return self.decode(tokens)

    def logits(self, row: int = -1) -> np.ndarray:
        """float32 [n_vocab], a copy."""
        values = llama_cpp.llama_get_logits_ith(self.handle, row)
        return np.ctypeslib.as_array(values, shape=(self.model.n_vocab,)).copy()

    def continuation(self, tokens: Sequence[int]) -> list[np.ndarray]:
        """Logits of the prompt's last token and after each of `tokens`, decoded one at a time."""
        return [self.logits(), *(self.decode([token]) for token in tokens)]

    def greedy(self, n_tokens: int) -> list[int]:
        """Decodes the likeliest token n_tokens times; returns the tokens."""
        result = []
        for _ in range(n_tokens):
            result.append(int(self.logits().argmax()))
            self.decode(result[-1:])
        return result

    def get_state(self) -> bytes:
        """What llama.cpp saves of sequence 0."""
        size = llama_cpp.llama_state_seq_get_size(self.handle, _STATE_SEQ)
        buffer = (ctypes.c_uint8 * size)()
        assert llama_cpp.llama_state_seq_get_data(self.handle, buffer, size, _STATE_SEQ) == size
        return bytes(buffer)

    def set_state(self, state: bytes) -> None:
        buffer = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
        assert llama_cpp.llama_state_seq_set_data(self.handle, buffer, len(state), _STATE_SEQ) == len(state)

    def cells(self) -> KVState:
        """The cells of sequence 0."""
        return KVState.parse(self.get_state(), self.model.n_head_kv)


class Model:
    """A llama_model.

    Args:
        repack: let llama.cpp bring weights into the form of a kernel (AMX, repacked): those are never expanded.
        n_gpu_layers: the last ones, on a device that is not the CPU; 0: no such device takes part.
    """

    def __init__(self, path: Path, repack: bool = True, n_gpu_layers: int = 0) -> None:
        params = llama_cpp.llama_model_default_params()
        params.use_extra_bufts = repack
        params.n_gpu_layers = n_gpu_layers
        if n_gpu_layers == 0:
            self._no_devices = (ctypes.c_void_p * 1)(None)
            params.devices = ctypes.addressof(self._no_devices)
        self.handle = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        assert self.handle, path
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.handle))
        self.n_layer = llama_cpp.llama_model_n_layer(self.handle)
        self.n_head = llama_cpp.llama_model_n_head(self.handle)
        self.n_head_kv = llama_cpp.llama_model_n_head_kv(self.handle)

    def context(self, options: Options = Options()) -> Context:
        return Context(self, options)

    def close(self) -> None:
        if self.handle:
            llama_cpp.llama_model_free(self.handle)
            self.handle = None


@dataclass(frozen=True)
class KVState:
    """The KV cells of one sequence, as llama_state_seq_get_data writes them."""

    positions: list[int]
    keys: list[np.ndarray]
    """per layer: uint8 [n_cells, n_head_kv, bytes of one head]"""
    values: list[np.ndarray]
    """the same for V, put in order where the cache holds it transposed"""

    @classmethod
    def parse(cls, state: bytes, n_head_kv: int) -> KVState:
        """Reads llama_context::state_seq_get_data followed by llama_kv_cache::state_write."""
        reader = _Reader(state)
        reader.number("u4")  # magic
        assert reader.number("i4") == _STATE_SEQ
        assert reader.number("u4") == 1  # streams
        n_cells = reader.number("u4")
        positions = []
        for _ in range(n_cells):
            positions.append(reader.number("i4"))
            for _ in range(reader.number("u4")):
                reader.number("i4")  # sequence
        transposed, n_layer = reader.number("u4"), reader.number("u4")
        keys = [reader.rows(n_cells) for _ in range(n_layer)]
        values = [reader.channels(n_cells) if transposed else reader.rows(n_cells) for _ in range(n_layer)]
        reader.end()
        keys, values = ([rows.reshape(n_cells, n_head_kv, -1) for rows in layers] for layers in (keys, values))
        return cls(positions, keys, values)


class _Reader:
    """Takes values off a byte string from its beginning."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, n_bytes: int) -> np.ndarray:
        assert self._at + n_bytes <= len(self._data)
        self._at += n_bytes
        return np.frombuffer(self._data, np.uint8, n_bytes, self._at - n_bytes)

    def number(self, kind: str) -> int:
        return int(self.take(int(kind[1:])).view(f"<{kind}")[0])

    def rows(self, n_cells: int) -> np.ndarray:
        """uint8 [n_cells, bytes of a row], stored as such."""
        self.number("i4")  # type
        n_bytes = self.number("u8")
        return self.take(n_cells * n_bytes).reshape(n_cells, n_bytes)

    def channels(self, n_cells: int) -> np.ndarray:
        """uint8 [n_cells, bytes of a row], stored as [n_channels, n_cells]."""
        self.number("i4")  # type
        n_bytes, n_channels = self.number("u4"), self.number("u4")
        stored = self.take(n_channels * n_cells * n_bytes).reshape(n_channels, n_cells, n_bytes)
        return stored.transpose(1, 0, 2).reshape(n_cells, n_channels * n_bytes)

    def end(self) -> None:
        assert self._at == len(self._data)


def prompt(n_tokens: int, seed: int = 0) -> list[int]:
    """Random token ids of a tiny model, none of them special."""
    rng = np.random.default_rng([seed, n_tokens])
    return rng.integers(3, 259, n_tokens).tolist()


def assert_same(actual: Sequence[np.ndarray], expected: Sequence[np.ndarray], what: object = "") -> None:
    """Fails, with the largest difference, unless two lists of logits are equal bit for bit."""
    assert len(actual) == len(expected)
    for step, (a, b) in enumerate(zip(actual, expected, strict=True)):
        assert np.isfinite(b).all()
        assert np.array_equal(a, b), f"{what}: logits {step} differ by up to {np.abs(a - b).max()}"
