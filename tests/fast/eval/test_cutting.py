"""The choice of what `auto` goes by, on made-up prompts: found where kinds part, refused where they do not or where it does
not pay."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from asl_gguf.eval.calibrate.cutting import KIND_TOLERANCE, MOST_KEPT, TOLERANCE, Seen, search, verdict
from asl_gguf.eval.calibrate.page import auto_sentence

ONE_PLACE = ("needle", "pass key", "rule", "look-up")
SEVERAL = ("values", "chain", "gist")
TELLS = (3, 1)
"""layer and head"""


def seen(kind: str, peak: float, loss: float, seed: int, **changes: object) -> Seen:
    """A prompt of which head TELLS has this peak; the others know nothing."""
    peaks = np.random.default_rng(seed).random((6, 2))
    peaks[0] = np.nan
    peaks[TELLS] = peak
    return replace(Seen(kind, peaks, 0.5 + loss, 0.5, 0.1, 0.4), **changes)


def prompts(few: float = 0.8, many: float = 0.3, loss: float = 2.0, seed: int = 0, n: int = 4) -> list[Seen]:
    """Four kinds that few tokens suffice for, three that lose by them."""
    noise = np.random.default_rng(seed).normal(0, 0.03, (len(ONE_PLACE) + len(SEVERAL), n))
    kinds = [(kind, few, 0.0) for kind in ONE_PLACE] + [(kind, many, loss) for kind in SEVERAL]
    return [
        seen(kind, peak + noise[i, j], lost, 100 * seed + 10 * i + j)
        for i, (kind, peak, lost) in enumerate(kinds)
        for j in range(n)
    ]


@pytest.mark.parametrize("few, many", [(0.8, 0.3), (0.2, 0.7)])
def test_what_parts_them_is_found(few, many):
    cut, reason = search(prompts(few, many), 0.125)
    assert cut is not None and not reason
    assert (cut.layer, cut.head, cut.above, cut.scale) == (*TELLS, few > many, 0.125)
    assert min(few, many) < cut.threshold < max(few, many)
    assert search(prompts(few, many), 0.125) == (cut, "")
    found = verdict(cut, prompts(few, many, seed=1, n=2), 0.4)
    assert found.auto is not None and found.auto.cut == cut and found.auto.prompts == 14
    assert found.auto.nll_loss == 0 and found.auto.kept == pytest.approx((8 * 0.1 + 6 * 0.4) / 14)
    assert found.words.startswith("on 14 other prompts it keeps 0.23 of a prompt in place of 0.40, ")
    side = "at least" if few > many else "at most"
    assert auto_sentence(found).startswith(
        f"auto: few tokens where head 1 of layer 3 has {side} {cut.threshold:.1%} of"
    )


def test_a_threshold_keeps_away_from_prompts_that_lose():
    """Half a standard deviation nearer to them it is still good."""
    made = prompts()
    cut, _ = search(made, 1.0)
    peaks = np.array([one.peaks[TELLS] for one in made])
    assert cut.threshold - peaks.std() / 2 > max(peaks[[one.kind in SEVERAL for one in made]])


OVERLAP = "prompts of a kind that the choice has not seen would lose|no head tells"


@pytest.mark.parametrize(
    "made, reason",
    [
        ([], "could not be measured"),
        (prompts(0.5, 0.5), OVERLAP),
        (prompts(loss=0.1), r"no kind of prompt loses by the least that auto keeps \(values most, \+0\.10 nats\)"),
        ([replace(one, peaks=np.full((6, 2), np.nan)) for one in prompts()], "no layer before the selection"),
        ([replace(one, peaks=np.full((6, 2), 0.5)) for one in prompts()], "no head tells"),
        ([replace(one, nll_least=float("nan")) for one in prompts()], "could not be measured"),
        ([replace(one, nll_least=5.0, nll_most=4.1) for one in prompts()], "no kind of prompt loses"),
    ],
    ids=["none", "overlap", "nothing lost", "unread", "constant", "no likelihood", "not known anyway"],
)
def test_what_is_refused(made, reason):
    cut, why = search(made, 1.0)
    assert cut is None and re.search(reason, why), why


def test_a_kind_that_lies_among_others_is_refused():
    """Chains read as pass keys do: left out, they would be lost, whatever a choice that knows them does."""
    made = [
        replace(one, peaks=np.where(np.arange(12).reshape(6, 2) == 7, 0.95, one.peaks)) if one.kind == "chain" else one
        for one in prompts()
    ]
    cut, why = search(made, 1.0)
    assert cut is None and re.search(r"not seen would lose .* chain 2\.00 \(0\.02 and 0\.3 are allowed\)", why), why


def test_one_prompt_that_could_not_be_read_rules_out_a_head():
    made = prompts()
    made[0].peaks[TELLS] = np.nan
    cut, _ = search(made, 1.0)
    assert cut is None or (cut.layer, cut.head) != TELLS


def test_held_out_prompts_decide():
    cut, _ = search(prompts(), 1.0)
    others = prompts(seed=1, n=2)
    lost = [replace(one, nll_least=one.nll_most + TOLERANCE * 4) for one in others]
    assert verdict(cut, lost, 0.4).auto is None and "0.02 and 0.3 are allowed" in verdict(cut, lost, 0.4).words
    one_kind = [
        replace(one, nll_least=one.nll_most + (KIND_TOLERANCE + 0.1 if one.kind == "rule" else -0.2)) for one in others
    ]
    assert (
        verdict(cut, one_kind, 0.4).auto is None and "the worst kind, rule: +0.40" in verdict(cut, one_kind, 0.4).words
    )
    dear = [replace(one, least=0.4 * MOST_KEPT + 0.01) for one in others]
    assert verdict(cut, dear, 0.4).auto is None and verdict(cut, dear, 0.4).words.endswith("not worth it")
    unread = [replace(one, peaks=np.full((6, 2), np.nan)) for one in others]
    assert verdict(cut, unread, 0.4).auto is None and verdict(cut, [], 0.4).auto is None
    assert auto_sentence(verdict(cut, [], 0.4)) == "auto: nothing stored: prompts that were held out could not be read"
