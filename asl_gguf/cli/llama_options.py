"""Options of llama.cpp's own programs that work here as they do there, and what is said of those that do not."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

from ..errors import OptionError, shown
from .streams import warn

_FLASH = {
    "on": "on",
    "1": "on",
    "true": "on",
    "enabled": "on",
    "off": "off",
    "0": "off",
    "false": "off",
    "disabled": "off",
}
_ASKED_FOR = """--jinja --no-display-prompt --no-warmup --simple-io --no-perf --log-disable --no-context-shift --no-show-timings
--no-log-jsonl --no-log-prefix --no-log-timestamps --no-mmproj --no-mmproj-auto --repack"""
"""flags that ask for what is done in any case"""
_NO_AFFINITY = "taskset -c chooses cores, nice their priority"
_NO_LOG = "llama.cpp's log is silent here"
_IDLE: dict[str, tuple[int | str, str]] = {
    "--warmup": (0, "a model's first run is its first prompt"),
    "--display-prompt": (0, "answers are printed alone"),
    "--verbose-prompt": (0, "--report says what was kept of a prompt"),
    "--perf": (0, "--report says how long it took"),
    "--show-timings": (0, "--report says how long it took"),
    "--check-tensors": (0, "tensors are taken as they are in the file"),
    **dict.fromkeys(("--log-prefix", "--log-timestamps", "--log-jsonl"), (0, _NO_LOG)),
    "--log-colors": ("?", _NO_LOG),
    **dict.fromkeys(("--log-file", "--log-prompts-dir"), (1, _NO_LOG)),
    **dict.fromkeys(
        ("-C --cpu-mask", "-Cr --cpu-range", "-Cb --cpu-mask-batch", "-Crb --cpu-range-batch", "--cpu-strict", "--prio", "--poll",
         "--cpu-strict-batch", "--prio-batch", "--poll-batch"), (1, _NO_AFFINITY),
    ),
}  # fmt: skip
"""options that change no answer and do nothing here -> their number of values, and what there is to say"""
_LOAD_MODES: dict[str, dict[str, bool]] = {
    "auto": {},
    "mmap": {},
    "none": {"use_mmap": False},
    "mlock": {"use_mlock": True, "use_mmap": False},
    "mmap+mlock": {"use_mlock": True},
}
_YARN = {
    "ext-factor": "mix of interpolation and extrapolation",
    "attn-factor": "factor of attention",
    "beta-slow": "low correction dimension",
    "beta-fast": "high correction dimension",
}
_NUMA = {"distribute": 1, "isolate": 2, "numactl": 3}
_SPLIT = {"none": 0, "layer": 1, "row": 2}
_ROPE = {"none": 0, "linear": 1, "yarn": 2}


def flash(text: str) -> str:
    """`on` or `off`, from what llama.cpp takes; `auto` is off, which is this package's choice."""
    if text.lower() in ("auto", "-1"):
        return "off"
    try:
        return _FLASH[text.lower()]
    except KeyError:
        raise argparse.ArgumentTypeError(f"expected on, off or auto, got {text!r}") from None


def shares(text: str) -> list[float]:
    """Of a model's layers, for each device: `3,1`."""
    return [float(part) for part in text.replace("/", ",").split(",")]


shares.__name__ = "list of numbers with commas"  # what argparse calls it


def n_threads(text: str) -> int:
    """A number of threads; -1 and 0 are all cores that this process may use, as in llama.cpp."""
    number = int(text)
    if number > 0:
        return number
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


n_threads.__name__ = "whole number"


