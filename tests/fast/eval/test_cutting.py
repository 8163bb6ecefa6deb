"""The choice of what `auto` goes by, on made-up prompts: found where kinds part, refused where they do not or where it does
not pay."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from asl_gguf.eval.calibrate.cutting import FEW, KIND_TOLERANCE, MOST_KEPT, TOLERANCE, Seen, search, verdict
from asl_gguf.eval.calibrate.page import auto_sentence

ONE_PLACE = ("needle", "pass key", "rule", "look-up")
SEVERAL = ("values", "chain", "gist")
TELLS = (3, 1)
"""layer and head"""


def seen(kind: str, peak: float, loss: float, seed: int) -> Seen:
    """A prompt of which head TELLS has this peak; the others know nothing."""
    peaks = np.random.default_rng(seed).random((6, 2))
    peaks[0] = np.nan
    peaks[TELLS] = peak
    return Seen(kind, peaks, (0.5 + loss, 0.5 + loss), 0.5, (0.1, 0.2), 0.4)


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
    cuts, reason = search(prompts(few, many), 0.125)
    assert [cut.few for cut in cuts] == list(FEW) and not reason
    cut = cuts[0]
    assert (cut.layer, cut.head, cut.above, cut.scale) == (*TELLS, few > many, 0.125)
    assert min(few, many) < cut.threshold < max(few, many)
    assert search(prompts(few, many), 0.125) == (cuts, "")
    found = verdict(cuts, prompts(few, many, seed=1, n=2), 0.4)
    assert found.auto is not None and found.auto.cut == cut and found.auto.prompts == 14
    assert found.auto.nll_loss == 0 and found.auto.kept == pytest.approx((8 * 0.1 + 6 * 0.4) / 14)
    assert found.words.startswith("on 14 other prompts it keeps 0.23 of a prompt in place of 0.40, ")
    side = "at least" if few > many else "at most"
    assert auto_sentence(found).startswith(
        f"auto: few tokens (the least) where head 1 of layer 3 has {side} {cut.threshold:.1%} of"
    )


def test_a_threshold_keeps_away_from_prompts_that_lose():
    """Half a standard deviation nearer to them it is still good."""
    made = prompts()
    (cut, *_), _ = search(made, 1.0)
    peaks = np.array([one.peaks[TELLS] for one in made])
    assert cut.threshold - peaks.std() / 2 > max(peaks[[one.kind in SEVERAL for one in made]])


OVERLAP = "prompts of a kind that the choice has not seen would lose|no head tells"


@pytest.mark.parametrize(
    "made, reason",
    [
        ([], "could not be measured"),
        (prompts(0.5, 0.5), OVERLAP),
        ([replace(one, peaks=np.full((6, 2), np.nan)) for one in prompts()], "no layer before the selection"),
        ([replace(one, peaks=np.full((6, 2), 0.5)) for one in prompts()], "no head tells"),
        ([replace(one, nll=(5.0, 5.0), nll_most=4.1) for one in prompts()], "knows too few of the answers"),
        ([replace(one, nll=(float("nan"),) * 2) for one in prompts()], "could not be measured"),
    ],
    ids=["none", "overlap", "unread", "constant", "not known", "no likelihood"],
)
def test_what_is_refused(made, reason):
    cuts, why = search(made, 1.0)
    assert not cuts and re.search(reason, why), why


def test_few_tokens_for_every_prompt_where_none_loses():
    made = prompts(loss=0.01)
    (cut, _), reason = search(made, 1.0)
    assert cut.above and cut.threshold == 0 and not reason
    found = verdict([cut], made, 0.4)
    assert found.auto is not None and found.auto.kept == pytest.approx(0.1)


def test_more_tokens_where_the_least_loses_what_no_head_tells():
    """With a fifth of the prompt nothing is lost: that is what every prompt gets."""
    made = [replace(one, nll=(one.nll[0], 0.5)) for one in prompts(0.5, 0.5)]
    (cut,), reason = search(made, 1.0)
    assert cut.few == FEW[1] and cut.threshold == 0 and re.search(OVERLAP, reason)
    found = verdict([cut], made, 0.4)
    assert found.auto is not None and found.auto.kept == pytest.approx(0.2)
    assert "few tokens (33% of the way to the limit) of every prompt; on" in auto_sentence(found)


def test_a_kind_that_lies_among_others_is_refused():
    """Chains read as pass keys do: left out, they would be lost, whatever a choice that knows them does."""
    made = [
        replace(one, peaks=np.where(np.arange(12).reshape(6, 2) == 7, 0.95, one.peaks)) if one.kind == "chain" else one
        for one in prompts()
    ]
    cuts, why = search(made, 1.0)
    assert not cuts and re.search(r"not seen would lose .* chain 2\.00 \(0\.02 and 0\.3 are allowed\)", why), why


def test_one_prompt_that_could_not_be_read_rules_out_a_head():
    made = prompts()
    made[0].peaks[TELLS] = np.nan
    cuts, _ = search(made, 1.0)
    assert all((cut.layer, cut.head) != TELLS for cut in cuts)


def test_held_out_prompts_decide():
    cuts, _ = search(prompts(), 1.0)
    cuts = cuts[:1]
    others = prompts(seed=1, n=2)
    lost = [with_loss(one, TOLERANCE * 4) for one in others]
    assert verdict(cuts, lost, 0.4).auto is None and "0.02 and 0.3 are allowed" in verdict(cuts, lost, 0.4).words
    one_kind = [with_loss(one, KIND_TOLERANCE + 0.1 if one.kind == "rule" else -0.2) for one in others]
    assert verdict(cuts, one_kind, 0.4).auto is None
    assert "the worst kind, rule: +0.40" in verdict(cuts, one_kind, 0.4).words
    dear = [replace(one, kept=(0.4 * MOST_KEPT + 0.01,) * 2) for one in others]
    assert verdict(cuts, dear, 0.4).auto is None and verdict(cuts, dear, 0.4).words.endswith("not worth it")
    unread = [replace(one, peaks=np.full((6, 2), np.nan)) for one in others]
    assert verdict(cuts, unread, 0.4).auto is None and verdict(cuts, [], 0.4).auto is None
    assert auto_sentence(verdict(cuts, [], 0.4)) == "auto: nothing stored: prompts that were held out could not be read"


def test_more_tokens_where_the_least_fails_on_held_out_prompts():
    cuts, _ = search(prompts(), 1.0)
    others = [replace(one, nll=(2.5, 0.5)) for one in prompts(seed=1, n=2)]
    found = verdict(cuts, others, 0.4)
    assert found.auto is not None and found.auto.cut == cuts[1]
    assert found.auto.kept == pytest.approx((8 * 0.2 + 6 * 0.4) / 14)


def with_loss(one: Seen, loss: float) -> Seen:
    return replace(one, nll=(one.nll_most + loss,) * 2)
