"""Options of llama.cpp's own programs that work here as they do there, and what is said of those that do not."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from ..errors import OptionError
from .documents import read_plain
from .source import require_utf8
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
_IDLE = "--jinja --no-display-prompt --no-warmup --simple-io --no-perf --log-disable --no-context-shift --no-escape"
"""flags that ask for what is done in any case"""

_TALK = "asl-gguf chat talks with a model"
_SERVE = "asl-gguf serve is llama.cpp's server"
_KEPT = "save_prompt of Python's Llama keeps a prompt in a file"
_DRAFT = "drafted answers come from the full cache"
_PICTURES = "prompts are text here"
INSTEAD = {
    **dict.fromkeys(("-cnv", "--conversation", "-i", "--interactive", "-if", "--interactive-first"), _TALK),
    **dict.fromkeys(("--host", "--port", "--api-key", "--slots", "--metrics", "-a", "--alias", "-cb"), _SERVE),
    **dict.fromkeys(("--prompt-cache", "--prompt-cache-all", "--prompt-cache-ro", "--slot-save-path"), _KEPT),
    **dict.fromkeys(("-md", "--model-draft", "--draft", "--draft-max", "--draft-min"), _DRAFT),
    **dict.fromkeys(("--mmproj", "-mm", "--image", "--audio"), _PICTURES),
    **dict.fromkeys(("-e", "--escape"), "a line break is written as one: -p $'first\\nsecond'"),
    **dict.fromkeys(("-mu", "--model-url"), "download the file and name it with -m, or take -hf USER/REPO"),
    **dict.fromkeys(("-hff", "--hf-file"), "-hf USER/REPO:QUANT names a file by its quantisation"),
    **dict.fromkeys(("-sysf", "--system-prompt-file"), '-sys "$(cat FILE)" does the same'),
    **dict.fromkeys(("-bf", "--binary-file"), "-f reads documents"),
    **dict.fromkeys(("-st", "--single-turn"), "asl-gguf run answers once"),
    **dict.fromkeys(("-no-cnv", "--no-conversation"), "asl-gguf run --raw completes a text as it is"),
    **dict.fromkeys(("-p", "--prompt"), "asl-gguf run -p answers a prompt, asl-gguf chat the lines that it reads"),
    "--lora-scaled": "--lora takes one adapter at its full strength",
    **dict.fromkeys(("-v", "--verbose", "-lv", "--verbosity"), "--report says more about what was kept"),
    "--keep": "--protect BEGIN:END keeps tokens whatever their scores",
}
"""options of llama.cpp's programs -> what there is in their place"""


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


def add_loading_options(parser: argparse.ArgumentParser) -> None:
    """How a model is loaded: batches, memory, rope, adapters, devices."""
    group = parser.add_argument_group("options of llama.cpp's programs")
    add = group.add_argument
    add("-tb", "--threads-batch", type=int, metavar="N", help="threads for prompts (default: as --threads)")
    add("--batch-size", type=int, dest="n_batch", metavar="N", help="tokens of a batch; -b is the budget here")
    add("--mlock", action="store_true", help="keep the model's file in memory")
    add("--no-mmap", action="store_true", help="read the model's file in place of mapping it")
    add("--mmap", action="store_false", dest="no_mmap", help=argparse.SUPPRESS)
    add("--rope-freq-base", type=float, metavar="N", help="base frequency of rotary positions (default: the model's)")
    add("--rope-freq-scale", type=float, metavar="N", help="their frequency's factor (default: the model's)")
    add("--lora", action="append", metavar="FILE", help="a LoRA adapter")
    add("-mg", "--main-gpu", type=int, metavar="N", help="the GPU for what is not split")
    add("-ts", "--tensor-split", type=shares, metavar="N,N", help="shares of the model for each GPU")
    for name in _IDLE.split():
        add(name, action="store_true", help=argparse.SUPPRESS)
    add("-co", "--color", nargs="?", choices=("on", "off", "auto"), const="on", help=argparse.SUPPRESS)