class _Idle(argparse.Action):
    """Warns that an option does nothing here."""

    def __init__(self, *args: Any, why: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._why = why

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        warn(f"{option_string}: without effect, {self._why}")


def add_escape_options(add: Callable[..., Any]) -> None:
    """-e and --no-escape."""
    add("-e", "--escape", action="store_true", default=True, help=argparse.SUPPRESS)
    add(
        "--no-escape", action="store_false", dest="escape",
        help=r"a backslash in -p, -q and -r is one (default: \n is a line break, \t a tab, \\ a backslash, as in llama.cpp)",
    )  # fmt: skip


def add_loading_options(parser: argparse.ArgumentParser) -> None:
    """How a model is loaded: batches, memory, rope, adapters, devices."""
    group = parser.add_argument_group("options of llama.cpp's programs")
    add = group.add_argument
    add("-tb", "--threads-batch", type=n_threads, metavar="N", help="threads for prompts (default: as --threads)")
    add("--batch-size", type=int, dest="n_batch", metavar="N", help="tokens of a batch; -b is the budget here")
    add("--mlock", action="store_true", help="keep the model's file in memory")
    add("--no-mmap", action="store_true", help="read the model's file in place of mapping it")
    add("--mmap", action="store_false", dest="no_mmap", help=argparse.SUPPRESS)
    add("--rope-freq-base", type=float, metavar="N", help="base frequency of rotary positions (default: the model's)")
    add("--rope-freq-scale", type=float, metavar="N", help="their frequency's factor (default: the model's)")
    add("--rope-scale", type=float, metavar="N", help="the context's factor: --rope-freq-scale 1/N")
    add("--rope-scaling", choices=_ROPE, help="how positions are stretched (default: the model's)")
    add("--yarn-orig-ctx", type=int, metavar="N", help="YaRN: the context that the model was trained on")
    for name, what in _YARN.items():
        add(f"--yarn-{name}", type=float, metavar="N", help=f"YaRN: {what}")
    add("--lora", action="append", metavar="FILE", help="a LoRA adapter")
    add("--lora-scaled", action="append", metavar="FILE:SCALE", help="one at another strength")
    add("-mg", "--main-gpu", type=int, metavar="N", help="the GPU for what is not split")
    add("-ts", "--tensor-split", type=shares, metavar="N,N", help="shares of the model for each GPU")
    add("-lm", "--load-mode", choices=_LOAD_MODES, help="the two above, as llama.cpp's programs name them")
    add("--numa", choices=_NUMA, help="how threads lie on machines with several memories")
    add("-nkvo", "--no-kv-offload", action="store_true", help="K/V stay in host memory where layers are on a GPU")
    add("-kvo", "--kv-offload", action="store_false", dest="no_kv_offload", help=argparse.SUPPRESS)
    add("--no-op-offload", action="store_true", help="products of weights in host memory stay on the CPU")
    add("--op-offload", action="store_false", dest="no_op_offload", help=argparse.SUPPRESS)
    add("-sm", "--split-mode", choices=_SPLIT, help="what GPUs share: none, layer (default) or row")
    add("--swa-full", action="store_true", help="layers with a sliding window keep K/V of the whole context")
    add(
        "--override-kv",
        action="append",
        metavar="KEY=TYPE:VALUE",
        help="metadata of the model: int, float, bool or str",
    )
    add_escape_options(add)
    for name in _ASKED_FOR.split():
        add(name, action="store_true", help=argparse.SUPPRESS)
    for names, (n_values, why) in _IDLE.items():
        nargs = None if n_values == 1 else n_values
        add(*names.split(), action=_Idle, nargs=nargs, why=why, help=argparse.SUPPRESS)
    add("-co", "--color", nargs="?", choices=("on", "off", "auto"), const="on", help=argparse.SUPPRESS)


def loading_kwargs(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of `Llama` from them: those that were given. A warning for colours, which nothing has.

    Raises:
        OptionError: there are several adapters, or one option says what another does.
    """
    if getattr(args, "color", None) == "on":
        warn("--color: without effect, nothing is coloured here")

    def given(name: str) -> Any:
        return getattr(args, name, None)

    names = ("n_batch", "rope_freq_base", "rope_freq_scale", "main_gpu", "tensor_split", "yarn_orig_ctx")
    values = {
        **{name: given(name) for name in (*names, *(f"yarn_{one.replace('-', '_')}" for one in _YARN))},
        "n_threads_batch": given("threads_batch"),
        "use_mlock": given("mlock") or None,
        "use_mmap": False if given("no_mmap") else None,
        "rope_scaling_type": _ROPE.get(given("rope_scaling")),
        "split_mode": _SPLIT.get(given("split_mode")),
        "numa": _NUMA.get(given("numa")),
        "offload_kqv": False if given("no_kv_offload") else None,
        "op_offload": False if given("no_op_offload") else None,
        "swa_full": given("swa_full") or None,
        "kv_overrides": dict(_override(text) for text in given("override_kv") or []) or None,
        **_LOAD_MODES.get(given("load_mode"), {}),
        **_adapter(given("lora") or [], given("lora_scaled") or []),
    }
    if (factor := given("rope_scale")) is not None:
        if values["rope_freq_scale"] is not None:
            raise OptionError("--rope-scale: expected no --rope-freq-scale beside it, got both; they say the same")
        values["rope_freq_scale"] = 1 / factor
    return {name: value for name, value in values.items() if value is not None}


def _adapter(plain: list[str], scaled: list[str]) -> dict[str, Any]:
    if len(plain) + len(scaled) > 1:
        raise OptionError(
            f"--lora: expected one adapter, got {len(plain) + len(scaled)}: {', '.join([*plain, *scaled])}; merge them into one"
        )
    if not scaled:
        return {"lora_path": plain[0]} if plain else {}
    path, colon, scale = scaled[0].rpartition(":")
    try:
        if not colon:
            raise ValueError
        return {"lora_path": path, "lora_scale": float(scale)}
    except ValueError:
        raise OptionError(
            f"--lora-scaled: expected FILE:SCALE such as adapter.gguf:0.5, got {shown(scaled[0])}"
        ) from None


def _override(text: str) -> tuple[str, bool | int | float | str]:
    """A key of the model's metadata, and its value."""
    key, _, typed = text.partition("=")
    kind, colon, value = typed.partition(":")
    read: dict[str, Callable[[str], Any]] = {
        "int": int, "float": float, "str": str, "bool": {"true": True, "false": False}.__getitem__
    }  # fmt: skip
    try:
        if not (key and colon):
            raise ValueError
        return key, read[kind](value)
    except (KeyError, ValueError):
        raise OptionError(
            f"--override-kv: expected KEY=TYPE:VALUE such as tokenizer.ggml.add_bos_token=bool:false, TYPE being int, float, "
            f"bool or str, got {shown(text)}"
        ) from None
