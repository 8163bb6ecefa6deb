"""A policy with an onlooker: the same decisions, and a record of them."""

from __future__ import annotations

from dataclasses import replace

from ..policies.contract import Decision, LayerScores, Observer, Policy, Prompt


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

    def _watched_start(self, prompt: Prompt) -> Observer:
        observe = self._start(prompt)
        self.prompt = prompt
        self.seen.clear()

        def watch(scores: LayerScores) -> Decision:
            decision = observe(scores)
            self.seen.append((scores, decision))
            return decision

        return watch