def loading_kwargs(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of `Llama` from them: those that were given. A warning for colours, which nothing has.

    Raises:
        OptionError: there are several adapters.
    """
    adapters = getattr(args, "lora", None) or [None]
    if len(adapters) > 1:
        raise OptionError(
            f"--lora: expected one adapter, got {len(adapters)}: {', '.join(adapters)}; merge them into one"
        )
    if getattr(args, "color", None) == "on":
        warn("--color: without effect, nothing is coloured here")
    values = {
        "n_threads_batch": getattr(args, "threads_batch", None),
        "n_batch": getattr(args, "n_batch", None),
        "use_mlock": getattr(args, "mlock", None) or None,
        "use_mmap": False if getattr(args, "no_mmap", False) else None,
        "rope_freq_base": getattr(args, "rope_freq_base", None),
        "rope_freq_scale": getattr(args, "rope_freq_scale", None),
        "lora_path": adapters[0],
        "main_gpu": getattr(args, "main_gpu", None),
        "tensor_split": getattr(args, "tensor_split", None),
    }
    return {name: value for name, value in values.items() if value is not None}


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """Penalties, grammars, and samplers that few use."""
    group = parser.add_argument_group("more options of llama.cpp's programs: the answer")
    add = group.add_argument
    add("--presence-penalty", type=float, metavar="N", help="penalty on tokens that are there already (0: none)")
    add("--frequency-penalty", type=float, metavar="N", help="the same for each time that they are (0: none)")
    add(
        "--typical", "--typical-p", type=float, dest="typical_p", metavar="P", help="locally typical sampling (1: none)"
    )
    add("--mirostat", type=int, choices=(0, 1, 2), dest="mirostat_mode", help="Mirostat sampling (0: none)")
    add("--mirostat-lr", type=float, dest="mirostat_eta", metavar="N", help="its learning rate (0.1)")
    add("--mirostat-ent", type=float, dest="mirostat_tau", metavar="N", help="its target entropy (5.0)")
    add("-r", "--reverse-prompt", action="append", dest="stop", metavar="TEXT", help="ends the answer; may be repeated")
    add("--grammar", metavar="GBNF", help="what the answer must look like")
    add("--grammar-file", metavar="FILE", help="the same in a file")
    add("-j", "--json-schema", metavar="JSON", help="a schema that the answer follows; {} for any JSON")
    add("-jf", "--json-schema-file", metavar="FILE", help="the same in a file")


SAMPLERS = ("typical_p", "mirostat_mode", "mirostat_eta", "mirostat_tau")
"""those that change nothing at temperature 0"""


def sampling_kwargs(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of `create_completion` from them: those that were given.

    Raises:
        OptionError: several say what the answer looks like, one cannot be made a grammar of, or an empty text ends it.
        PromptError: a file cannot be read, or a text is no UTF-8.
    """
    for text in getattr(args, "stop", None) or []:
        require_utf8("--reverse-prompt", text)
        if not text:
            raise OptionError(
                "--reverse-prompt: expected a text that ends the answer, got an empty one, which every answer has"
            )
    names = ("presence_penalty", "frequency_penalty", "stop", *SAMPLERS)
    given = {name: getattr(args, name) for name in names if getattr(args, name, None) is not None}
    grammar = _grammar(args)
    return given | ({"grammar": grammar} if grammar is not None else {})


def _grammar(args: argparse.Namespace) -> Any:
    kinds: dict[str, Callable[[Any, str], Any]] = {
        "grammar": lambda kind, text: kind.from_string(text, verbose=False),
        "json_schema": lambda kind, text: kind.from_json_schema(text, verbose=False),
    }
    texts = [
        (option, make, read_plain(value) if option.endswith("_file") else value)
        for name, make in kinds.items()
        for option in (name, f"{name}_file")
        if (value := getattr(args, option, None)) is not None
    ]
    if not texts:
        return None
    flags = [f"--{option.replace('_', '-')}" for option, _, _ in texts]
    if len(texts) > 1:
        raise OptionError(
            f"{flags[0]}: expected alone, got it with {', '.join(flags[1:])}: one grammar holds for an answer"
        )
    from ..native.bindings import llama_cpp

    _, make, text = texts[0]
    require_utf8(flags[0], text)
    try:
        return make(llama_cpp.LlamaGrammar, text)
    except Exception as err:  # json's, and what the parent raises on schemas that it does not know
        raise OptionError(f"{flags[0]}: expected what a grammar can be made of, got {text!r:.80}: {err}") from err
