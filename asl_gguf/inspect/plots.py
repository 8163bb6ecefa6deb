"""The charts of an inspection: SVG by hand, PNG by matplotlib (the extra `plots`). Both read well without colour."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from importlib import import_module
from pathlib import Path
from typing import Literal

from ..errors import OptionError
from .inspection import Inspection

_WIDTH, _HEIGHT = 760, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 26, 44
_MAX_TICKS = 16


@dataclass(frozen=True)
class Chart:
    """One value per layer, for some of the layers."""

    name: str
    """of its file, without suffix"""
    title: str
    y_label: str
    kind: Literal["line", "bars"]
    marks: tuple[tuple[int, float], ...]
    """(layer, value)"""
    n_layer: int
    y_max: float
    selection_layer: int | None = None
    tau: float | None = None
    """level of a horizontal line"""

    @property
    def y_ticks(self) -> list[float]:
        """Round numbers from 0 to y_max."""
        rough = self.y_max / 5
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * unit for factor in (1, 2, 2.5, 5, 10) if factor * unit >= rough * 0.999)
        return [i * step for i in range(int(self.y_max / step + 1e-6) + 1)]

    @property
    def x_ticks(self) -> range:
        """Layers that are named on the axis."""
        return range(0, self.n_layer, next(s for s in (1, 2, 5, 10, 20, 50, 100) if self.n_layer <= s * _MAX_TICKS))


def charts(inspection: Inspection) -> list[Chart]:
    """Variance trace, attention mass, K/V rows; those without values are left out."""
    report = inspection.report
    n_layer, selected = report.n_layer, report.selection_layer
    ratios = tuple((layer, ratio) for layer, _, ratio in report.variance)
    rows = tuple(enumerate(map(float, report.rows_by_layer)))
    tau = getattr(inspection.policy, "tau", None)
    ratio_max = 1.05 * max([1.0, tau or 0.0, *(ratio for _, ratio in ratios)])
    made = [
        Chart("variance", "Rank variance", "variance / reference", "line", ratios, n_layer, ratio_max, selected, tau),
        Chart(
            "attention_mass", "Attention mass on kept rows", "share of attention", "bars",
            inspection.attention_mass, n_layer, 1.0, selected,
        ),
        Chart(
            "rows", "K/V rows kept", "rows", "bars", rows, n_layer, max([1.0, *(value for _, value in rows)]), selected
        ),
    ]  # fmt: skip
    return [chart for chart in made if chart.marks]


def svg(chart: Chart) -> str:
    """The chart as an SVG element for an HTML page; its marks have the class "mark"."""
    parts = [*_axes(chart), *_marks(chart), *_references(chart)]
    return (
        f'<svg class="chart" id="{chart.name}" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escape(chart.title)}">\n' + "\n".join(parts) + "\n</svg>"
    )


def _x(chart: Chart, layer: float) -> float:
    """The middle of a layer's column."""
    return _LEFT + (layer + 0.5) / chart.n_layer * (_WIDTH - _LEFT - _RIGHT)


def _y(chart: Chart, value: float) -> float:
    return _HEIGHT - _BOTTOM - value / chart.y_max * (_HEIGHT - _TOP - _BOTTOM)


def _text(x: float, y: float, text: str, anchor: str = "middle", more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _axes(chart: Chart) -> Iterable[str]:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    for value in chart.y_ticks:
        y = _y(chart, value)
        yield _line(_LEFT, y, right, y, "axis" if value == 0 else "grid")
        yield _text(_LEFT - 6, y + 4, f"{value:g}", "end")
    for layer in chart.x_ticks:
        yield _text(_x(chart, layer), bottom + 16, str(layer))
    yield _line(_LEFT, _TOP, _LEFT, bottom, "axis")
    yield _text((_LEFT + right) / 2, _HEIGHT - 8, "layer")
    middle = (_TOP + bottom) / 2
    yield _text(14, middle, chart.y_label, more=f' transform="rotate(-90 14 {middle:.1f})"')


def _references(chart: Chart) -> Iterable[str]:
    """The selection layer and tau."""
    if chart.selection_layer is not None:
        x = _x(chart, chart.selection_layer)
        yield _line(x, _TOP - 6, x, _HEIGHT - _BOTTOM, "selection")
        left = chart.selection_layer < chart.n_layer / 2
        yield _text(x, _TOP - 10, _selection_label(chart), "start" if left else "end")
    if chart.tau is not None:
        y = _y(chart, chart.tau)
        yield _line(_LEFT, y, _WIDTH - _RIGHT, y, "tau")
        yield _text(_LEFT + 6, y - 5, _tau_label(chart), "start")


def _selection_label(chart: Chart) -> str:
    return f"selection layer {chart.selection_layer}"


def _tau_label(chart: Chart) -> str:
    return f"tau = {chart.tau:g}"


def _marks(chart: Chart) -> Iterable[str]:
    points = [(layer, value, _x(chart, layer), _y(chart, value)) for layer, value in chart.marks]
    if chart.kind == "line":
        yield f'<polyline class="trace" points="{" ".join(f"{x:.1f},{y:.1f}" for _, _, x, y in points)}"/>'
    width = 0.8 * (_WIDTH - _LEFT - _RIGHT) / chart.n_layer
    for layer, value, x, y in points:
        title = f"<title>layer {layer}: {value:.4g}</title>"
        if chart.kind == "line":
            yield f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="3.5">{title}</circle>'
        else:
            height = _HEIGHT - _BOTTOM - y
            yield (
                f'<rect class="mark" x="{x - width / 2:.1f}" y="{y:.1f}" width="{width:.1f}" '
                f'height="{height:.1f}">{title}</rect>'
            )


def require_matplotlib(option: str = "--png") -> None:
    """Raises OptionError where matplotlib is not installed. option: what needs it."""
    try:
        import_module("matplotlib")
    except ImportError:
        raise OptionError(
            f"{option}: expected matplotlib to be installed, found none; run pip install 'asl_gguf[plots]'"
        ) from None


def save_png(drawn: Sequence[Chart], folder: Path) -> list[Path]:
    """Writes each chart to folder/<name>.png.

    Raises:
        OptionError: matplotlib is not installed, or the folder cannot be written.
    """
    require_matplotlib()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [_save(chart, folder / f"{chart.name}.png") for chart in drawn]
    except OSError as err:
        raise OptionError(f"--png: expected a folder that can be written, got {folder}: {err}") from None


def _save(chart: Chart, path: Path) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2.8), dpi=150, layout="constrained")
    axes = figure.subplots()
    layers, values = zip(*chart.marks)
    if chart.kind == "line":
        axes.plot(layers, values, color="black", marker="o", markersize=4)
    else:
        axes.bar(layers, values, color="0.6", edgecolor="black", linewidth=0.5)
    if chart.tau is not None:
        axes.axhline(chart.tau, color="black", linestyle="--", linewidth=1, label=_tau_label(chart))
    if chart.selection_layer is not None:
        axes.axvline(chart.selection_layer, color="black", linestyle=":", linewidth=1.5, label=_selection_label(chart))
    if chart.tau is not None or chart.selection_layer is not None:
        figure.legend(loc="outside upper right", ncols=2, frameon=False)
    axes.set(
        xlim=(-0.5, chart.n_layer - 0.5), ylim=(0, chart.y_max), xticks=list(chart.x_ticks), xlabel="layer",
        ylabel=chart.y_label,
    )  # fmt: skip
    axes.set_title(chart.title, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Software": None})
    return path
