"""The account of a run: which of the events that were written came out, a byte each."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Place = tuple[int, int]
"""Partition and offset of a record of the events topic."""

_FIRST = 1 << 16


class Bits:
    """Which numbers from 0 on were seen: a byte each, as many as the highest needs."""

    def __init__(self) -> None:
        self._seen: npt.NDArray[np.bool_] = np.zeros(_FIRST, np.bool_)
        self.count = 0

    def add(self, number: int) -> bool:
        """Note a number; whether it is new."""
        if number >= len(self._seen):
            grown = np.zeros(max(number + 1, 2 * len(self._seen)), np.bool_)
            grown[: len(self._seen)] = self._seen
            self._seen = grown
        if self._seen[number]:
            return False
        self._seen[number] = True
        self.count += 1
        return True

    def missing(self, end: int, most: int = 10) -> list[int]:
        """The first few numbers below ``end`` that were not seen."""
        known = self._seen[:end]
        gaps = np.flatnonzero(~known)[:most].tolist()
        return [*gaps, *range(len(known), min(end, len(known) + most))][:most]


@dataclass
class Ledger:
    """What was written and what came of it.

    Every event ends in a prediction, every poisoned record in a dead letter, every second copy in
    a duplicate: each at least once.

    Attributes:
        written: Events, with the ids 0 to ``written - 1``.
        copies: Events that were written a second time.
        poison: Places of the records that must be refused.
        predictions: Records of the predictions topic.
        fallbacks: Of these, those that no model made, by reason.
        unknown: Predictions of ids that nobody wrote.
    """

    written: int = 0
    copies: int = 0
    poison: set[Place] = field(default_factory=set)
    predictions: int = 0
    fallbacks: Counter[str] = field(default_factory=Counter)
    unknown: int = 0
    _predicted: Bits = field(default_factory=Bits)
    _dead: set[Place] = field(default_factory=set)
    _doubled: set[Place] = field(default_factory=set)

    def predicted(self, number: int, fallback_reason: str | None = None) -> None:
        """A prediction of the n-th event was read, and why no model made it if none did."""
        self.predictions += 1
        if fallback_reason is not None:
            self.fallbacks[fallback_reason] += 1
        if number < 0:
            self.unknown += 1
        else:
            self._predicted.add(number)

    def dead(self, place: Place) -> None:
        """A dead letter was read."""
        self._dead.add(place)

    def doubled(self, place: Place) -> None:
        """A duplicate was read."""
        self._doubled.add(place)

    @property
    def repeats(self) -> int:
        """Predictions of events that had one: at-least-once."""
        return self.predictions - self.unknown - self._predicted.count

    @property
    def lost(self) -> int:
        """Records without the output that they must have."""
        return (
            max(0, self.written - self._predicted.count)
            + len(self.poison - self._dead)
            + max(0, self.copies - len(self._doubled))
        )

    @property
    def wrong(self) -> int:
        """Records with an output that they must not have."""
        excess = max(0, len(self._doubled) - self.copies)
        return len(self._dead - self.poison) + excess + self.unknown

    @property
    def records(self) -> int:
        """All that were written."""
        return self.written + self.copies + len(self.poison)

    def first_lost(self) -> list[str]:
        """Some of those that are lost, to be looked for."""
        ids = [f"event {n}" for n in self._predicted.missing(self.written)]
        places = [f"poison at {p}:{o}" for p, o in sorted(self.poison - self._dead)[:5]]
        return ids + places
