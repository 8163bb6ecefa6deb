"""An inspection as one HTML page: the answer, where the kept text lies, and why. No scripts, nothing from elsewhere."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import fields
from html import escape

import numpy as np

from .html_style import SHADES, STYLE, shade_styles
from .inspection import Inspection
from .passages import Passage, density, passages
from .plots import charts, svg

_CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {0x7F: 0x2421}
"""control characters to pictures of them: HTML has no other way to show them"""
_MAP_PARTS = 200
_MAP_HEIGHT = 40

_WORDS = {
    "policy": "the rule that chose what to keep",
    "budget": "how many tokens may be kept",
    "selection layer": "the last layer that saw the whole prompt; deeper ones see the kept tokens alone",
    "kept tokens": "what the answer was written from",
    "K/V": "memory of this prompt's keys and values, kept and in full",
    "prefill share": "the work that was done, of that of a full prefill; a part of it is spared after the selection layer",
    "attention mass": "how much of what the prompt's last tokens attend to is kept: near 1, little that mattered was dropped",
}
"""what the facts mean"""
_CHARTS = (
    (
        "variance",
        "Rank variance by layer",
        "How much the ranking of the leading tokens still changes from layer to layer. Where it falls below tau, it has settled, "
        "and the policy selects.",
        "this policy measures none",
    ),
    (
        "attention_mass",
        "Attention mass by layer",
        "The share of the last tokens' attention that falls on what the layer keeps.",
        "no layer that kept rows was scored",
    ),
    (
        "rows",
        "K/V rows by layer",
        "How many tokens' keys and values each layer keeps.",
        "the prompt was evaluated by llama.cpp itself",
    ),
)
"""name, title, what it shows, why there may be none"""


def page(inspection: Inspection) -> str:
    """The whole page."""
    title = f"{inspection.policy.name} on {inspection.model}"
    found = passages(inspection)
    parts = [_answer(inspection), _map(inspection, found), _prompt(inspection, found), _facts(inspection)]
    body = "\n".join([*filter(None, parts), *_charts(inspection)])
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_escape(title)}</title>
<style>{STYLE}{shade_styles()}</style>
</head>
<body>
<h1>{_escape(title)}</h1>
{body}
</body>
</html>
"""


def _escape(text: str) -> str:
    return escape(text.translate(_CONTROLS))


def _answer(inspection: Inspection) -> str:
    return (
        f'<h2>Answer</h2>\n<pre class="answer">{_escape(inspection.answer)}</pre>\n'
        f"<p>{_escape(str(inspection.report))}</p>"
    )


def _map(inspection: Inspection, found: Sequence[Passage]) -> str:
    """The whole prompt as a strip of bars, and the kept passages as a list; nothing where all was kept."""
    if not found:
        return ""
    begins = [passage.begin for passage in found]
    bars = []
    n_tokens = inspection.report.prompt_tokens
    for begin, end, share in density(inspection, _MAP_PARTS):
        if share > 0:
            # the passage that the part is in, or the first that begins in it
            number = max(1, bisect.bisect_right(begins, begin)) if begin >= begins[0] else 1
            if found[number - 1].end <= begin:
                number += 1
            height = max(3.0, share * _MAP_HEIGHT)
            bars.append(
                f'<a href="#p{number}"><rect class="here" x="{begin}" y="{_MAP_HEIGHT - height:.1f}" width="{end - begin}" '
                f'height="{height:.1f}"><title>tokens {begin} to {end - 1}: {share:.0%} kept</title></rect></a>'
            )
    items = "\n".join(f'<li><a href="#p{i}">{_escape(one.excerpt)}</a></li>' for i, one in enumerate(found, 1))
    return f"""<h2>Where the kept text lies</h2>
<p class="why">The prompt from its start to its end. A bar is as high as the share of tokens kept there; it leads to the text.</p>
<svg class="map" id="map" viewBox="0 0 {n_tokens} {_MAP_HEIGHT}" preserveAspectRatio="none" role="img" aria-label="Map of the prompt">
{"".join(bars)}
</svg>
<div class="ends"><span>token 0</span><span>token {n_tokens - 1}</span></div>
<details><summary>{len(found)} kept passages</summary>
<ol class="passages">
{items}
</ol></details>"""


