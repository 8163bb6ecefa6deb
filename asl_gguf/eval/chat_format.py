"""The markers round a user's turn that a model was trained on, from its file."""

from __future__ import annotations

from ..errors import OptionError
from ..native.bindings import llama_cpp
from ..native.model import Model
from .tasks import CHATML, PLAIN, ChatFormat

CHOICES = ("auto", "chatml", "plain")
_TEXT = "\x02user text\x03"


def chat_format(model: Model, choice: str) -> ChatFormat:
    """The format of the prompts.

    Args:
        choice: chatml; plain, for base models; auto: the template in the model's file (ChatML without a system turn
            where that is what it writes), plain where the file has none.

    Raises:
        OptionError: the choice is none of these, or the template cannot be used.
    """
    if choice not in CHOICES:
        raise OptionError(f"--chat: expected one of {', '.join(CHOICES)}, got {choice!r}")
    if choice != "auto":
        return CHATML if choice == "chatml" else PLAIN
    template = llama_cpp.llama_model_chat_template(model.handle, None)
    return PLAIN if not template else from_template(template.decode("utf-8"), *_ends(model))


def from_template(template: str, bos: str, eos: str) -> ChatFormat:
    """The markers that a chat template (Jinja) writes round a text; the leading BOS is left to the tokenizer."""
    if "<|im_start|>" in template:
        return CHATML
    try:
        formatter = llama_cpp.llama_chat_format.Jinja2ChatFormatter(template=template, eos_token=eos, bos_token=bos)
        written = formatter(messages=[{"role": "user", "content": _TEXT}]).prompt
        before, after = written.split(_TEXT)
    except Exception as err:  # whatever a template does
        raise OptionError(
            f"--chat: expected a chat template that writes one user turn, got {type(err).__name__}: {err}; "
            "choose chatml or plain"
        ) from None
    return ChatFormat(before.removeprefix(bos) if bos else before, after)


def _ends(model: Model) -> tuple[str, str]:
    vocab = llama_cpp.llama_model_get_vocab(model.handle)

    def text(token: int) -> str:
        return llama_cpp.llama_vocab_get_text(vocab, token).decode("utf-8") if token >= 0 else ""

    return text(llama_cpp.llama_vocab_bos(vocab)), text(llama_cpp.llama_vocab_eos(vocab))
