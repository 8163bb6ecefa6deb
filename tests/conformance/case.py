"""One model file through stock llama.cpp and through asl_gguf, in one process: `python case.py FILE` prints a JSON object.

`python case.py FILE --stock` runs stock llama.cpp alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from asl_gguf.engine.prefill import prefill
from asl_gguf.engine.turn import TurnLayers
from asl_gguf.errors import UnsupportedModelError
from asl_gguf.native import context as contexts
from asl_gguf.native import moving
from asl_gguf.native.bindings import lib
from asl_gguf.native.session import Session, sliding_layers, unsupported_reason
from asl_gguf.policies import make_policy
from harness import F16, Q8_0, Context, Model, Options
from sequences import Sequences

N_TOKENS = 150
N_KEPT = 60
N_ANSWER = 8
N_TURN = 40
"""tokens of a second turn"""
N_LONG = 8192 + 90
"""tokens where attention to chunks of 8,192 shows"""
WINDOW = 16
CHUNKS = ((64, 64), (48, 32), (256, 256))
"""n_batch, n_ubatch"""
POLICIES = ("fastkv:tsp_layer={first}", "asl-span", "gemfilter:select_layer={first}", "snapkv")
"""{first}: the first layer that a policy is asked about"""
INDEXER = ("indexer:tsp_layer={first}",)
"""where layers have one"""
CLOSE = 0.02
"""of the standard deviation of logits: what chunks of another size may change in a pruned prompt, by rounding"""
TIED = 1
"""kept tokens that chunks of another size may exchange: of two whose scores differ by less than rounding, either is right"""


@dataclass
class Result:
    """What a file did."""

    refused: str = ""
    """why it is refused at load"""
    failed: list[str] = field(default_factory=list)
    """checks that did not hold"""
    exact: int = 0
    """settings in which nothing pruned is stock, bit for bit"""
    pruned: int = 0
    """settings and policies that pruned"""
    saved: int = 0
    """pruned states that another context loads and goes on from"""
    turns: int = 0
    """settings in which a second turn after nothing pruned is stock's, and one after a pruned prompt is pruned, too"""
    moved: int = 0
    """settings in which a pruned prompt moved into a context that another sequence lives in"""
    layers: list[str] = field(default_factory=list)
    """of each layer, how it attends"""
    state_bytes: int = 0
    stock_varies: bool = False
    """stock llama.cpp's own logits differ from run to run: nothing can be compared"""


def options() -> Iterator[Options]:
    for flash in (False, True):
        for n_batch, n_ubatch in CHUNKS:
            yield Options(n_ctx=256, n_batch=n_batch, n_ubatch=n_ubatch, flash=flash, kv=F16)
    yield Options(n_ctx=256, n_batch=64, n_ubatch=64, swa_full=False)
    yield Options(n_ctx=256, n_batch=64, n_ubatch=64, flash=True, kv=Q8_0)


def long_options() -> Iterator[Options]:
    for swa_full in (True, False):
        yield Options(n_ctx=8448, n_batch=512, n_ubatch=512, flash=True, swa_full=swa_full)


def draw_tokens(n_vocab: int, n_tokens: int = N_TOKENS) -> tuple[list[int], list[int]]:
    """Prompt and answer."""
    ids = np.random.default_rng(7).integers(0, min(n_vocab, 128), n_tokens + N_ANSWER).tolist()
    return ids[:n_tokens], ids[n_tokens:]


