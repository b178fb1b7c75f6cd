"""The episodes of one entity whose scores come out of order: told at once, corrected if need be.

An opening is not held back until no older score can come. A score that comes late is put where it
belongs, what follows is counted again, and what was told wrongly is told anew under the same id
with the next revision. So the last revision of each episode is what the scores give in order of
event time, whatever order they came in, as long as none is later than the lateness.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

from udfs.alerting.hysteresis import Episode, Hysteresis, Rules, Score, pack_score

State = Literal["open", "closed", "withdrawn"]


@dataclass(frozen=True, slots=True)
class Notice:
    """What is to be told of an episode.

    Attributes:
        episode: As it is now; one that is withdrawn as it was.
        state: Open, closed, or withdrawn: a late score has shown that it never was.
        revision: From 1 for each episode; the highest holds.
    """

    episode: Episode
    state: State
    revision: int


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of an entity's past is kept.

    Attributes:
        lateness_ms: Scores this much older than the newest still count.
        last_scores: How many are shown.
    """

    lateness_ms: int
    last_scores: int


@dataclass(slots=True)
class Timeline:
    """An entity's scores, its episodes, and what has been told of them.

    Attributes:
        scores: By time and place: those that may still get an older neighbour, and before them
            those that are shown or counted.
        packed: Each score as bytes, made once: an entity is stored with each of its events.
        settled: How many of them are too old to get an older neighbour.
        base: The episodes as of the settled scores.
        head: The episodes as of all scores.
        told: By the episode's start; those that late scores can still change.
        expired: Whether the head's episode was closed because no event came.
        heard_ms: Event time of the newest event, fallbacks included.
        silent_ms: Event time since which the entity is told silent; none: it is not.
    """

    scores: list[Score] = field(default_factory=list)
    packed: list[bytes] = field(default_factory=list)
    settled: int = 0
    base: Hysteresis = field(default_factory=lambda: Hysteresis([]))
    head: Hysteresis = field(default_factory=lambda: Hysteresis([]))
    told: dict[int, Notice] = field(default_factory=dict)
    expired: bool = False
    heard_ms: int | None = None
    silent_ms: int | None = None

    def add(self, rules: Rules, limits: Limits, score: Score) -> list[Notice] | None:
        """A further score; what is to be told now, or none if it came too late to count."""
        scores = self.scores
        if not scores or score.place > scores[-1].place:
            return self._append(rules, limits, score)
        at = bisect_left(scores, score.place, key=lambda s: s.place)
        if scores[at].place == score.place:
            return []
        if at < self.settled:
            return None
        scores.insert(at, score)
        self.packed.insert(at, pack_score(score))
        return self._recount(rules)

    def _append(self, rules: Rules, limits: Limits, score: Score) -> list[Notice]:
        """The newest score. A pause that only the clock saw has never been."""
        goes_on = self.expired and not self._is_after_pause(rules, score)
        self.expired = False
        self.scores.append(score)
        self.packed.append(pack_score(score))
        notices = self._recount(rules) if goes_on else self._tell(self.head.step(rules, score))
        self._settle(rules, limits)
        return notices

    def expire(self, rules: Rules) -> list[Notice]:
        """No event came for ``close_after``: close the open episode."""
        closed = self.head.expire(rules)
        self.expired = self.expired or bool(closed)
        return self._tell(closed)

    @property
    def is_open(self) -> bool:
        """Whether an episode is open."""
        return self.head.episode is not None

    def shown(self, limits: Limits) -> list[Score]:
        """The last scores, for the alert."""
        return self.scores[-limits.last_scores :]

    def replay(self, rules: Rules) -> Iterator[Episode]:
        """Count all that is not settled again; gives the episodes opened and closed."""
        self.head = self.base.copy()
        if self.head.episode is not None:
            yield self.head.episode
        for score in self.scores[self.settled :]:
            yield from self.head.step(rules, score)
        if self.expired:
            yield from self.head.expire(rules)

    def _is_after_pause(self, rules: Rules, score: Score) -> bool:
        """Whether the pause that the clock saw is one in event time as well."""
        assert rules.close_after_ms is not None and self.head.last_ms is not None
        return score.time_ms - self.head.last_ms > rules.close_after_ms

    def _recount(self, rules: Rules) -> list[Notice]:
        now = {episode.start_ms: episode for episode in self.replay(rules)}
        if (episode := self.head.episode) is not None:
            now[episode.start_ms] = episode
        gone = [
            was.episode
            for start, was in self.told.items()
            if start not in now and was.state != "withdrawn"
        ]
        return [
            *(self._notice(episode, "withdrawn") for episode in gone),
            *self._tell(now.values()),
        ]

    def _tell(self, episodes: Iterable[Episode]) -> list[Notice]:
        """Notices of what has not been told of these episodes."""
        notices = []
        for episode in episodes:
            state: State = "open" if episode.closed_ms is None else "closed"
            was = self.told.get(episode.start_ms)
            if was is None or was.state == "withdrawn":
                opened = replace(episode, closed_ms=None, closed_by=None)
                notices.append(self._notice(opened, "open"))
            elif was.state == state and (state == "open" or was.episode == episode):
                continue
            if state == "closed" or (was is not None and was.state == "closed"):
                notices.append(self._notice(episode, state))
        return notices

    def _notice(self, episode: Episode, state: State) -> Notice:
        was = self.told.get(episode.start_ms)
        notice = Notice(replace(episode), state, 1 if was is None else was.revision + 1)
        self.told[episode.start_ms] = notice
        return notice

    def _settle(self, rules: Rules, limits: Limits) -> None:
        """Fold the scores that can get no older neighbour into the base; forget the oldest."""
        limit_ms = self.scores[-1].time_ms - limits.lateness_ms
        while self.scores[self.settled].time_ms < limit_ms:
            for episode in self.base.step(rules, self.scores[self.settled]):
                if episode.closed_ms is not None:
                    self.told.pop(episode.start_ms, None)
            self.settled += 1
        last_ms = self.base.last_ms
        if last_ms is not None and any(was.state == "withdrawn" for was in self.told.values()):
            old = [t for t, was in self.told.items() if was.state == "withdrawn" and t <= last_ms]
            for start_ms in old:
                del self.told[start_ms]
        extra = self.settled - max(rules.of_last, limits.last_scores)
        if extra > 0:
            del self.scores[:extra], self.packed[:extra]
            self.settled -= extra
