"""Which faults are made in which order: drawn from a seed, nothing else."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

Range = tuple[float, float]
"""Lowest and highest value."""

PAUSE_S: Range = (0.5, 2.0)


@dataclass(frozen=True, slots=True)
class Planned:
    """A fault to come.

    Attributes:
        number: From 1.
        kind: Its kind's name.
        holds_s: How long it lasts before it is healed.
        strength: 0 to 1: what else a kind can vary, such as a delay.
        pause_s: Between the recovery before and this fault.
    """

    number: int
    kind: str
    holds_s: float
    strength: float
    pause_s: float


def schedule(kinds: Mapping[str, Range], seed: int) -> Iterator[Planned]:
    """Faults without end, in rounds: each kind once in each, in an order of its own.

    Args:
        kinds: How long a fault of each kind lasts, in seconds.
        seed: The same seed and kinds give the same faults.
    """
    chance = random.Random(seed)  # noqa: S311 (an order of faults)
    number = 0
    while True:
        for kind in chance.sample(sorted(kinds), len(kinds)):
            number += 1
            holds_s, pause_s = chance.uniform(*kinds[kind]), chance.uniform(*PAUSE_S)
            yield Planned(number, kind, holds_s, chance.random(), pause_s)
