"""An inspection as one HTML page: no scripts, nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from html import escape

import numpy as np

from .inspection import Inspection
from .plots import charts, svg

_SHADES = 10

_CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {0x7F: 0x2421}
"""control characters to pictures of them: HTML has no other way to show them"""

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.45 system-ui, sans-serif; color: #111; background: #fff; max-width: 60rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; } dt { color: #444; } dd { margin: 0; }
pre { font: 13px/1.7 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
.prompt { border: 1px solid #aaa; padding: .8rem; max-height: 40rem; overflow: auto; color: #6b6b6b; }
.kept { background: #ffe08a; color: #000; font-weight: 600; border-bottom: 2px solid #000; }
.fixed { outline: 1px dashed #000; outline-offset: -1px; }
.chart { width: 100%; height: auto; font: 12px system-ui, sans-serif; }
.chart text { paint-order: stroke; stroke: #fff; stroke-width: 3px; }
.axis { stroke: #000; } .grid { stroke: #ddd; }
.trace { fill: none; stroke: #000; stroke-width: 1.5; }
circle.mark { fill: #000; } rect.mark { fill: #9a9a9a; stroke: #000; stroke-width: .5; }
@media print { .prompt { max-height: none; } }
.tau { stroke: #000; stroke-dasharray: 7 4; } .selection { stroke: #000; stroke-width: 1.5; stroke-dasharray: 2 3; }
"""


def page(inspection: Inspection) -> str:
    """The whole page."""
    title = f"{inspection.policy.name} on {inspection.model}"
    body = "\n".join([_facts(inspection), _prompt(inspection), *_charts(inspection)])
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_escape(title)}</title>
<style>{_STYLE}{_shade_styles()}</style>
</head>
<body>
<h1>{_escape(title)}</h1>
{body}
</body>
</html>
"""


def _escape(text: str) -> str:
    return escape(text.translate(_CONTROLS))


def _shade_styles() -> str:
    """Backgrounds from white to mid-grey, under black text."""
    greys = [255 - 115 * i // _SHADES for i in range(1, _SHADES + 1)]
    return "".join(f".s{i} {{ background: #{3 * f'{grey:02x}'}; color: #000; }}\n" for i, grey in enumerate(greys, 1))


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
        "prefill share": f"{share:.0%} of the token-layers of a full prefill",
        "attention mass": f"{report.attention_mass:.3f}" if inspection.attention_mass else "not measured",
        "prefill seconds": f"{report.prefill_seconds:.2f}{f' ({seconds})' if seconds else ''}{speed}",
    }
    if report.calibration:
        facts["calibration"] = report.calibration
    if report.reason:
        facts["note" if report.pruned else "not pruned"] = report.reason
    rows = "\n".join(f"<dt>{_escape(name)}</dt><dd>{_escape(value)}</dd>" for name, value in facts.items())
    return f'<dl>\n{rows}\n</dl>\n<h2>Answer</h2>\n<pre class="answer">{_escape(inspection.answer)}</pre>'


def _selection(inspection: Inspection) -> str:
    report = inspection.report
    if report.selection_layer is None:
        return f"none: every one of {report.n_layer} layers saw all tokens"
    again = "; the kept tokens ran again from layer 0" if report.passes > 1 else ""
    return f"{report.selection_layer} of layers 0 to {report.n_layer - 1}{again}"


def _prompt(inspection: Inspection) -> str:
    # the parser drops a line break that follows <pre>
    return f'<h2>Prompt</h2>\n{_legend(inspection)}\n<pre class="prompt">\n{"".join(_tokens(inspection))}</pre>'


def _legend(inspection: Inspection) -> str:
    report = inspection.report
    if not report.pruned:
        return "<p>All tokens were kept.</p>"
    if report.selected:
        text = f'<b class="kept">like this</b>: the {len(report.selected)} tokens that the deepest layers saw'
    else:
        shades = "".join(f'<span class="s{i}">&nbsp;{i * 100 // _SHADES}%&nbsp;</span>' for i in range(1, _SHADES + 1))
        text = f"{shades}: share of the pairs of layer and KV head whose rows hold the token"
    fixed = ", ".join(f"{name} {len(tokens)}" for name, tokens in inspection.always.items() if tokens)
    return f'<p>{text}; <b class="fixed">dashed box</b>: kept whatever the scores ({_escape(fixed)}).</p>'


def _tokens(inspection: Inspection) -> Iterable[str]:
    """One span per token."""
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
            classes.append(f"s{int(np.ceil(share * _SHADES - 1e-6))}")
        if names:
            classes.append("fixed")
        title = ", ".join([f"token {i}", f"in {share:.0%} of layers and heads", *names])
        yield f'<span class="{" ".join(classes)}" title="{title}">{_escape(piece)}</span>'


def _charts(inspection: Inspection) -> Iterable[str]:
    drawn = {chart.name: chart for chart in charts(inspection)}
    for name, title, missing in (
        ("variance", "Rank variance by layer", "this policy measures none"),
        ("attention_mass", "Attention mass by layer", "no layer that kept rows was scored"),
        ("rows", "K/V rows by layer", "the prompt was evaluated by llama.cpp itself"),
    ):
        what = svg(drawn[name]) if name in drawn else f"<p>None: {missing}.</p>"
        yield f"<h2>{title}</h2>\n{what}"