def equal(ours: Sequence[np.ndarray], stock: Sequence[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(ours, stock, strict=True))


def keep_all(session: Session, tokens: list[int], at: int) -> None:
    """Every layer keeps all rows, and all tokens are "selected" after layer `at`."""
    session.begin(tokens, WINDOW)
    for layer in range(at + 1):
        itself = session.sliding[layer]
        session.run(1, not itself)
        if not itself:
            session.keep_rows(None)
    session.keep_tokens(np.arange(len(tokens)))
    session.finish()


class Case:
    """The checks of one file."""

    def __init__(self, model: Model) -> None:
        self.model, self.result = model, Result()
        self.tokens, self.answer = draw_tokens(model.n_vocab)
        self.reference: dict[tuple[bool, int, str], tuple[Options, np.ndarray, frozenset[int]]] = {}

    def fail(self, what: str) -> None:
        self.result.failed.append(what)

    def run(self) -> Result:
        if reason := unsupported_reason(self.model.handle):
            self.result.refused = reason
            return self.result
        for setting in options():
            try:
                self.run_setting(setting)
            except UnsupportedModelError as err:
                self.result.refused = str(err)
                return self.result
            except AssertionError:  # llama.cpp itself makes no such context: q8_0 with some sizes of heads
                continue
        return self.result

    def run_long(self) -> None:
        """Prompts longer than a chunk of attention."""
        self.tokens, self.answer = draw_tokens(self.model.n_vocab, N_LONG)
        self.reference.clear()
        for setting in long_options():
            self.run_setting(setting)

    def run_setting(self, setting: Options) -> None:
        with self.model.context(setting) as stock, self.model.context(setting) as ours:
            session = ours.session()
            if not self.is_steady(stock):
                self.result.stock_varies = True
                return
            self.result.state_bytes = lib.context_state_bytes(ours.handle)
            stock.prefill(self.tokens)
            expected = stock.continuation(self.answer)
            if not all(np.isfinite(logits).all() for logits in expected):
                self.fail(f"{setting}: stock's logits are not finite")
                return
            try:
                self.check_exact(setting, ours, session, expected)
                self.check_pruned(setting, ours, session)
                if setting.n_batch == 64:
                    self.check_saved(setting, ours, session)
                    self.check_turn(setting, stock, ours, session)
                    self.check_moved(setting, ours, session)
            except UnsupportedModelError as err:
                self.fail(f"refused late: {err}")

    def is_steady(self, stock: Context) -> bool:
        first = stock.prefill(self.tokens)
        return np.array_equal(first, stock.prefill(self.tokens))

    def check_exact(self, setting: Options, ours: Context, session: Session, expected: list[np.ndarray]) -> None:
        prefill(session, self.tokens, make_policy("none"), len(self.tokens))
        same = equal(ours.continuation(self.answer), expected)
        for layer in self.selection_layers(session):
            keep_all(session, self.tokens, layer)
            if not equal(ours.continuation(self.answer), expected):
                self.fail(f"{setting}: all tokens kept at layer {layer} differ from stock")
        if same:
            self.result.exact += 1
        else:
            self.fail(f"{setting}: nothing pruned differs from stock")

    def selection_layers(self, session: Session) -> list[int]:
        own = [layer for layer, itself in enumerate(session.sliding) if not itself]
        return [layer for layer in own if layer < self.model.n_layer - 1]

    def check_pruned(self, setting: Options, ours: Context, session: Session) -> None:
        for template in (*POLICIES, *INDEXER) if session.has_indexer else POLICIES:
            name = template.format(first=session.sliding.index(False))
            policy = make_policy(name)
            report = prefill(session, self.tokens, policy, N_KEPT)
            logits = ours.continuation(self.answer)
            if not report.pruned or not all(np.isfinite(one).all() for one in logits):
                self.fail(f"{setting}: {name} did not prune, or its logits are not finite")
                continue
            self.result.pruned += 1
            key = (setting.flash, setting.kv, name)
            kept = frozenset(report.selected)
            first = self.reference.setdefault(key, (setting, logits[0], kept))
            off = np.abs(logits[0] - first[1]).max() / first[1].std()
            tied = 0 < len(kept - first[2]) <= TIED
            if setting.swa_full and off > CLOSE and not tied:
                self.fail(f"{name}: chunks of {first[0].n_ubatch} and {setting.n_ubatch} tokens differ by {off:.3f}")

    def prune(self, session: Session) -> None:
        name = POLICIES[0].format(first=session.sliding.index(False))
        prefill(session, self.tokens, make_policy(name), N_KEPT)

    def check_saved(self, setting: Options, ours: Context, session: Session) -> None:
        """The state of a pruned prompt goes on in another context."""
        self.prune(session)
        state = contexts.take_cells(ours.handle)
        expected = [ours.decode([token]) for token in self.answer]
        with self.model.context(setting) as other:
            if contexts.put_cells(other.handle, state, (), None) and equal(
                [other.decode([token]) for token in self.answer], expected
            ):
                self.result.saved += 1
            else:
                self.fail(f"{setting}: a state that was saved and loaded gives other logits")

    def check_turn(self, setting: Options, stock: Context, ours: Context, session: Session) -> None:
        """A second turn, run layer by layer; decoded where a bias follows distances."""
        turn = draw_tokens(self.model.n_vocab, N_TURN)[0]
        stock.prefill(self.tokens)
        stock.decode(turn)
        prefill(session, self.tokens, make_policy("none"), len(self.tokens))
        decoded = lib.model_has_alibi(self.model.handle)
        if decoded:
            ours.decode(turn)
        else:
            session.extend(turn, WINDOW)
            session.finish()
        # cells of sliding layers that go round lie elsewhere than stock's, and sums follow the cells
        if setting.swa_full and not equal(ours.continuation(self.answer), stock.continuation(self.answer)):
            self.fail(f"{setting}: a second turn differs from stock")
            return
        self.prune(session)
        name = POLICIES[0].format(first=session.sliding.index(False))
        if decoded:
            ours.decode(turn)
        pruned = decoded or prefill(TurnLayers(session), turn, make_policy(name), N_TURN // 2).pruned
        if pruned and all(np.isfinite(one).all() for one in ours.continuation(self.answer)):
            self.result.turns += 1
        else:
            self.fail(f"{setting}: a second turn was not pruned, or its logits are not finite")

    def check_moved(self, setting: Options, ours: Context, session: Session) -> None:
        """A pruned prompt beside another sequence answers as it does alone: same cells of a stream of its own."""
        if lib.model_has_alibi(self.model.handle):
            return  # rows belong to their cells
        self.prune(session)
        shared = Options(**{**asdict(setting), "n_ctx": 2 * setting.n_ctx, "n_seq_max": 2})
        with self.model.context(shared) as target:
            live = Sequences(target)
            live.decode(0, self.tokens[:N_TURN])
            moving.move(ours.handle, target.handle, 1)
            found = []
            for token in self.answer:
                found.append(live.decode(1, [token]))
                live.decode(0, [token])
            if equal(found, [ours.decode([token]) for token in self.answer]):
                self.result.moved += 1
            else:
                self.fail(f"{setting}: a sequence that was moved gives other logits")


def describe(path: Path, model: Model) -> list[str]:
    """How each layer attends, read off the names of its tensors."""
    import gguf

    names: list[set[str]] = [set() for _ in range(model.n_layer)]
    for tensor in gguf.GGUFReader(path).tensors:
        parts = tensor.name.split(".")
        if parts[0] == "blk" and int(parts[1]) < model.n_layer:
            names[int(parts[1])].add(".".join(parts[2:]))
    return [_kind(layer, itself) for layer, itself in zip(names, sliding_layers(model.handle), strict=True)]


def _kind(names: set[str], itself: bool) -> str:
    has_state = any(name.startswith(("ssm_", "shortconv", "attn_f_", "time_mix")) for name in names)
    attends = any(name.startswith(("attn_q", "attn_k")) for name in names)
    latent = any(name.startswith("attn_kv_a") for name in names)
    if not itself:
        sparse = ", indexer" if any(name.startswith("indexer") for name in names) else ""
        return f"MLA{sparse}" if latent else "full + state" if has_state else "full"
    return "state" if has_state else "sliding or shared" if attends else "no attention"


def run_stock(path: Path) -> None:
    """Fails, or ends the process, where stock llama.cpp does."""
    with closing(Model(path)) as model, model.context(next(options())) as stock:
        tokens, answer = draw_tokens(model.n_vocab)
        stock.prefill(tokens)
        stock.continuation(answer)


def main(path: Path) -> None:
    with closing(Model(path)) as model:
        case = Case(model)
        result = case.run()
        if not result.refused:
            if path.name.startswith("llama4"):
                case.run_long()
            result.layers = describe(path, model)
    print("\n" + json.dumps(asdict(result)))


if __name__ == "__main__":
    run_stock(Path(sys.argv[1])) if "--stock" in sys.argv else main(Path(sys.argv[1]))
