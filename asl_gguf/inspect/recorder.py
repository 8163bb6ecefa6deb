"""A policy with an onlooker: the same decisions, and a record of them."""

from __future__ import annotations

from dataclasses import replace

from ..policies.contract import Decision, Indices, LayerScores, Observer, Policy, Prompt


class PolicyRecorder:
    """What a policy was shown of the last prompt, and what it answered.

    Args:
        policy: is watched through `self.policy`, a copy of it to use in its place.
    """

    def __init__(self, policy: Policy) -> None:
        self.prompt: Prompt | None = None
        """the last prompt; None before the first one"""
        self.seen: list[tuple[LayerScores, Decision]] = []
        """layer after layer"""
        self._start = policy.start
        self.policy = replace(policy)
        # a wrapper would have to pass on whatever the contract asks now and later, and its type would be another
        object.__setattr__(self.policy, "start", self._watched_start)
        self._fewer_rows = policy.fewer_rows
        object.__setattr__(self.policy, "fewer_rows", self._watched_fewer_rows)

    def _watched_start(self, prompt: Prompt) -> Observer:
        observe = self._start(prompt)
        self.prompt = prompt
        self.seen.clear()

        def watch(scores: LayerScores) -> Decision:
            decision = observe(scores)
            self.seen.append((scores, decision))
            return decision

        return watch

    def _watched_fewer_rows(
        self, scores: LayerScores, held: Indices | None, n_kept: int, tokens: Indices | None = None
    ) -> Indices | None:
        """Once the budget is decided, the rows that a layer held are not all that it keeps."""
        rows = self._fewer_rows(scores, held, n_kept, tokens)
        if rows is not None:
            self.seen = [
                (one, replace(decision, rows=rows) if one.layer == scores.layer else decision)
                for one, decision in self.seen
            ]
        return rows
