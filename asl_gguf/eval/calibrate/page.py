"""A calibration as rows of text, and as a page."""

from __future__ import annotations

from html import escape

from ...models.calibration import Calibration
from ...policies import ASL
from ...policies.cut import N_BEST
from ...policies.parameters import scaled_layer
from ..page_style import figure, table, whole
from .cutting import Found
from .picture import picture

CHOICE_HEAD = ("", "before", "calibrated")
PROFILE_HEAD = (
    "layer", "rank variance, easy", "rank variance, hard", "more NLL, easy", "more NLL, hard", "probability lost", "prefill share",
)  # fmt: skip
_WORDS = {
    "selection layer": "the layer after which only the chosen tokens go on; an earlier one makes the prefill shorter",
    "rank variance": "how much the ranking of the leading tokens still changes from layer to layer, in squared ranks",
    "min_layer": "the first layer that may select",
    "tau": "selection waits until the rank variance falls below this share of its reference",
    "more NLL": "how much less likely the right answer gets by pruning, in nats a token; 0: as with the full cache",
    "probability lost": "the same as a share of each right token's probability",
    "prefill share": "computed token-layers, to a prefill in which nothing is selected",
    "easy, hard": "tasks with one place to look at, and tasks with many",
}


def choice_rows(found: Calibration, policy: ASL) -> list[tuple[str, str, str]]:
    """What was chosen and what it changes, beside the policy's own parameters."""
    n_layer = found.profile.n_layer
    min_layer = policy.min_layer if policy.min_layer is not None else scaled_layer(policy.min_depth, n_layer)
    before, after = found.before, found.after
    return [
        ("min_layer", str(min_layer), str(found.min_layer)),
        ("tau", f"{policy.tau:g}", f"{found.tau:g}"),
        (f"selection layer of {n_layer}, easy", f"{before.layer_easy:.1f}", f"{after.layer_easy:.1f}"),
        (f"selection layer of {n_layer}, hard", f"{before.layer_hard:.1f}", f"{after.layer_hard:.1f}"),
        ("more NLL than the full cache, nats/token", f"{before.nll_loss:.3f}", f"{after.nll_loss:.3f}"),
        ("probability of a reference token lost", f"{before.quality_loss:.3f}", f"{after.quality_loss:.3f}"),
        ("prefill share", f"{before.prefill_share:.2f}", f"{after.prefill_share:.2f}"),
    ]


def profile_rows(found: Calibration) -> list[tuple[str, ...]]:
    """A row for each layer: what the rule looks at, and, where it was measured, what a selection there costs."""
    profile = found.profile
    outcomes = zip(profile.nll_loss_easy, profile.nll_loss_hard, profile.quality_loss, profile.prefill_share)
    by_layer = dict(zip(profile.layers, outcomes))
    rows = []
    for index, layer in enumerate(profile.observed):
        row = [str(layer), f"{profile.variance_easy[index]:.0f}", f"{profile.variance_hard[index]:.0f}"]
        if layer in by_layer:
            easy, hard, quality, share = by_layer[layer]
            row += [f"{easy:.3f}", f"{hard:.3f}", f"{quality:.3f}", f"{share:.2f}"]
        rows.append(tuple(row))
    return rows


def auto_sentence(found: Found) -> str:
    """What the search for what `auto` goes by ended with."""
    if found.auto is None:
        return f"auto: nothing stored: {found.words}"
    cut, few = (
        found.auto.cut,
        "the least" if not found.auto.cut.few else f"{found.auto.cut.few:.0%} of the way to the limit",
    )
    if cut.above and cut.threshold == 0:
        return f"auto: few tokens ({few}) of every prompt; {found.words}"
    side = "at least" if cut.above else "at most"
    return (
        f"auto: few tokens ({few}) where head {cut.head} of layer {cut.layer} has {side} {cut.threshold:.1%} of its attention "
        f"to the document on {N_BEST} tokens, {found.auto.limit:g} else; {found.words}"
    )


def page(found: Calibration, policy: ASL, model: str, auto: str = "") -> str:
    """What was chosen, the picture, the words, the numbers.

    Args:
        model: its name.
        auto: a sentence on the budget auto.
    """
    title = f"Calibration of {found.policy} on {model}"
    made = f"Prompts of each task: {found.samples}, of up to {found.tokens} tokens; budget {found.budget}, tradeoff {found.tradeoff:g}"
    words = "\n".join(f"<dt>{escape(word)}</dt><dd>{escape(text)}</dd>" for word, text in _WORDS.items())
    drawn = figure(
        "profile", picture(found).encode("utf-8"), "Rank variance and cost of a selection, layer by layer",
        "Above: the rank variance, and below which line it selects. Below: what a selection at each layer costs.",
    )  # fmt: skip
    rows = [(*row, *[""] * (len(PROFILE_HEAD) - len(row))) for row in profile_rows(found)]
    return whole(
        title,
        f"<h1>{escape(title)}</h1>\n<p>{escape(made)}</p>\n{table(CHOICE_HEAD, choice_rows(found, policy))}\n<p>{escape(auto)}</p>\n"
        f"<h2>Layers</h2>\n{drawn}\n<h2>Words</h2>\n<dl>{words}</dl>\n"
        f"<h2>Numbers</h2>\n{table(PROFILE_HEAD, rows)}",
    )
