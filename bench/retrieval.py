"""Pruning beside retrieval (RAG) and a shorter context: the tasks of `asl-gguf eval`, each prompt under all of them.

    pip install bm25s PyStemmer                                        # for --embedder also onnxruntime and tokenizers
    python bench/retrieval.py MODEL.gguf --out FOLDER --samples 8     # prints the table; goes on where it was stopped
    python bench/retrieval.py MODEL.gguf --out FOLDER --samples 0     # the table of what is there

Retrieval cuts the document into passages, takes those that BM25 (or an embedding) finds closest to the question, up to
a share of the prompt's tokens, and evaluates instructions, passages and question with the full cache. Instructions and
question come on top of the share; pruning pays for them out of its own. "ends" are the document's begin and end.
CPU seconds are those of the process up to the prompt's last logits: cutting, indexing and ranking as well.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean

from passages import Count, Embedder, by_bm25, cut, from_ends, parts, take

from asl_gguf.budget.share import round_cells
from asl_gguf.engine.prefill import prefill
from asl_gguf.eval.chat_format import CHOICES, chat_format
from asl_gguf.eval.machine import processor
from asl_gguf.eval.measure import MOST_REFERENCE_TOKENS, answer_logits, measure
from asl_gguf.eval.results import FULL, Results, Row
from asl_gguf.eval.runner import late_budget, most_kept
from asl_gguf.eval.statistics import group, policies_of
from asl_gguf.eval.suites import FAMILIES, QUESTIONS, SEEDS, Files
from asl_gguf.eval.tasks import ChatFormat, Example, Task, label, make_task
from asl_gguf.models.named import resolve
from asl_gguf.native.context import model_shape
from asl_gguf.native.model import ContextOptions, Model
from asl_gguf.native.session import Session
from asl_gguf.policies import Full, parse_policy
from asl_gguf.report import PrefillReport

PRUNED = "asl-span"
KINDS = {
    "one place": ("niah_prose", "niah_noise", "passkey", "multikey", "rule", "turns", "identifier"),
    "look-ups": ("keyvalue", "function", "table", "records"),
    "several answers": ("multivalue", "compare", "sum"),
    "chains": ("tracking",),
    "all of the text": ("gist", "topics", "tone"),
    "people's questions": ("qa_1",),
}
KV_TYPES = {"q8_0": 8, "q4_0": 2}
_END_TOKENS = 16
"""tokens of the pieces that "ends" are made of"""
_LEAST_ANSWER = 256
_ONE_PASSAGE = 0.05
"""of retrieval alone: where one passage answers, fewer others distract less"""
_RETRIEVED, _COMBINED = 0.4, 0.2
"""shares of a prompt that is retrieved first and pruned then"""

Ranking = Callable[[str, Sequence[str]], list[int]]


@dataclass(frozen=True)
class Plan:
    """What is asked."""

    tasks: tuple[str, ...]
    length: int
    samples: int
    seed: int
    chat: ChatFormat


@dataclass(frozen=True)
class Way:
    """One way to answer a prompt.

    name: what it is filed under.
    share: tokens that are held, as a share of the prompt, `auto`, or None for all.
    source: where passages come from (bm25, embedding, ends); None: the prompt is evaluated as it is.
    taken: the share of the prompt's tokens that passages may have.
    pruned: whether the prompt that results is pruned to `share`.
    kv: the type of a full cache.
    """

    name: str
    share: float | str | None = None
    source: str | None = None
    taken: float = 0.0
    pruned: bool = False
    kv: str | None = None


def ways(shares: Sequence[float], embedder: bool, kv_types: Sequence[str]) -> list[Way]:
    """All of them, the full cache first. An embedding is asked for one share alone: it costs the most."""
    return [
        Way(FULL),
        *(Way(f"full cache, {kind}", kv=kind) for kind in kv_types),
        *(Way(PRUNED, share, pruned=True) for share in ("auto", *shares)),
        *(Way("bm25", share, "bm25", share) for share in (*shares, _ONE_PASSAGE)),
        *(Way("embedding", share, "embedding", share) for share in shares if embedder and share == _COMBINED),
        *(Way("ends", share, "ends", share) for share in shares),
        Way(f"bm25 {_RETRIEVED}, {PRUNED}", _COMBINED, "bm25", _RETRIEVED, pruned=True),
    ]


class Shortener:
    """Prompts with a part of their document."""

    def __init__(self, rankings: dict[str, Ranking], passage: int, count: Count) -> None:
        self._rankings, self._passage, self._count = rankings, passage, count

    def prompt(self, example: Example, source: str, share: float, n_full: int) -> str:
        """The prompt with passages of a share of its n_full tokens, at most."""
        before, document, after = parts(example)
        passages = cut(document, _END_TOKENS if source == "ends" else self._passage, self._count)
        order = from_ends(len(passages)) if source == "ends" else self._rankings[source](example.question, passages)
        return before + take(passages, order, int(share * n_full), self._count).strip("\n") + after


def answers(
    models: dict[str | None, Model], task: Task, example: Example, wanted: Sequence[Way], shorten: Shortener
) -> Iterator[Row]:
    """A row for each of these ways; the first one is the full cache."""
    n_full = len(models[None].tokenize(example.prompt))
    n_cells = round_cells(n_full + max(_LEAST_ANSWER, MOST_REFERENCE_TOKENS + 1, example.max_new_tokens))
    full, kv_full = None, 0
    for kv in dict.fromkeys(way.kv for way in wanted):
        model = models[kv]
        with model.context(n_cells) as ctx, model.session(ctx, n_cells, n_cells, "auto") as session:
            prefill(session, model.tokenize(example.prompt[:200]), Full(), n_cells)  # weights are packed
            for way in dict.fromkeys(way for way in wanted if way.kv == kv):
                started = time.process_time()
                prompt = (
                    example.prompt if way.source is None else shorten.prompt(example, way.source, way.taken, n_full)
                )
                ranked = time.process_time() - started
                tokens = model.tokenize(prompt)
                report = _prefill(model, session, tokens, way, n_full)
                spent = time.process_time() - started
                rows = answer_logits(model, ctx, len(tokens), example)
                full, kv_full = full or rows, kv_full or report.kv_bytes_prompt
                measures = measure(model, ctx, len(tokens), task, example, full=full, rows=rows)
                yield {
                    "policy": way.name,
                    "budget": way.share,
                    **asdict(measures),
                    "prompt_tokens": n_full,
                    "budget_tokens": report.budget_tokens,
                    "evaluated_tokens": len(tokens),
                    "selection_layer": report.selection_layer,
                    "prefill_share": round(report.prefill_share * len(tokens) / n_full, 4),
                    "kv_share": round(report.kv_bytes_prompt / kv_full, 4),
                    "kv_bytes": report.kv_bytes_prompt,
                    "cpu_seconds": round(spent, 4),
                    "ranking_seconds": round(ranked, 4),
                    "references": list(example.references),
                }


def _prefill(model: Model, session: Session, tokens: Sequence[int], way: Way, n_full: int) -> PrefillReport:
    """A prompt of these tokens, pruned to a share of n_full if the way says so."""
    if not way.pruned:
        return prefill(session, tokens, Full(), len(tokens))
    policy = parse_policy(PRUNED)
    n_kept = min(most_kept(way.share, n_full, policy), len(tokens))
    late = late_budget(way.share, policy, len(tokens), n_kept, model_shape(model.handle))
    return prefill(session, tokens, policy, n_kept if late is None else late.n_held, late=late)


def run(
    models: dict[str | None, Model], plan: Plan, wanted: Sequence[Way], shorten: Shortener, results: Results
) -> None:
    """Adds what the results lack, prompt by prompt: what is there when it is stopped is of all ways and tasks."""
    model = models[None]
    common = {"model": Path(model.path).name, "n_threads": model.options.n_threads, "processor": processor()}
    tasks = [
        make_task(spec, lambda text: len(model.tokenize(text)), plan.length, plan.samples, plan.seed, plan.chat)
        for spec in plan.tasks
    ]
    for index in range(plan.samples):
        for spec, task in zip(plan.tasks, tasks):
            key = {"task": label(spec), "length": plan.length, "index": index, "seed": plan.seed}
            missing = [way for way in wanted if (*key.values(), way.name, way.share) not in results]
            if missing and index in task.indices(()):
                for row in answers(models, task, task.get_example(index), [wanted[0], *missing], shorten):
                    if (*key.values(), row["policy"], row["budget"]) not in results:
                        results.add(key | row | common)
        print(f"{index + 1} prompts of each task", flush=True)


def table(rows: Sequence[Row]) -> str:
    """Markdown: a line for each way, a column for each kind of question; of the prompts that every way has answered."""
    policies = policies_of(rows)
    found = dict(sorted(group(rows, "policy", "budget").items(), key=lambda item: policies.index(item[0][0])))
    keyed = {name: {(row["task"], row["index"]): row for row in of_way} for name, of_way in found.items()}
    examples = [one for one in keyed.get((FULL, None), {}) if all(one in of_way for of_way in keyed.values())]
    if not examples:
        return "No prompt was answered in every way yet."
    kinds = {kind: [one for one in examples if one[0].partition(":")[0] in tasks] for kind, tasks in KINDS.items()}
    kinds = {kind: these for kind, these in (kinds | {"all": examples}).items() if these}
    titles = [f"{kind} ({len(these)})" for kind, these in kinds.items()]
    lines = [f"| | {' | '.join(titles)} | read | K/V | CPU s |", "|---" * (len(kinds) + 4) + "|"]
    for (policy, budget), of_way in keyed.items():
        cells = []
        for these in kinds.values():
            nats = f"{mean(of_way[one]['nll'] for one in these):.2f}"
            if policy != FULL:
                full = keyed[FULL, None]
                nats = f"{mean(of_way[one]['nll'] - full[one]['nll'] for one in these):+.2f}"
            cells.append(f"{mean(of_way[one]['score'] for one in these):.2f}, {nats}")
        own = [of_way[one] for one in examples]
        cells.append(f"{mean(row['evaluated_tokens'] / row['prompt_tokens'] for row in own):.2f}")
        cells += [f"{mean(row[name] for row in own):.2f}" for name in ("kv_share", "cpu_seconds")]
        title = "full cache" if policy == FULL else policy if budget is None else f"{policy}, {budget}"
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--out", type=Path, required=True, help="folder for results")
    parser.add_argument("--samples", type=int, default=8, help="prompts of each task (default %(default)s)")
    parser.add_argument("--length", type=int, default=1024, help="tokens of a prompt (default %(default)s)")
    parser.add_argument("--seed", choices=SEEDS, default="report")
    parser.add_argument(
        "--tasks", nargs="+", default=(*FAMILIES, "niah_noise", *QUESTIONS), help="default: 18 families"
    )
    parser.add_argument("--squad", help="SQuAD's dev-v2.0.json, for qa_1")
    parser.add_argument("--chat", choices=CHOICES, default="auto")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.2, 0.1], help="of the tokens (default 0.2 0.1)")
    parser.add_argument("--passage", type=int, default=32, help="tokens of a passage, at most (default %(default)s)")
    parser.add_argument(
        "--embedder", type=Path, help="folder with model.onnx and tokenizer.json of a sentence-transformers model"
    )
    parser.add_argument(
        "--kv-types", nargs="*", choices=KV_TYPES, default=(), help="full caches of these types as well"
    )
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    path = str(resolve(args.model))
    options = ContextOptions(n_threads=args.threads)
    models: dict[str | None, Model] = {None: Model(path, options)}
    for kind in args.kv_types:
        models[kind] = Model(path, replace(options, kv_type=KV_TYPES[kind], flash_attn=True))
    results = Results(args.out)
    if args.samples:
        model, files = models[None], Files(squad=args.squad)
        chat = chat_format(model, args.chat)
        rankings: dict[str, Ranking] = {"bm25": by_bm25}
        if args.embedder:
            rankings["embedding"] = Embedder(args.embedder)
        specs = [files.spec(name) for name in args.tasks]
        plan = Plan(tuple(specs), args.length, args.samples, SEEDS[args.seed], chat)
        run(
            models,
            plan,
            ways(args.shares, bool(args.embedder), args.kv_types),
            Shortener(rankings, args.passage, lambda text: len(model.tokenize_plain(text))),
            results,
        )
    print(table([row for row in results.rows if row["length"] == args.length]))
    for model in models.values():
        model.close()


if __name__ == "__main__":
    main()
