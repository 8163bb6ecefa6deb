"""The picture of `asl-gguf calibrate`: an SVG of the profile, in black and white."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from ...models.calibration import Calibration

_WIDTH, _LEFT, _RIGHT = 760, 86, 44
_TOPS, _HEIGHT = (74, 366), 230
_TOTAL = 650
_SOLID, _DASHED, _DOTTED = "", "7 4", "2 3"

Point = tuple[float, float]


@dataclass(frozen=True)
class _Panel:
    """A plot area: layers to the right, values up."""

    top: float
    layers: tuple[int, int]
    low: float
    high: float

    def x(self, layer: float) -> float:
        first, last = self.layers
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (layer - first + 0.5) / (last - first + 1)

    def y(self, value: float) -> float:
        return self.top + _HEIGHT * (self.high - value) / (self.high - self.low)

    def points(self, layers: Sequence[float], values: Sequence[float]) -> list[Point]:
        return [(self.x(layer), self.y(value)) for layer, value in zip(layers, values)]


def picture(found: Calibration) -> str:
    """SVG text: variance and quality by layer, easy and hard prompts, the chosen min_layer and tau."""
    body = [*_head(found), *_variance_panel(found), *_quality_panel(found)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_TOTAL}" '
        f'viewBox="0 0 {_WIDTH} {_TOTAL}" font-family="sans-serif" font-size="13" fill="black">\n'
        '<rect width="100%" height="100%" fill="white"/>\n' + "\n".join(body) + "\n</svg>\n"
    )


def _head(found: Calibration) -> list[str]:
    names = {"peak": "peak so far", "first": "value at min_layer", "random": "that of random ranks"}
    reference = names[found.settings["variance_reference"]]
    lines = [
        _text(_LEFT, 22, f"{found.policy}: min_layer {found.min_layer}, tau {found.tau:g}", size=16),
        _text(_LEFT, 42, f"budget {found.budget}, {found.tokens} tokens, tradeoff {found.tradeoff:g}", size=12),
    ]
    for x, name, dash, mark in ((440, "easy prompts", _SOLID, _circle), (590, "hard prompts", _DASHED, _square)):
        lines += [_line([(x, 18), (x + 36, 18)], dash), mark(x + 18, 18), _text(x + 42, 22, name)]
    lines += [_line([(440, 38), (476, 38)], _DOTTED), _text(482, 42, f"tau × {reference}: selects below")]
    return lines


def _variance_panel(found: Calibration) -> list[str]:
    profile = found.profile
    layers = list(profile.observed)
    high = max(*profile.variance_easy, *profile.variance_hard) or 1.0
    panel = _Panel(_TOPS[0], (layers[0], layers[-1]), 0.0, 1.06 * high)
    lines = _axes(panel, "rank variance, squared ranks", "layer")
    lines += _curve(panel, layers, profile.variance_easy, _SOLID, _circle)
    lines += _curve(panel, layers, profile.variance_hard, _DASHED, _square)
    start = layers.index(found.min_layer)
    for name, values in (("easy", profile.variance_easy), ("hard", profile.variance_hard)):
        # of a few layers, earlier ones serve as the reference too
        monitored = _thresholds(found, values)[start:] if profile.asked else _thresholds(found, values[start:])
        points = panel.points(layers[start:], monitored)
        lines += [_line(points, _DOTTED), _text(_WIDTH - _RIGHT + 4, points[-1][1] + 4, name, size=12)]
    lines += _min_layer(panel, found.min_layer)
    return lines


def _thresholds(found: Calibration, monitored: Sequence[float]) -> list[float]:
    """tau times the reference at each monitored layer."""
    kind = found.settings["variance_reference"]
    if kind == "random":
        return [found.tau * found.profile.random_variance] * len(monitored)
    return [found.tau * (max(monitored[: i + 1]) if kind == "peak" else monitored[0]) for i in range(len(monitored))]


def _quality_panel(found: Calibration) -> list[str]:
    profile = found.profile
    values = (*profile.nll_loss_easy, *profile.nll_loss_hard)
    low, high = min(0.0, *values), max(values) if max(values) > 0 else 1.0
    margin = 0.06 * (high - low)
    panel = _Panel(_TOPS[1], (profile.first_layer, profile.n_layer - 1), low - margin, high + margin)
    lines = _axes(panel, "more NLL than full cache, nats/token", "selection layer (the last one: nothing is selected)")
    lines.append(_line([(_LEFT, panel.y(0)), (_WIDTH - _RIGHT, panel.y(0))], _SOLID, 0.6))
    lines += _curve(panel, profile.layers, profile.nll_loss_easy, _SOLID, _circle)
    lines += _curve(panel, profile.layers, profile.nll_loss_hard, _DASHED, _square)
    for name, fill, layer, y in (
        ("easy", "black", found.after.layer_easy, panel.top + 16),
        ("hard", "white", found.after.layer_hard, panel.top + 36),
    ):
        x = panel.x(layer)
        lines.append(f'<path d="M{x - 5:.1f} {y - 9:.1f}h10l-5 10z" fill="{fill}" stroke="black"/>')
        leftwards = x > (_LEFT + _WIDTH) / 2
        text = f"{name} prompts select at {layer:.1f}"
        lines.append(_text(x - 10 if leftwards else x + 10, y, text, anchor="end" if leftwards else "start", size=12))
    return lines


def _min_layer(panel: _Panel, layer: int) -> list[str]:
    x = panel.x(layer)
    return [
        _line([(x, panel.top), (x, panel.top + _HEIGHT)], _SOLID, 1.2),
        _text(x, panel.top - 5, f"min_layer {layer}", anchor="middle", size=12),
    ]


def _axes(panel: _Panel, label: str, below: str) -> list[str]:
    bottom, right = panel.top + _HEIGHT, _WIDTH - _RIGHT
    corners = [(_LEFT, panel.top), (right, panel.top), (right, bottom), (_LEFT, bottom), (_LEFT, panel.top)]
    lines = [_line(corners, _SOLID, 0.8)]
    for layer in range(panel.layers[0], panel.layers[1] + 1, 1 if panel.layers[1] - panel.layers[0] < 40 else 4):
        lines.append(_line([(panel.x(layer), bottom), (panel.x(layer), bottom + 4)], _SOLID, 0.8))
        lines.append(_text(panel.x(layer), bottom + 18, str(layer), anchor="middle", size=11))
    for value in _ticks(panel.low, panel.high):
        y = panel.y(value)
        lines.append(_line([(_LEFT - 4, y), (_LEFT, y)], _SOLID, 0.8))
        lines.append(_text(_LEFT - 8, y + 4, f"{value:g}", anchor="end", size=11))
    middle = panel.top + _HEIGHT / 2
    lines.append(f'<g transform="rotate(-90 20 {middle:g})">{_text(20, middle, label, anchor="middle")}</g>')
    lines.append(_text((_LEFT + right) / 2, bottom + 40, below, anchor="middle"))
    return lines


def _ticks(low: float, high: float) -> list[float]:
    """Four to nine round numbers between the two."""
    rough = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= rough)
    return [round(step * i, 10) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _curve(
    panel: _Panel, layers: Sequence[int], values: Sequence[float], dash: str, mark: Callable[[float, float], str]
) -> list[str]:
    points = panel.points(layers, values)
    return [_line(points, dash), *(mark(*point) for point in points)]


def _line(points: Sequence[Point], dash: str, width: float = 1.5) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<polyline points="{path}" fill="none" stroke="black" stroke-width="{width:g}"{dashes}/>'


def _circle(x: float, y: float) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2"/>'


def _square(x: float, y: float) -> str:
    return f'<rect x="{x - 3:.1f}" y="{y - 3:.1f}" width="6" height="6" fill="white" stroke="black"/>'


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 13) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{escape(text)}</text>'