def _facts(inspection: Inspection) -> str:
    report, decode = inspection.report, inspection.decode
    parameters = {field.name: getattr(inspection.policy, field.name) for field in fields(inspection.policy)}
    share = report.prefill_share if report.token_layers else 1.0  # llama.cpp evaluated the prompt
    seconds = ", ".join(f"{name} {value:.2f}" for name, value in report.seconds.items())
    speed = f", then {decode.tokens_per_second:.1f} tokens per second" if decode.tokens_per_second else ""
    facts = {
        "model": inspection.model,
        "policy": inspection.policy.name,
        "parameters": ", ".join(f"{name}={value}" for name, value in parameters.items()),
        "budget": report.budget_choice or f"{inspection.budget} ({report.budget_tokens} tokens)"
        if inspection.budget
        else "none: full cache",
        "selection layer": _selection(inspection),
        "kept tokens": f"{report.kept_tokens} of {report.prompt_tokens}",
        "K/V": report.rows()["K/V MiB"].replace(" for", " MiB for", 1).partition(";")[0],
        "prefill share": f"{share:.0%} of the token-layers of a full prefill",
        "attention mass": f"{report.attention_mass:.3f}" if inspection.attention_mass else "not measured",
        "prefill seconds": f"{report.prefill_seconds:.2f}{f' ({seconds})' if seconds else ''}{speed}",
    }
    if report.calibration:
        facts["calibration"] = report.calibration
    if report.reason:
        facts["note" if report.pruned else "not pruned"] = report.reason
    rows = "\n".join(
        f"<dt>{_escape(name)}</dt><dd>{_escape(value)}{f'<small>{_WORDS[name]}</small>' if name in _WORDS else ''}</dd>"
        for name, value in facts.items()
    )
    return f"<h2>How it was chosen</h2>\n<dl>\n{rows}\n</dl>"


def _selection(inspection: Inspection) -> str:
    report = inspection.report
    if report.selection_layer is None:
        return f"none: every one of {report.n_layer} layers saw all tokens"
    again = "; the kept tokens ran again from layer 0" if report.passes > 1 else ""
    return f"{report.selection_layer} of layers 0 to {report.n_layer - 1}{again}"


def _prompt(inspection: Inspection, found: Sequence[Passage]) -> str:
    # the parser drops a line break that follows <pre>
    text = "".join(_tokens(inspection, found))
    return f'<h2>Prompt</h2>\n{_legend(inspection, found)}\n<pre class="prompt">\n{text}</pre>'


def _legend(inspection: Inspection, found: Sequence[Passage]) -> str:
    report = inspection.report
    if not report.pruned:
        return "<p>All tokens were kept.</p>"
    if report.selected:
        text = f'<b class="kept">like this</b>: the {len(report.selected)} tokens that the deepest layers saw'
    else:
        shades = "&#8203;".join(
            f'<span class="s{i}">&nbsp;{i * 100 // SHADES}%&nbsp;</span>' for i in range(1, SHADES + 1)
        )
        text = f"{shades}: share of the pairs of layer and KV head whose rows hold the token"
    fixed = ", ".join(f"{name} {len(tokens)}" for name, tokens in inspection.always.items() if tokens)
    jump = f' Numbers lead to the next kept passage: <a class="jump" href="#p1">1 of {len(found)}</a>' if found else ""
    return f'<p>{text}; <b class="fixed">dashed box</b>: kept whatever the scores ({_escape(fixed)}).{jump}</p>'


def _tokens(inspection: Inspection, found: Sequence[Passage]) -> Iterable[str]:
    """One span per token, and a link in front of each passage to the next one."""
    numbers = {passage.begin: number for number, passage in enumerate(found, 1)}
    report = inspection.report
    shares = inspection.kept_shares
    selected = frozenset(report.selected)
    shaded = report.pruned and not selected
    for i, (piece, share) in enumerate(zip(inspection.pieces, shares, strict=True)):
        names = [name for name, tokens in inspection.always.items() if i in tokens]
        classes = ["t"]
        if i in selected:
            classes.append("kept")
        elif shaded and share > 0:
            classes.append(f"s{int(np.ceil(share * SHADES - 1e-6))}")
        if names:
            classes.append("fixed")
        if number := numbers.get(i):
            after = number % len(found) + 1
            yield f'<a class="jump" id="p{number}" href="#p{after}" title="to passage {after}">{number}</a>'
        title = ", ".join([f"token {i}", f"in {share:.0%} of layers and heads", *names])
        yield f'<span class="{" ".join(classes)}" title="{title}">{_escape(piece)}</span>'


def _charts(inspection: Inspection) -> Iterable[str]:
    drawn = {chart.name: chart for chart in charts(inspection)}
    for name, title, why, missing in _CHARTS:
        what = svg(drawn[name]) if name in drawn else f"<p>None: {missing}.</p>"
        yield f'<h2>{title}</h2>\n<p class="why">{why}</p>\n{what}'
