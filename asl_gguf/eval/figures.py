"""Figures of results with matplotlib (the extra `plots`), as SVG. All of them read in black and white."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import mean
from typing import Any

from ..inspect.plots import require_matplotlib
from .results import FULL, Row
from .statistics import budget_share, group, mean_of_tasks, policies_of, run_alike, wilson
from .summary import filled

_LINES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
_HATCHES = ("", "///", "...", "xxx", "\\\\\\", "+++", "ooo", "---", "***", "|||")
_GREYS = ("black", "0.25", "0.45", "0.6")
_COLUMNS = 3


@dataclass(frozen=True)
class Drawing:
    """A figure and what it shows."""

    name: str
    """of its file, without suffix"""
    title: str
    text: str
    """what the axes and marks mean"""
    figure: Any
    """matplotlib.figure.Figure"""

    def markdown(self, folder: str) -> str:
        """A link to its file in this folder, with what it shows."""
        return f"![{self.title}]({folder}/{self.name}.svg)\n\n" + filled(f"{self.title}. {self.text}")

    def svg(self) -> bytes:
        """The same bytes for the same results."""
        from matplotlib import rc_context

        data = io.BytesIO()
        with rc_context({"svg.hashsalt": self.name}):
            self.figure.savefig(data, format="svg", metadata={"Date": None, "Creator": None})
        return data.getvalue()


def drawings(rows: Sequence[Row]) -> list[Drawing]:
    """All figures that these results have values for.

    Raises:
        OptionError: matplotlib is not installed.
    """
    require_matplotlib("asl-gguf report --html")
    styles = {name: i for i, name in enumerate(policies_of(rows))}
    made: list[Drawing] = []
    lengths = sorted({row["length"] for row in rows if not _in_grid(row)})
    for length in lengths:
        of_length = [row for row in rows if row["length"] == length and not _in_grid(row)]
        means = run_alike(of_length)[0]
        made += [_accuracy(of_length, length, styles), _speed(means, length, styles)]
        made += [drawn for drawn in (_layers(means, length), _memory(means, length, styles)) if drawn]
    return [*_heat_maps([row for row in rows if _in_grid(row)]), *made]


def _in_grid(row: Row) -> bool:
    return str(row["task"]).partition(":")[0] == "niah"


def _panels(n: int, width: float, height: float, **more: Any) -> tuple[Any, list[Any]]:
    """A figure of n axes, and these."""
    from matplotlib.figure import Figure

    n_columns = min(n, _COLUMNS)
    n_rows = math.ceil(n / n_columns)
    figure = Figure(figsize=(width * n_columns, height * n_rows + 0.5), layout="constrained")
    axes = list(figure.subplots(n_rows, n_columns, squeeze=False, **more).flat)
    for empty in axes[n:]:
        empty.set_visible(False)
    for above in axes[max(0, n - n_columns) : n]:  # the lowest of its column, also where the one below is empty
        above.tick_params(labelbottom=True)
    return figure, axes[:n]


def _style(number: int) -> dict[str, Any]:
    return {
        "color": _GREYS[number % len(_GREYS)],
        "linestyle": _LINES[number % len(_LINES)],
        "marker": _MARKERS[number % len(_MARKERS)],
        "markerfacecolor": "white" if number % 2 else _GREYS[number % len(_GREYS)],
        "markersize": 5,
        "linewidth": 1.2,
    }


def _heat_maps(rows: Sequence[Row]) -> Iterator[Drawing]:
    """Score by depth and length, one map for each policy and budget."""
    for (task,), of_task in group(rows, "task").items():
        lengths = sorted({row["length"] for row in of_task})
        depths = sorted({row["depths"][0] for row in of_task})
        cells = sorted(
            group(of_task, "policy", "budget").items(),
            key=lambda cell: (cell[0][0] != FULL, isinstance(cell[0][1], str), cell[0][1] or 0),
        )
        figure, axes = _panels(len(cells), 3.0, 0.9 + 0.25 * len(depths), sharex=True, sharey=True)
        for axis, ((policy, budget), answers) in zip(axes, cells):
            scores = group([row | {"depth": row["depths"][0]} for row in answers], "depth", "length")
            values = [
                [mean(row["score"] for row in scores[depth, length]) if (depth, length) in scores else math.nan
                 for length in lengths]
                for depth in depths
            ]  # fmt: skip
            image = axis.imshow(values, cmap="gray", vmin=0, vmax=1, aspect="auto")
            for y, line in enumerate(values):
                for x, value in enumerate(line):
                    text = "-" if math.isnan(value) else f"{value:.2g}"
                    axis.text(
                        x, y, text, ha="center", va="center", color="black" if not value < 0.5 else "white", size=7
                    )
            axis.set_facecolor("0.75")  # of cells without a result
            axis.set_title(policy if budget is None else f"{policy}, budget {budget}", size=8, loc="left")
            axis.set_xticks(range(len(lengths)), [str(length) for length in lengths], size=7, rotation=45)
            axis.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths], size=7)
        figure.supxlabel("prompt length in tokens", size=9)
        figure.supylabel("depth of the needle", size=9)
        figure.colorbar(image, ax=axes, label="score (white: found)", shrink=0.8)
        yield Drawing(
            f"heat-{task.replace(':', '-')}", f"Needle in a haystack: {task}",
            "Mean score of a needle by its depth and the prompt's length: 1 is found, 0 is lost.", figure,
        )  # fmt: skip


def _accuracy(rows: Sequence[Row], length: int, styles: dict[str, int]) -> Drawing:
    tasks = [*dict.fromkeys(row["task"] for row in rows), "all tasks"]
    figure, axes = _panels(len(tasks), 3.4, 2.5, sharex=True, sharey=True)
    for axis, task in zip(axes, tasks):
        of_task = [row for row in rows if task in (row["task"], "all tasks")]
        _curves(axis, of_task, styles, lambda answers: mean(map(budget_share, answers)), side_by_side=True)
        axis.set_title(task, size=9, loc="left")
    figure.supxlabel("budget, share of the prompt's tokens", size=9)
    figure.supylabel("score", size=9)
    _legend(figure, axes)
    return Drawing(
        f"accuracy-{length}", f"Score by budget, {length} tokens",
        "Mean score; bars: 95 % Wilson intervals of the number of prompts. Grey line: the full cache. Policies "
        "of one budget stand side by side.", figure,
    )  # fmt: skip


def _speed(rows: Sequence[Row], length: int, styles: dict[str, int]) -> Drawing:
    """Score against the prefill's seconds, where they were measured, and its share of the full one's arithmetic."""
    columns = {"prefill_seconds": "prefill, seconds", "prefill_share": "prefill, share of the full one's token-layers"}
    shown = {name: [row for row in rows if name in row] for name in columns}
    names = [name for name in columns if shown[name]]
    figure, axes = _panels(len(names), 4.6, 3.4, sharey=True)
    for axis, name in zip(axes, names):
        _curves(axis, shown[name], styles, partial(_mean_of_column, name=name), mark_full=True)
        axis.set_xlabel(columns[name])
    axes[0].set_ylabel("score, mean over tasks")
    _legend(figure, axes)
    return Drawing(
        f"prefill-{length}", f"Score by prefill time, {length} tokens",
        "Each mark is a budget, the dotted line the full cache's prefill. Left is faster, up is better; bars: 95 % "
        f"Wilson intervals. Seconds are means, of a prefill by itself. Tasks: {_tasks(rows)}.", figure,
    )  # fmt: skip


def _mean_of_column(answers: Sequence[Row], name: str) -> float:
    return mean(row[name] for row in answers)


def _curves(
    axis: Any,
    rows: Sequence[Row],
    styles: dict[str, int],
    x_of: Callable[[list[Row]], float],
    *,
    mark_full: bool = False,
    side_by_side: bool = False,
) -> None:
    """Score of each policy against x_of(answers), one mark for each budget.

    mark_full: a line at the full cache's x. side_by_side: policies a little apart, for those of one x.
    """
    step = 0.006 * max(map(x_of, group(rows, "policy", "budget").values())) if side_by_side else 0.0
    for (policy,), answers in group(rows, "policy").items():
        points = []
        for of_budget in group(answers, "budget").values():
            score = mean_of_tasks(of_budget)
            low, high = wilson(score, len(of_budget))
            points.append((x_of(of_budget), score, max(0.0, score - low), max(0.0, high - score)))
        x, y, below, above = zip(*sorted(points))
        if policy == FULL:
            axis.axhline(y[0], color="0.7", linewidth=3, zorder=0, label="none (full cache)")
            if mark_full:
                axis.axvline(x[0], color="0.5", linewidth=1, linestyle=":", zorder=0)
        elif answers[0]["budget"] is None:  # another engine's full cache
            axis.axhline(y[0], color="0.4", linewidth=1, linestyle=(0, (1, 1)), zorder=0, label=policy)
        else:
            shift = step * (styles[policy] - max(styles.values()) / 2)
            moved = [value + shift for value in x]
            axis.errorbar(
                moved, y, yerr=(below, above), capsize=2, elinewidth=0.6, label=policy, **_style(styles[policy])
            )
    axis.set_ylim(-0.03, 1.05)
    axis.set_xlim(left=0)
    axis.spines[["top", "right"]].set_visible(False)


def _legend(figure: Any, axes: Sequence[Any]) -> None:
    named = {label: mark for axis in axes for mark, label in zip(*axis.get_legend_handles_labels())}
    figure.legend(named.values(), named.keys(), loc="outside upper center", ncols=4, frameon=False, fontsize=8)


def _layers(rows: Sequence[Row], length: int) -> Drawing | None:
    """Selection layers by task, of the policies that choose among several."""
    by_policy = {
        policy: answers
        for (policy,), answers in group([row for row in rows if row["selection_layer"] is not None], "policy").items()
        if len({row["selection_layer"] for row in answers}) > 1
    }
    if not by_policy:
        return None
    figure, axes = _panels(len(by_policy), 4.0, 2.8, sharex=True)
    n_layer = max(row["n_layer"] for row in rows)
    for axis, (policy, answers) in zip(axes, by_policy.items()):
        below = [0] * n_layer
        for number, ((task,), of_task) in enumerate(group(answers, "task").items()):
            counts = [sum(row["selection_layer"] == layer for row in of_task) for layer in range(n_layer)]
            seen = [layer for layer, count in enumerate(counts) if count]
            axis.bar(
                seen, [counts[layer] for layer in seen], bottom=[below[layer] for layer in seen], label=task, width=0.9,
                color=str(0.95 - 0.3 * (number % 2)), edgecolor="black", linewidth=0.5,
                hatch=_HATCHES[number % len(_HATCHES)],
            )  # fmt: skip
            below = [under + count for under, count in zip(below, counts)]
        n_never = sum(row["policy"] == policy and row["selection_layer"] is None for row in rows)
        axis.set_title(f"{policy} ({n_never} answers never)", size=9, loc="left")
        axis.set_xlim(-0.5, n_layer - 0.5)
        axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("selection layer, counted from 0", size=9)
    figure.supylabel("answers", size=9)
    _legend(figure, axes)
    return Drawing(
        f"layers-{length}", f"Selection layers by task, {length} tokens",
        "Last layer that saw all tokens, over all budgets; policies with one fixed layer are left out.", figure,
    )  # fmt: skip


def _memory(rows: Sequence[Row], length: int, styles: dict[str, int]) -> Drawing | None:
    measured = [row for row in rows if "kv_bytes" in row]
    if not measured:
        return None
    bars = [
        (policy, budget, mean(row["kv_bytes"] for row in answers) / 2**20)
        for (policy, budget), answers in group(measured, "policy", "budget").items()
    ]
    bars.sort(key=lambda bar: (bar[0] != FULL, styles[bar[0]], bar[1] or 0))
    figure, (axis,) = _panels(1, 6.5, 0.6 + 0.2 * len(bars))
    names = [policy if budget is None else f"{policy}, {budget}" for policy, budget, _ in bars]
    drawn = axis.barh(range(len(bars)), [size for *_, size in bars], color="0.85", edgecolor="black", linewidth=0.6)
    for bar, (policy, *_) in zip(drawn, bars):
        bar.set_hatch(_HATCHES[styles[policy] % len(_HATCHES)])
    axis.bar_label(drawn, fmt="%.1f", padding=3, fontsize=7)
    axis.set_yticks(range(len(bars)), names, size=7)
    axis.invert_yaxis()
    axis.set_xlabel("K/V of the prompt in MiB")
    axis.spines[["top", "right"]].set_visible(False)
    return Drawing(
        f"memory-{length}", f"K/V memory, {length} tokens",
        f"K/V that is left of a prompt, mean over these tasks: {_tasks(rows)}.", figure,
    )  # fmt: skip


def _tasks(rows: Sequence[Row]) -> str:
    return ", ".join(dict.fromkeys(str(row["task"]) for row in rows))
