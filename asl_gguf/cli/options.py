"""Command-line options that several commands share. Those that llama.cpp has are called and work as they do there."""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path
from typing import Any

from ..cache.packing import KINDS
from ..errors import OptionError, shown
from ..policies import DEFAULT
from ..policies.protect import ROLES
from .answers import ENDLESS, flag_of
from .budgets import add_budget_option, budget_help
from .documents import read_plain
from .llama_options import add_loading_options, flash, loading_kwargs, n_threads
from .source import require_utf8
from .streams import warn

DEQUANT = ("auto", "off", "all", "int8", "int16")
"""values of asl_dequant"""

DEFAULT_MODEL = "smollm2-135m-instruct"
KV_TYPES = {
    "f32": 0, "f16": 1, "bf16": 30, "q8_0": 8, "q4_0": 2, "q4_1": 3, "iq4_nl": 20, "q5_0": 6, "q5_1": 7
}  # fmt: skip
"""the cache types of llama.cpp's own programs -> ggml_type"""
_PLAIN = ("f32", "f16", "bf16")
_COUNTS = (
    "n_ubatch", "decode_ctx", "max_tokens", "tokens", "runs", "decode", "turns", "turn_tokens", "samples", "step",
    "n_batch",
)  # fmt: skip
_LARGEST = 2**31 - 1
_RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(_COUNTS, (1, _LARGEST)), "n_ctx": (0, _LARGEST), "threads": (1, 512), "threads_batch": (1, 512),
    "gpu_layers": (-1, _LARGEST), "main_gpu": (0, _LARGEST), "rope_freq_base": (0.0, math.inf),
    "rope_freq_scale": (0.0, math.inf), "typical_p": (0.0, 1.0), **dict.fromkeys(("mirostat_eta", "mirostat_tau"), (0.0, math.inf)),
    "seed": (-1, 2**32 - 1), "demo_seed": (0, 2**32 - 1), "top_k": (0, _LARGEST),
    "repeat_last_n": (0, _LARGEST), "dry_multiplier": (0.0, math.inf), "dry_base": (0.0, math.inf),
    "dry_allowed_length": (0, _LARGEST), "dry_penalty_last_n": (0, _LARGEST), "top_nsigma": (-1.0, math.inf),
    "xtc_probability": (0.0, 1.0), "xtc_threshold": (0.0, 1.0), "dynatemp_range": (0.0, math.inf),
    "dynatemp_exp": (0.0, math.inf), "rope_scale": (1e-9, math.inf), "yarn_orig_ctx": (0, _LARGEST),
    "temp": (0.0, math.inf), "top_p": (0.0, 1.0), "min_p": (0.0, 1.0), "repeat_penalty": (1e-9, 1e9),
}  # fmt: skip
"""least and largest value"""


def check_numbers(args: argparse.Namespace) -> None:
    """Raises OptionError for a number of tokens, cells, threads or runs below 1, and for others outside their range."""
    for name, (least, most) in _RANGES.items():
        value = getattr(args, name, None)
        if name == "max_tokens" and value == ENDLESS and args.command in ("run", "chat"):
            continue
        if isinstance(value, (int, float)) and not (least <= value <= most and value < math.inf):
            if isinstance(value, int):
                expected = f"at least {least}" if value < least else f"at most {most}"
            else:
                expected = f"a number from {least:g} {f'to {most:g}' if most == 1 else 'on'}"
            raise OptionError(f"{flag_of(name)}: expected {expected}, got {shown(value)}")
    parallel = getattr(args, "parallel", None)
    if parallel is not None and parallel != 1:
        raise OptionError(
            f"--parallel: expected 1, got {parallel}: `{args.command}` answers one prompt at a time. Leave -np out, or run "
            "asl-gguf serve, a server for several clients"
        )


def _layers(text: str) -> int:
    """A number of layers, `all` (-1), or `auto`: all where there is a GPU."""
    if text != "auto":
        return -1 if text == "all" else int(text)
    from ..native import devices

    return -1 if devices.offloads() else 0


