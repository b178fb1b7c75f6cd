"""When an episode opens and closes: k of the last n scores, told score by score in event time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from struct import Struct
from typing import Literal, NamedTuple

NO_MOVER = -1
_SCORE = Struct("<qiqddhdH")
ClosedBy = Literal["calm", "no_events"]


class Score(NamedTuple):
    """A score of an entity; they are ordered by time, then by their place.

    Attributes:
        time_ms: Event time.
        partition: Kafka partition of the event.
        offset: Its offset there.
        value: The score, 0 to 1.
        threshold: It is above if it is larger.
        mover: Index of the feature that moved most, or ``NO_MOVER``.
        moved: That feature's value.
        reasons: The model's reasons in JSON; empty if there are none.
    """

    time_ms: int
    partition: int
    offset: int
    value: float
    threshold: float
    mover: int = NO_MOVER
    moved: float = 0.0
    reasons: bytes = b""

    @property
    def place(self) -> tuple[int, int, int]:
        """What orders scores and names one."""
        return self[:3]

    @property
    def is_above(self) -> bool:
        """Whether it counts towards an episode."""
        return self.value > self.threshold


def pack_score(score: Score) -> bytes:
    """A score as bytes; part of what ``packing.VERSION`` is the version of."""
    reasons = score[7]
    return _SCORE.pack(*score[:7], len(reasons)) + reasons


def read_score(packed: bytes, at: int) -> tuple[Score, int]:
    """The score that is packed there, and where it ends."""
    *values, length = _SCORE.unpack_from(packed, at)
    at += _SCORE.size
    return Score._make((*values, packed[at : at + length])), at + length


@dataclass(slots=True)
class Episode:
    """A stretch of high scores.

    Attributes:
        start_ms: Event time of its first score above the threshold; names it.
        opened_ms: Event time of the score that opened it.
        last_above_ms: Event time of its last score above the threshold.
        events: Its scores so far, from the start on.
        peak: The highest of them, the first of equals.
        mover: Index of the feature that moved most in a score above, or ``NO_MOVER``.
        moved: That feature's value.
        closed_ms: When it closed in event time; none while it is open.
        closed_by: Why.
    """

    start_ms: int
    opened_ms: int
    last_above_ms: int
    events: int
    peak: Score
    mover: int = NO_MOVER
    moved: float = 0.0
    closed_ms: int | None = None
    closed_by: ClosedBy | None = None

    @classmethod
    def of(cls, scores: Sequence[Score]) -> Episode:
        """An open one of these scores, of which the first and the last are above."""
        first = scores[0]
        episode = cls(first.time_ms, scores[-1].time_ms, first.time_ms, 0, first)
        for score in scores:
            episode.add(score)
        return episode

    def add(self, score: Score) -> None:
        """The next score of an open episode."""
        self.events += 1
        if score.value > self.peak.value:
            self.peak = score
        if score.is_above:
            self.last_above_ms = score.time_ms
            unknown = self.mover == NO_MOVER
            if score.mover != NO_MOVER and (unknown or abs(score.moved) > abs(self.moved)):
                self.mover, self.moved = score.mover, score.moved

    def closed(self, at_ms: int, by: ClosedBy) -> Episode:
        """The same, closed."""
        return replace(self, closed_ms=at_ms, closed_by=by)


@dataclass(frozen=True, slots=True)
class Rules:
    """When episodes open and close; see ``EpisodeSpec``."""

    open_at: int
    of_last: int
    close_below: int
    close_after_ms: int | None = None


@dataclass(slots=True)
class Hysteresis:
    """The episodes of one entity, given its scores in order.

    Attributes:
        window: The last scores, at most ``of_last``; none from before a pause.
        last_ms: Time of the last score; none before the first.
        barrier_ms: When the last episode closed by calm: scores up to there belong to it.
        episode: The open one.
        above: How many scores of the window are.
    """

    window: list[Score]
    last_ms: int | None = None
    barrier_ms: int | None = None
    episode: Episode | None = None
    above: int = field(init=False)

    def __post_init__(self) -> None:
        self.above = sum(score.is_above for score in self.window)

    def copy(self) -> Hysteresis:
        """One that goes on from here by itself."""
        episode = None if self.episode is None else replace(self.episode)
        return Hysteresis([*self.window], self.last_ms, self.barrier_ms, episode)

    def step(self, rules: Rules, score: Score) -> list[Episode]:
        """The next score; returns the episodes that it closed and opened, in this order."""
        found = self._pause(rules, score)
        self.last_ms = score.time_ms
        above = self._look_at(rules, score)
        if self.episode is not None:
            self.episode.add(score)
            if above < rules.close_below:
                found.append(self.episode.closed(score.time_ms, "calm"))
                self.episode, self.barrier_ms = None, score.time_ms
        elif above >= rules.open_at and self._may_open(score):
            self.episode = Episode.of(self._own_scores())
            found.append(replace(self.episode))
        return found

    def _look_at(self, rules: Rules, score: Score) -> int:
        """Put the score in the window; how many there are above."""
        self.window.append(score)
        self.above += score.value > score.threshold
        if len(self.window) > rules.of_last:
            oldest = self.window.pop(0)
            self.above -= oldest.value > oldest.threshold
        return self.above

    def _pause(self, rules: Rules, score: Score) -> list[Episode]:
        after_ms = rules.close_after_ms
        if after_ms is None or self.last_ms is None or score.time_ms - self.last_ms <= after_ms:
            return []
        found = self.expire(rules)
        self.window.clear()
        self.above = 0
        return found

    def expire(self, rules: Rules) -> list[Episode]:
        """No event came: close what is open, as a later score would."""
        if self.episode is None or rules.close_after_ms is None:
            return []
        assert self.last_ms is not None
        closed = self.episode.closed(self.last_ms + rules.close_after_ms, "no_events")
        self.episode = None
        return [closed]

    def _may_open(self, score: Score) -> bool:
        """Two episodes never share a start, which names them."""
        return score.is_above and (self.barrier_ms is None or score.time_ms > self.barrier_ms)

    def _own_scores(self) -> list[Score]:
        """Those of the window from the first above that no earlier episode has had."""
        first = next(n for n, score in enumerate(self.window) if self._may_open(score))
        return self.window[first:]
