"""Markdown tables of results."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Sequence
from statistics import mean, median

from .results import FULL, Row
from .statistics import decode_speed, group, mean_of, mean_of_tasks, relative_score, run_alike

__all__ = ["document", "group", "relative_score", "table"]

_OPTIONAL = {"kl": "KL", "top1_agreement": "top-1"}
"""columns that results of earlier versions lack"""
_WIDTH = 120
_ORIGIN = """\
Tasks and scoring are those of RULER and InfiniteBench (`asl_gguf/eval/tasks`), on prompts of exactly chosen length. A policy \
that drops other keys' values can score above the full cache: then it drops distractors."""
_COLUMNS = """\
Tables of answers: the score of each task (share of the answers found), of all, and that as a share of the full cache's on the \
same examples; mean negative log-likelihood of the right answer; median selection layer; mean shares of the full prefill's \
token-layers that were computed, and of the K/V that were kept. Over the right answer's tokens: divergence of the next-token \
distribution from the full cache's (KL, nats), and share of positions with the same likeliest token (top-1). Of a text: share of \
its tokens that are the likeliest ones, and perplexity."""
_COSTS = """\
Tables of time and memory, all means: seconds of the prefill (layers that several policies share count for each), their ratio to \
the full cache's, tokens per second of the answers, K/V of the prompt, and the share of attention that they hold."""


def table(rows: Sequence[Row], length: int) -> str:
    """Markdown: one line per policy and budget, one column per task, at one prompt length."""
    rows = [row for row in rows if row["length"] == length]
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    full = [row for row in rows if row["policy"] == FULL]
    counts = sorted({len(values) for values in group(full, "task").values()})
    n_examples = " to ".join(map(str, dict.fromkeys([*counts[:1], *counts[-1:]]))) or "0"
    optional = [name for name in _OPTIONAL if any(name in row for row in rows)]
    texts = [task for task in tasks if _is_text(task)]
    lines = [
        f"{length} tokens, {n_examples} examples a task.",
        "",
        f"| policy | budget | {' | '.join(tasks)} | all | of full | nll | layer | prefill | K/V |"
        + "".join(f" {_OPTIONAL[name]} |" for name in optional)
        + " perplexity |" * bool(texts),
        "|---" * (len(tasks) + 8 + len(optional) + bool(texts)) + "|",
    ]  # fmt: skip
    for (policy, budget), answers in ordered(rows):
        more = [_number(mean_of(answers, name), 2) for name in optional]
        if texts:
            nll = mean_of([row for row in answers if _is_text(row["task"])], "nll")
            more.append(_number(None if nll is None else math.exp(nll), 2))
        lines.append(_line(policy, budget, answers, full, tasks) + "".join(f" {text} |" for text in more))
    return "\n".join(lines)


def _is_text(task: str) -> bool:
    """A text to go on with, rather than a question."""
    return task.partition(":")[0] == "text"


def costs(rows: Sequence[Row], length: int) -> str:
    """Markdown: time and memory at one prompt length; empty for results of versions that did not measure them."""
    rows = [row for row in rows if row["length"] == length and "prefill_seconds" in row]
    base = mean_of([row for row in rows if row["policy"] == FULL], "prefill_seconds")
    if base is None:
        return ""
    lines = [
        f"{length} tokens: time and memory.",
        "",
        "| policy | budget | prefill s | of full | decoding tokens/s | K/V MiB | attention kept |",
        "|---|---|---|---|---|---|---|",
    ]
    for (policy, budget), answers in ordered(rows):
        seconds = mean_of(answers, "prefill_seconds") or 0.0
        lines.append(
            f"| {policy} | {'' if budget is None else budget} | {seconds:.2f} | {seconds / base:.2f} "
            f"| {_number(decode_speed(answers), 1)} | {mean(row['kv_bytes'] for row in answers) / 2**20:.1f} "
            f"| {_number(mean_of(answers, 'attention_mass'), 2)} |"
        )
    return "\n".join(lines)


def document(rows: Sequence[Row], title: str = "Answers under pruning", figures: Sequence[str] = ()) -> str:
    """Markdown: where the results come from, the figures (Markdown too), and tables for each prompt length, one for the tasks
    that were run alike."""

    def used(name: str) -> str:
        return ", ".join(str(value) for value in dict.fromkeys(row[name] for row in rows))

    lengths = sorted({row["length"] for row in rows})
    origin = (
        f"Model {used('model')}, seed {used('seed')} (0: development, 1: reporting). Made by `asl-gguf report` from the "
        "results of"
    )
    commands = "\n".join(_commands(rows))
    head = [f"# {title}", filled(origin), textwrap.indent(commands, "    "), filled(_ORIGIN)]
    told = [filled(_COLUMNS), *([filled(_COSTS)] if any("prefill_seconds" in row for row in rows) else [])]
    parts = [
        text
        for length in lengths
        for alike in run_alike(row for row in rows if row["length"] == length)
        for text in (table(alike, length), costs(alike, length))
        if text
    ]
    return "\n\n".join([*head, *filter(None, [filled(effort(rows))]), *figures, *told, *parts])