_layers.__name__ = "number of layers, all or auto"  # what argparse calls it


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """-m, threads, device, cache type."""
    parser.add_argument(
        "-m",
        "--model",
        default=DEFAULT_MODEL,
        help="GGUF file, name of a pulled model, or ollama:NAME[:TAG] (default %(default)s)",
    )
    parser.add_argument(
        "-t", "--threads", type=n_threads, default=None, help="threads; -1: all cores (default: llama-cpp-python's)"
    )
    parser.add_argument(
        "-ngl", "--gpu-layers", "--n-gpu-layers", type=_layers, default=0, metavar="N",
        help="layers on the GPU: a number, all or auto (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "-fa", "--flash-attn", nargs="?", type=flash, const="on", default="off", metavar="on|off|auto",
        help="use flash attention; auto is off (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--kv-type",
        choices=KV_TYPES,
        default="f16",
        help="type of K in the cache, and of V with -fa (default %(default)s)",
    )
    parser.add_argument(
        "-ub", "--n-ubatch", "--ubatch-size", type=int, default=512, help="tokens of a chunk (default %(default)s)"
    )


def add_llama_options(parser: argparse.ArgumentParser) -> None:
    """What llama.cpp's programs take beside `add_model_options`: a model on Hugging Face, types of K and V."""
    parser.add_argument(
        "-hf", "-hfr", "--hf-repo", metavar="USER/REPO[:QUANT]",
        help="a GGUF model on Hugging Face, in place of -m; needs huggingface_hub (default QUANT: Q4_K_M, then Q8_0)",
    )  # fmt: skip
    for flag, name in (("-ctk", "--cache-type-k"), ("-ctv", "--cache-type-v")):
        needs = "; a quantised one needs -fa" if flag == "-ctv" else ""
        parser.add_argument(
            flag, name, choices=KV_TYPES, default=None, help=f"type of {flag[-1].upper()} in the cache{needs}"
        )
    parser.add_argument("-np", "--parallel", type=int, default=None, help=argparse.SUPPRESS)
    add_loading_options(parser)


def add_context_options(parser: argparse.ArgumentParser, longest: str, default: str, cells: str) -> None:
    """--ctx-size and --decode-ctx.

    Args:
        longest: what --ctx-size is the length of.
        default: of --ctx-size.
        cells: what the default of --decode-ctx consists of.
    """
    parser.add_argument(
        "-c", "--ctx-size", "--n-ctx", dest="n_ctx", metavar="N", type=int, default=None,
        help=f"longest {longest} in tokens; 0: the model's training context (default: {default})",
    )  # fmt: skip
    parser.add_argument(
        "--decode-ctx", type=int, default=None, help=f"KV cells of the decode context (default: {cells})"
    )


def add_system_option(parser: argparse.ArgumentParser) -> None:
    """-sys and -sysf."""
    parser.add_argument("-sys", "--system-prompt", "--system", dest="system", help="system message")
    parser.add_argument("-sysf", "--system-prompt-file", dest="system_file", metavar="FILE", help="the same in a file")


def system_message(args: argparse.Namespace) -> str | None:
    """The text of -sys or -sysf.

    Raises:
        PromptError: it is no UTF-8, or cannot be read.
        OptionError: both are given.
    """
    if args.system_file is not None:
        if args.system is not None:
            raise OptionError("--system-prompt-file: expected no -sys beside it, got both; name one system message")
        return read_plain(args.system_file)
    if args.system is not None:
        require_utf8("--system-prompt", args.system)
    return args.system


def add_pruning_options(parser: argparse.ArgumentParser, budget: str | None, targets: bool = True) -> None:
    """--budget, which may be a goal or none if `targets`, --policy and their like.

    Args:
        budget: the default; None: `budget_of` has it.
    """
    default = "auto; 0.2 with a policy that cannot decide at its selection" if budget is None else "%(default)s"
    add_budget_option(parser, budget, f"{budget_help(targets)} (default {default})")
    parser.add_argument(
        "--policy", default=DEFAULT, help="what to keep: name or name:parameter=value:... (default %(default)s)"
    )
    add_dequant_option(parser)


def add_dequant_option(parser: argparse.ArgumentParser) -> None:
    """--dequant."""
    parser.add_argument(
        "--dequant",
        choices=DEQUANT,
        default="auto",
        help="weights of slow types while their layer runs: packed (int8, int16), F16 (all), as stored (off), or what "
        "was measured to be fast (default %(default)s)",
    )


