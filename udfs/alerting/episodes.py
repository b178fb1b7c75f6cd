"""The episodes of all entities of one bucket, without any engine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Protocol

from udfs.alerting.hysteresis import Rules, Score
from udfs.alerting.packing import is_open, pack, unpack
from udfs.alerting.scored import ScoredBatch
from udfs.alerting.timeline import Limits, Notice, Timeline
from udfs.definition.episode import EpisodeSpec

_CACHED = 20_000
"""Entities of a bucket that are kept unpacked; the others are read from the state when needed."""


class State(Protocol):
    """Flink's map state: entity -> packed timeline."""

    def get(self, key: str) -> bytes | None:
        """An entity's bytes, or none."""

    def put_all(self, values: dict[str, bytes]) -> None:
        """Store several."""

    def items(self) -> Iterable[tuple[str, bytes]]:
        """All of them."""


class Silence(NamedTuple):
    """An entity that has gone silent, or speaks again.

    Attributes:
        start_ms: Event time of its last event before.
        end_ms: Event time of the event that ended it; none while it lasts.
    """

    start_ms: int
    end_ms: int | None

    @property
    def state(self) -> Literal["open", "closed"]:
        """Whether it lasts."""
        return "open" if self.end_ms is None else "closed"


class Told(NamedTuple):
    """Something to be told of an entity, and its last scores."""

    entity: str
    notice: Notice | Silence
    scores: list[Score]


@dataclass(slots=True)
class Counts:
    """What happened, to be taken and set to 0."""

    opened: int = 0
    late: int = 0

    def take(self) -> Counts:
        """The counts since the last time."""
        taken = replace(self)
        self.opened = self.late = 0
        return taken


class Episodes:
    """Follows the entities of a bucket.

    Nothing is kept here alone: after each call the state has all of it. When entities came last is
    not stored, as it is the clock's: after a restart the clocks of all begin anew.

    Args:
        spec: When episodes open and close.
        state: Where timelines are stored; read once for those that clocks run for.
        now_ms: The clock.
        cached: Entities that are kept unpacked.
    """

    def __init__(self, spec: EpisodeSpec, state: State, now_ms: int, cached: int = _CACHED) -> None:
        self._rules = Rules(spec.open_at, spec.of_last, spec.close_below, spec.close_after)
        assert spec.lateness is not None, "see EpisodeSpec.with_lateness"
        self._limits = Limits(spec.lateness, spec.last_scores)
        self._silent_after_ms = spec.silent_after
        self._state = state
        self._cached = cached
        self._timelines: dict[str, Timeline] = {}
        # By when they came last, the oldest first: what is due is at the front.
        self._open: dict[str, int] = {}
        self._heard: dict[str, int] = {}
        self._still_ms = 0
        self.counts = Counts()
        if spec.close_after is not None or spec.silent_after is not None:
            for entity, packed in state.items():
                self._wind_up(entity, is_open(packed), now_ms)

    def forgive(self, blocked_ms: int) -> None:
        """The job itself stood still for so long: no clock ran, as nobody could be heard."""
        self._still_ms += blocked_ms

    def take(self, batch: ScoredBatch, now_ms: int) -> list[Told]:
        """A batch of scores; what is to be told of them, in their order."""
        told: list[Told] = []
        touched: dict[str, Timeline] = {}
        for entity, time_ms, score in batch.rows():
            timeline = touched.get(entity) or self._timeline(entity)
            touched[entity] = timeline
            told += self._hear(entity, timeline, time_ms)
            if score is not None:
                told += self._add(entity, timeline, score)
            self._wind_up(entity, timeline.is_open, now_ms - self._still_ms)
        self._store(touched)
        return told

    def due(self, now_ms: int) -> list[Told]:
        """What the clock says: episodes that end without events, entities gone silent."""
        told: list[Told] = []
        touched: dict[str, Timeline] = {}
        now_ms -= self._still_ms
        for entity in _before(self._open, now_ms, self._rules.close_after_ms):
            touched[entity] = timeline = self._timeline(entity)
            told += self._as_told(entity, timeline, timeline.expire(self._rules))
        for entity in _before(self._heard, now_ms, self._silent_after_ms):
            timeline = touched.get(entity) or self._timeline(entity)
            if timeline.silent_ms is None and timeline.heard_ms is not None:
                touched[entity] = timeline
                timeline.silent_ms = timeline.heard_ms
                told += self._as_told(entity, timeline, [Silence(timeline.heard_ms, None)])
        self._store(touched)
        return told

    def _hear(self, entity: str, timeline: Timeline, time_ms: int) -> list[Told]:
        """An event came; one that is older than the silence does not end it."""
        heard_ms, silent_ms = timeline.heard_ms, timeline.silent_ms
        if heard_ms is not None and time_ms <= heard_ms:
            return []
        timeline.heard_ms = time_ms
        if silent_ms is None:
            return []
        timeline.silent_ms = None
        return self._as_told(entity, timeline, [Silence(silent_ms, time_ms)])

    def _add(self, entity: str, timeline: Timeline, score: Score) -> list[Told]:
        notices = timeline.add(self._rules, self._limits, score)
        if notices is None:
            self.counts.late += 1
        return self._as_told(entity, timeline, notices) if notices else []

    def _as_told(
        self, entity: str, timeline: Timeline, notices: Iterable[Notice | Silence]
    ) -> list[Told]:
        scores = timeline.shown(self._limits)
        found = [Told(entity, notice, scores) for notice in notices]
        self.counts.opened += sum(t.notice.state == "open" for t in found)
        return found

    def _wind_up(self, entity: str, is_on: bool, now_ms: int) -> None:
        """The entity's clocks begin anew."""
        if self._rules.close_after_ms is not None:
            self._open.pop(entity, None)
            if is_on:
                self._open[entity] = now_ms
        if self._silent_after_ms is not None:
            self._heard.pop(entity, None)
            self._heard[entity] = now_ms

    def _timeline(self, entity: str) -> Timeline:
        timeline = self._timelines.get(entity)
        if timeline is None:
            packed = self._state.get(entity)
            timeline = Timeline() if packed is None else unpack(packed, self._rules)
        return timeline

    def _store(self, touched: Mapping[str, Timeline]) -> None:
        if not touched:
            return
        self._state.put_all({entity: pack(timeline) for entity, timeline in touched.items()})
        for entity, timeline in touched.items():
            self._timelines.pop(entity, None)
            self._timelines[entity] = timeline
        for entity in [*self._timelines][: max(0, len(self._timelines) - self._cached)]:
            del self._timelines[entity]


def _before(times: dict[str, int], now_ms: int, after_ms: int | None) -> Iterator[str]:
    """Take out those that came last longer ago than that."""
    if after_ms is None:
        return
    while times and now_ms - (oldest := next(iter(times.items())))[1] > after_ms:
        del times[oldest[0]]
        yield oldest[0]