def filled(text: str) -> str:
    """A paragraph in lines of at most _WIDTH characters."""
    return textwrap.fill(text, _WIDTH, break_long_words=False, break_on_hyphens=False)


def effort(rows: Sequence[Row]) -> str:
    """Markdown: what the answers took, and what sharing prefills saved; empty for results that do not say."""
    timed = [row for row in rows if "seconds" in row]
    if not timed:
        return ""
    seconds = sum(row["seconds"] for row in timed)
    threads = ", ".join(sorted({str(row["n_threads"]) for row in timed}))
    text = (
        f"{len(timed):,} answers took {seconds / 60:.1f} minutes of wall clock (threads: {threads}; "
        f"{', '.join(sorted({row['processor'] for row in timed}))})."
    )
    alone = sum(row["prefill_seconds"] for row in timed if row["shared"])
    if alone:
        spent = sum(row["prefill_spent"] for row in timed if row["shared"])
        text += (
            f" Their prefills took {spent:.0f} s of these; each by itself would have taken {alone:.0f} s in all: layers "
            "that policies run alike ran once."
        )
    return text


def _commands(rows: Sequence[Row]) -> list[str]:
    """The calls that run what these rows hold: of `asl-gguf eval` one for all tasks that were run alike."""
    given = dict.fromkeys(row["command"] for row in rows if "command" in row)
    alike: dict[str, list[str]] = {}
    for (task,), of_task in group([row for row in rows if "command" not in row], "task").items():
        pruned = [row for row in of_task if row["policy"] != FULL]
        budgets = sorted({row["budget"] for row in pruned}, key=_budget_order)
        depths, samples = {row["index"] % 101 for row in of_task}, len({row["index"] for row in of_task})
        grid = task.partition(":")[0] == "niah"
        options = [
            f"--lengths {','.join(map(str, sorted({row['length'] for row in of_task})))}",
            f"--seed {','.join(dict.fromkeys(str(row['seed']) for row in of_task))}",
            f"--budgets {','.join(map(str, budgets))}" if budgets else "",
            f"--policies {','.join(dict.fromkeys(row['policy'] for row in pruned))}" if pruned else "--policies none",
            f"--samples {samples // len(depths) if grid else samples}",
            f"--depths {','.join(map(str, sorted(depths)))}" if grid else "",
        ]
        alike.setdefault(" ".join(option for option in options if option), []).append(task)
    return [
        *(
            _continued(f"asl-gguf eval --tasks {','.join(tasks)} {options} --out FOLDER")
            for options, tasks in alike.items()
        ),
        *given,
    ]


def _continued(command: str) -> str:
    """A command in several lines, each option beside its value."""
    bound = re.sub(r"(--\S+) (?!--)", r"\1\0", command)
    lines = textwrap.wrap(bound, _WIDTH - 10, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    return " \\\n".join(lines).replace("\0", " ")


def ordered(rows: Sequence[Row]) -> list[tuple[tuple, list[Row]]]:
    """Groups of rows by budget, then policy; the full cache comes first."""
    return sorted(
        group(rows, "policy", "budget").items(),
        key=lambda item: (item[0][0] != FULL, _budget_order(item[0][1]), item[0][0]),
    )


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _budget_order(budget: float | int | str | None) -> tuple[bool, float | int | str]:
    """Numbers by their size, then `auto` and its like."""
    return isinstance(budget, str), budget or 1


def _line(
    policy: str, budget: float | int | str | None, answers: list[Row], full: list[Row], tasks: Sequence[str]
) -> str:
    by_task = group(answers, "task")
    cells = [f"{mean(row['score'] for row in by_task[(task,)]):.2f}" if (task,) in by_task else "" for task in tasks]
    seen = {(row["task"], row["index"]) for row in answers}
    base = [row for row in full if (row["task"], row["index"]) in seen]
    of_full = relative_score(answers, base) if base else None
    layers = [row["selection_layer"] for row in answers if row["selection_layer"] is not None]
    n_never = len(answers) - len(layers)
    layer = f"{median(layers):.0f}" + (f" ({n_never} never)" if n_never else "") if layers else "-"
    return (
        f"| {policy} | {'' if budget is None else budget} | {' | '.join(cells)} | {mean_of_tasks(answers):.3f} "
        f"| {_number(of_full, 3)} | {mean(row['nll'] for row in answers):.2f} | {layer} "
        f"| {mean(row['prefill_share'] for row in answers):.2f} | {mean(row['kv_share'] for row in answers):.2f} |"
    )