def add_keeping_options(parser: argparse.ArgumentParser) -> None:
    """--protect and --guard."""
    parser.add_argument(
        "--protect", action="append", default=None, metavar="WHAT",
        help=f"keep this whatever its scores: {', '.join(ROLES)}, BEGIN:END (tokens) or /REGULAR EXPRESSION/; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--guard", type=float, default=None, metavar="SHARE",
        help="least share of the attention that the kept K/V must hold; a prompt that falls short gets a larger budget",
    )  # fmt: skip


def keeping_kwargs(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of `Llama` from --protect and --guard.

    Raises:
        OptionError: what is to be protected is in none of the forms.
    """
    return {"asl_protect": [_protected(text) for text in args.protect or []] or None, "asl_guard": args.guard}


def _protected(text: str) -> Any:
    if text in ROLES:
        return text
    if span := re.fullmatch(r"(-?\d{1,18}):(-?\d{1,18})", text):
        return int(span[1]), int(span[2])
    if len(text) > 2 and text.startswith("/") and text.endswith("/"):
        try:
            return re.compile(text[1:-1])
        except re.error as err:
            raise OptionError(f"--protect: expected a regular expression between slashes, got {text}: {err}") from None
    raise OptionError(
        f"--protect: expected {', '.join(ROLES)}, BEGIN:END in tokens, or /REGULAR EXPRESSION/, got {shown(text)}"
    )


def add_full_kv_option(parser: argparse.ArgumentParser, why: str) -> None:
    """--full-kv.

    Args:
        why: what it is good for in this command.
    """
    parser.add_argument(
        "--full-kv",
        nargs="?",
        choices=KINDS,
        const=True,
        default=False,
        metavar="TYPE",
        help=f"keep K/V of all prompt tokens in host memory: {why}. With a TYPE ({', '.join(KINDS)}) they are quantised",
    )


def model_of(args: argparse.Namespace) -> str:
    """The model's file or name; one on Hugging Face is fetched first, unless it is in that package's cache.

    Raises:
        OptionError: two models are named.
        ModelError, DownloadError: as `models.hub.fetch`.
    """
    if getattr(args, "hf_repo", None) is None:
        return args.model
    if args.model != DEFAULT_MODEL:
        raise OptionError(f"--hf-repo: expected no -m beside it, got -m {args.model}; name one model")
    from ..models.hub import fetch

    return str(fetch(args.hf_repo))


def llama_kwargs(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of `Llama` from the model options; a warning where layers find no GPU.

    Raises:
        OptionError: V is to be quantised without flash attention.
    """
    flash = args.flash_attn == "on"
    kind_k = getattr(args, "cache_type_k", None) or args.kv_type
    # llama.cpp quantises V with flash attention only
    kind_v = getattr(args, "cache_type_v", None) or (args.kv_type if flash or args.kv_type in _PLAIN else "f16")
    if kind_v not in _PLAIN and not flash:
        raise OptionError(f"--cache-type-v: expected -fa with the quantised type {kind_v}, got none; add -fa")
    _check_devices(args)
    return {
        "n_threads": args.threads,
        "n_threads_batch": args.threads,
        "n_gpu_layers": args.gpu_layers,
        "flash_attn": flash,
        "type_k": KV_TYPES[kind_k],
        "type_v": KV_TYPES[kind_v],
        "n_batch": max(512, args.n_ubatch),
        "n_ubatch": args.n_ubatch,
        "verbose": False,
        **loading_kwargs(args),
    }


def check_out(path: Path) -> None:
    """Raises OptionError, before anything is computed, for an --out that cannot become a file."""
    if not path.absolute().parent.is_dir() or path.is_dir():
        raise OptionError(f"--out: expected a file in a folder that exists, got {path}")


def context_kwargs(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of `ContextOptions` from the model options."""
    _check_devices(args)
    return {
        "n_threads": args.threads or 2,
        "n_ubatch": args.n_ubatch,
        "flash_attn": args.flash_attn == "on",
        "kv_type": KV_TYPES[args.kv_type],
        "n_gpu_layers": args.gpu_layers,
    }


def _check_devices(args: argparse.Namespace) -> None:
    from ..native import devices

    asked = [f"-ngl {'all' if args.gpu_layers < 0 else args.gpu_layers}"] if args.gpu_layers else []
    asked += [
        flag for flag, name in (("-mg", "main_gpu"), ("-ts", "tensor_split")) if getattr(args, name, None) is not None
    ]
    if asked and not devices.offloads():
        warn(f"{', '.join(asked)}: no GPU is there that this build of llama.cpp can use; all layers run on the CPU")
