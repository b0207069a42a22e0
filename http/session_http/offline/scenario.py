"""Chance with a seed: faults and tools for load and chaos, where prompts carry no directives."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field

from session_http.offline.directives import Directive, parse_directives

__all__ = ["Dice", "Scenario"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenario:
    """What may happen to a request, and how often.

    The same seed and the same order of requests give the same choices. A tool or a text is only
    drawn for the first request of a turn, a fault for any; each draw is for one try.

    Attributes:
        seed: of the random source.
        faults: directives, e.g. `"[[fail status=529]]"`, and the share of requests (0 to 1) that
            meets each.

    Raises:
        ValueError: the shares are negative or make more than 1, or a text holds no directive or a
            wrong one.
    """

    seed: int
    faults: Mapping[str, float] = field(default_factory=dict[str, float])

    def __post_init__(self) -> None:
        """Refuse what could not be drawn from."""
        if any(share < 0 for share in self.faults.values()) or sum(self.faults.values()) > 1:
            raise ValueError(
                "the shares of a scenario must not be negative, nor sum to more than 1"
            )
        for text in self.faults:
            if not parse_directives(text):
                raise ValueError(f"no directive in {text!r}; write e.g. [[fail status=529]]")

    @classmethod
    def chaos(cls, seed: int) -> Scenario:
        """A third of the requests meets something, each kind often enough to be seen in 100."""
        return cls(
            seed=seed,
            faults={
                "[[fail status=529]]": 0.04,
                "[[fail status=500]]": 0.03,
                "[[fail status=429 retry_after=0.1]]": 0.03,
                "[[fail status=529 after=3]]": 0.02,
                "[[cut after=3]]": 0.04,
                "[[hang before ms=1000]]": 0.02,
                "[[hang mid after=3 ms=1000]]": 0.02,
                "[[slow delay_ms=20]]": 0.05,
                "[[think Let me see.]]": 0.03,
                '[[tool Bash {"command": "echo offline"}]]': 0.05,
            },
        )


class Dice:
    """The random source of one scenario while it runs."""

    def __init__(self, scenario: Scenario) -> None:
        """Start at the beginning of the scenario."""
        self._random = random.Random(scenario.seed)
        self._outcomes = [
            (share, parse_directives(text)) for text, share in scenario.faults.items()
        ]

    def roll(self) -> tuple[Directive, ...]:
        """Draw for one request; mostly nothing."""
        drawn = self._random.random()
        for share, directives in self._outcomes:
            if drawn < share:
                return directives
            drawn -= share
        return ()
