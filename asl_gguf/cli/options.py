"""Command-line options that several commands share."""

from __future__ import annotations

import argparse
import math
from typing import Any

from ..budget.targets import FORMS, BudgetValue, Target, is_target
from ..cache.packing import KINDS
from ..errors import OptionError
from ..policies import DEFAULT

DEFAULT_MODEL = "smollm2-135m-instruct"
KV_TYPES = {"f32": 0, "f16": 1, "q8_0": 8}


_FIXED_BUDGET_HELP = "0.2: share of the prompt; 512: tokens"
BUDGET_HELP = "0.2: share of the prompt; 512: tokens; fit:2GiB: KV memory; ttft:5s: time to the first token"


def parse_budget(text: str, option: str = "--budget") -> BudgetValue | None:
    """A number with a point is a share, one without is tokens, `none` is the full cache, else it is a goal.

    Args:
        option: what messages call it.

    Raises:
        OptionError: it is none of these.
    """
    if text.lower() == "none":
        return None
    if is_target(text):
        return Target.parse(text, option=option).value
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        raise OptionError(
            f"{option}: expected a share such as 0.2, a number of tokens such as 512, {FORMS}, or none, got {text!r}"
        ) from None


def parse_fixed_budget(text: str, why: str) -> float | int:
    """A share or a number of tokens.

    Args:
        why: why it can be nothing else, for the message.

    Raises:
        OptionError: it is neither.
    """
    budget = parse_budget(text)
    if budget is None or isinstance(budget, str):
        raise OptionError(f"--budget: expected a share or a number of tokens, got {text} ({why})")
    return budget


_COUNTS = (
    "n_ubatch", "n_ctx", "decode_ctx", "max_tokens", "tokens", "runs", "decode", "turns", "turn_tokens", "samples", "step"
)  # fmt: skip
_LARGEST = 2**31 - 1
_RANGES = {
    **dict.fromkeys(_COUNTS, (1, _LARGEST)), "threads": (1, 512), "gpu_layers": (-1, _LARGEST), "seed": (0, 2**32 - 1)
}  # fmt: skip


def check_numbers(args: argparse.Namespace) -> None:
    """Raises OptionError for a number of tokens, cells, threads or runs below 1, and for others outside their range."""
    for name, (least, most) in _RANGES.items():
        value = getattr(args, name, None)
        if isinstance(value, int) and not least <= value <= most:
            expected = f"at least {least}" if value < least else f"at most {most}"
            raise OptionError(f"--{name.replace('_', '-')}: expected {expected}, got {value}")
    temperature = getattr(args, "temp", None)
    if temperature is not None and not 0 <= temperature < math.inf:
        raise OptionError(f"--temp: expected a number from 0 on, got {temperature}")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """-m, threads, device, cache type."""
    parser.add_argument(
        "-m", "--model", default=DEFAULT_MODEL, help="GGUF file or name of a pulled model (default %(default)s)"
    )
    parser.add_argument("-t", "--threads", type=int, default=None, help="threads (default: llama-cpp-python's)")
    parser.add_argument(
        "-ngl", "--gpu-layers", type=int, default=0, help="layers on the GPU, -1 for all (default %(default)s)"
    )
    parser.add_argument("-fa", "--flash-attn", action="store_true", help="use flash attention")
    parser.add_argument(
        "--kv-type",
        choices=KV_TYPES,
        default="f16",
        help="type of K in the cache, and of V with -fa (default %(default)s)",
    )
    parser.add_argument("--n-ubatch", type=int, default=512, help="tokens of a chunk (default %(default)s)")


def add_pruning_options(parser: argparse.ArgumentParser, budget: str, targets: bool = True) -> None:
    """--budget, which may be a goal or none if `targets`, --policy and their like."""
    parser.add_argument(
        "-b",
        "--budget",
        default=budget,
        help=f"{f'{BUDGET_HELP}; none: full cache' if targets else _FIXED_BUDGET_HELP} (default %(default)s)",
    )
    parser.add_argument(
        "--policy", default=DEFAULT, help="what to keep: name or name:parameter=value:... (default %(default)s)"
    )
    parser.add_argument(
        "--dequant",
        choices=("auto", "off", "all"),
        default="auto",
        help="expand slow weight types to F16 while their layer runs (default %(default)s)",
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


def llama_kwargs(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of `Llama` from the model options."""
    kv_type = KV_TYPES[args.kv_type]
    return {
        "n_threads": args.threads,
        "n_threads_batch": args.threads,
        "n_gpu_layers": args.gpu_layers,
        "flash_attn": args.flash_attn,
        "type_k": kv_type,
        # llama.cpp quantises V with flash attention only
        "type_v": kv_type if args.flash_attn else KV_TYPES["f16"],
        "n_batch": max(512, args.n_ubatch),
        "n_ubatch": args.n_ubatch,
        "verbose": False,
    }
