"""Samplers of llama.cpp that `llama_cpp.Llama` has no arguments for, put where llama.cpp's programs have them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from ..errors import OptionError

DRY_BREAKERS = ("\n", ":", '"', "*")
"""llama.cpp's own"""
_FORBIDDEN = -1e9
"""bias beside a grammar, in place of -inf: where the grammar allows no other token, it is taken. llama.cpp ends the process
where none is left"""


@dataclass(frozen=True)
class Samplers:
    """What was asked for; the defaults are llama.cpp's, which change nothing."""

    NUMBERS: ClassVar[tuple[str, ...]] = (
        "repeat_last_n", "dry_multiplier", "dry_base", "dry_allowed_length", "dry_penalty_last_n", "top_nsigma",
        "xtc_probability", "xtc_threshold", "dynatemp_range", "dynatemp_exp",
    )  # fmt: skip
    IDLE_WHEN_GREEDY: ClassVar[tuple[str, ...]] = NUMBERS[5:]

    repeat_last_n: int | None = None
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = 64
    dry_breakers: tuple[str, ...] = DRY_BREAKERS
    top_nsigma: float = -1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dynatemp_range: float = 0.0
    dynatemp_exp: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    ignore_eos: bool = False

    def install(self, llm: Any) -> None:
        """Every answer of this `Llama` is sampled with them.

        Raises:
            OptionError: a token of --logit-bias is none of the model's.
        """
        if beyond := [token for token, _ in self.logit_bias if token >= llm.n_vocab()]:
            raise OptionError(f"--logit-bias: expected tokens below {llm.n_vocab()}, got {beyond[0]}")
        if self.repeat_last_n is not None:
            llm.last_n_tokens_size = self.repeat_last_n
        idle = self == Samplers(repeat_last_n=self.repeat_last_n)
        make: Callable[..., Any] = llm._init_sampler

        def with_ours(**arguments: Any) -> Any:
            sampler = make(**arguments)
            if not idle or arguments.get("mirostat_mode"):
                self._extend(llm, sampler, arguments["temp"])
            return sampler

        llm._init_sampler = with_ours

    def _extend(self, llm: Any, sampler: Any, temperature: float) -> None:
        """Takes the chain apart and puts it together again, with these samplers in it."""
        from ..native.bindings import llama_cpp

        chain = sampler.sampler
        n_custom = len(sampler.custom_samplers)  # logits processors: they stand in front, and are freed by their place
        n_theirs = llama_cpp.llama_sampler_chain_n(chain) - n_custom
        theirs = [llama_cpp.llama_sampler_chain_remove(chain, n_custom) for _ in range(n_theirs)]
        # a question mark: it changes nothing
        names = [llama_cpp.llama_sampler_name(one).lstrip(b"?") for one in theirs]
        # top-nsigma in front of a grammar may leave no token that it allows
        n_sigma_after = b"grammar" if b"grammar" in names else b"penalties"
        if bias := self._biases(llm, least=_FORBIDDEN if b"grammar" in names else -math.inf):
            sampler.add_logit_bias(llm.n_vocab(), bias)
        for name, one in zip(names, theirs):
            if name.startswith(b"mirostat"):
                sampler.add_temp(temperature)  # llama_cpp leaves it out
            if name == b"temp" and self.xtc_probability > 0:
                sampler.add_xtc(self.xtc_probability, self.xtc_threshold, 1, llm._seed)
            if name == b"temp" and self.dynatemp_range > 0:
                llama_cpp.llama_sampler_free(one)
                sampler.add_temp_ext(temperature, self.dynatemp_range, self.dynatemp_exp)
                continue
            llama_cpp.llama_sampler_chain_add(chain, one)
            if name == b"penalties":
                self._add_dry(llm, sampler)
            if name == n_sigma_after and b"temp" in names and self.top_nsigma > 0:
                sampler.add_top_n_sigma(self.top_nsigma)

    def _biases(self, llm: Any, least: float) -> dict[int, float]:
        """Of tokens, together where one has several."""
        biases: dict[int, float] = {}
        for token, bias in self.logit_bias:
            both = biases.get(token, 0.0) + bias
            biases[token] = bias if math.isnan(both) else both  # inf-inf
        if self.ignore_eos:
            biases |= dict.fromkeys(_ends(llm), -math.inf)
        return {token: max(bias, least) for token, bias in biases.items()}

    def _add_dry(self, llm: Any, sampler: Any) -> None:
        if self.dry_multiplier:
            sampler.add_dry(
                llm._model, self.dry_multiplier, self.dry_base, self.dry_allowed_length, self.dry_penalty_last_n,
                list(self.dry_breakers),
            )  # fmt: skip


def _ends(llm: Any) -> list[int]:
    """Tokens that end an answer."""
    from ..native.bindings import llama_cpp

    return [token for token in range(llm.n_vocab()) if llama_cpp.llama_vocab_is_eog(llm._model.vocab, token)]
