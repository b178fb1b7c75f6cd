"""What two versions made of the same inputs: what a cutover looks at first."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import orjson
from confluent_kafka import OFFSET_END, Consumer, Message, TopicPartition

from jobs.settings import Settings
from jobs.versions.control import ControlError, Offsets, is_end, received
from udfs.batches.events import FloatArray
from udfs.scoring.rollout import population_stability

Place = tuple[int, int]
"""Partition and offset of an input."""

Progress = Callable[[str, float], None]

_TIMEOUT_S = 15.0
_SLACK_MS = 60_000
"""How far the clocks of producers and brokers may be apart."""

_BINS = 10


@dataclass(slots=True)
class Outcome:
    """What a version made of the inputs looked at.

    Attributes:
        scores: By input; of a fallback too.
        fallbacks: Inputs that no model scored.
        refused: Inputs that became dead letters or duplicates, or were shed.
        read: Where reading its predictions has come to.
        later: The first of its predictions, by partition, of an input after those looked at.
    """

    scores: dict[Place, float] = field(default_factory=dict)
    fallbacks: set[Place] = field(default_factory=set)
    refused: set[Place] = field(default_factory=set)
    read: Offsets = field(default_factory=dict)
    later: Offsets = field(default_factory=dict)

    def missing(self, inputs: set[Place]) -> set[Place]:
        """Inputs that it has not dealt with yet."""
        return inputs - self.scores.keys() - self.refused

    @property
    def begin(self) -> Offsets:
        """From where on all its predictions of later inputs lie."""
        return self.read | self.later


@dataclass(frozen=True, slots=True)
class Overlap:
    """Two versions over the same inputs.

    Attributes:
        inputs: How many were looked at: the newest of each partition.
        behind: How many of them the new version had not dealt with when first looked at.
        old_missing: How many the old version has not dealt with in the end.
        new_missing: How many the new one has not.
        both: Scored by both.
        only_old: Scored by the old one alone; the new one refused them.
        only_new: Scored by the new one alone.
        old_fallbacks: Inputs that no model scored.
        new_fallbacks: The same of the new version.
        mean_difference: Of the scores, absolute.
        largest_difference: Of the scores, absolute.
        psi: Population stability index of the new scores against the old ones.
    """

    inputs: int
    behind: int
    old_missing: int
    new_missing: int
    both: int
    only_old: int
    only_new: int
    old_fallbacks: int
    new_fallbacks: int
    mean_difference: float
    largest_difference: float
    psi: float


@dataclass(frozen=True, slots=True)
class Limits:
    """What a cutover asks for.

    Attributes:
        behind: Inputs that the new version may be behind at first; it then gets time to catch up.
        psi: Of the scores.
        fallbacks: Share of fallbacks beyond the old version's.
    """

    behind: int = 10_000
    psi: float = 0.25
    fallbacks: float = 0.05

    def objections(self, seen: Overlap) -> list[str]:
        """Why readers should not move yet; none if they can."""
        found = []
        if seen.behind > self.behind:
            found.append(f"the new version is behind by {seen.behind:,}, at most {self.behind:,}")
        if seen.new_missing:
            found.append(f"the new version has not dealt with {seen.new_missing:,} inputs")
        if seen.old_missing:
            found.append(f"the old version has not dealt with {seen.old_missing:,} inputs")
        if seen.only_old or seen.only_new:
            found.append(f"{seen.only_old + seen.only_new:,} inputs are scored by one alone")
        if seen.psi > self.psi:
            found.append(f"the scores differ: PSI {seen.psi:.3f}, at most {self.psi:g}")
        worse = seen.new_fallbacks - seen.old_fallbacks
        if worse > self.fallbacks * max(1, seen.both):
            found.append(f"{worse:,} more fallbacks than of the old version")
        return found


def compared(inputs: set[Place], old: Outcome, new: Outcome, behind: int) -> Overlap:
    """What the outcomes tell."""
    both = sorted(old.scores.keys() & new.scores.keys())
    one = np.array([old.scores[place] for place in both])
    other = np.array([new.scores[place] for place in both])
    apart = np.abs(one - other) if both else np.zeros(1)
    return Overlap(
        inputs=len(inputs),
        behind=behind,
        old_missing=len(old.missing(inputs)),
        new_missing=len(new.missing(inputs)),
        both=len(both),
        only_old=len(old.scores.keys() & new.refused),
        only_new=len(new.scores.keys() & old.refused),
        old_fallbacks=len(old.fallbacks),
        new_fallbacks=len(new.fallbacks),
        mean_difference=float(apart.mean()),
        largest_difference=float(apart.max()),
        psi=_psi(one, other),
    )


def _psi(one: FloatArray, other: FloatArray) -> float:
    if not len(one):
        return 0.0
    edges = np.quantile(one, np.linspace(0, 1, _BINS + 1)[1:-1])
    places = (np.searchsorted(edges, scores) for scores in (one, other))
    first, second = (np.bincount(place, minlength=_BINS) for place in places)
    return population_stability(first, second)


class Looker:
    """Reads the newest inputs and what two versions made of them.

    Args:
        options: Of librdkafka, with ``bootstrap.servers``.
        old: Settings of the version that readers follow.
        new: Those of the other.
        most: Inputs looked at, of each partition.
    """

    def __init__(self, options: Mapping[str, str], old: Settings, new: Settings, most: int) -> None:
        self._options = {
            **options,
            "group.id": "streamscore-cutover",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
            "fetch.wait.max.ms": 100,
        }
        self._events, self._most = old.topics.events, most
        self._topics = [_outputs(old), _outputs(new)]
        self.inputs: set[Place] = set()
        self.ends: Offsets = {}
        self.outcomes = (Outcome(), Outcome())

    def look(self, limit: int, wait_s: float, progress: Progress) -> Overlap:
        """Compare; inputs that come meanwhile are not looked at.

        Args:
            limit: See ``Limits.behind``: beyond it nothing is waited for.
            wait_s: How long the versions get to deal with what was there at first.
            progress: Shown meanwhile.

        Raises:
            ControlError: a topic cannot be read.
        """
        since_ms = self._read_inputs()
        consumers = [self._consumer(topics, since_ms) for topics in self._topics]
        try:
            for number, consumer in enumerate(consumers):
                self._follow(number, consumer, to_end=True, deadline_s=time.monotonic() + 600)
                progress("reading predictions", (number + 1) / 2)
            behind = len(self.outcomes[1].missing(self.inputs))
            deadline_s = time.monotonic() + (wait_s if behind <= limit else 0.0)
            for number, consumer in enumerate(consumers):
                self._follow(number, consumer, to_end=False, deadline_s=deadline_s)
        finally:
            for consumer in consumers:
                consumer.close()
        return compared(self.inputs, *self.outcomes, behind)

    def _read_inputs(self) -> int:
        """The newest inputs; returns the Kafka time of the oldest of them."""
        consumer = Consumer(self._options)
        try:
            begin = {}
            for part in _partitions(consumer, self._events):
                first, end = consumer.get_watermark_offsets(part, timeout=_TIMEOUT_S)
                self.ends[part.partition] = end
                if end > first:
                    begin[part.partition] = max(first, end - self._most)
            consumer.assign([TopicPartition(self._events, n, at) for n, at in begin.items()])
            oldest_ms, left = 1 << 62, set(begin)
            while left:
                for message in received(self._waited(consumer)):
                    partition, offset = _place(message)
                    if is_end(message):
                        left -= {partition} if offset >= self.ends[partition] else set()
                    elif offset < self.ends[partition]:
                        self.inputs.add((partition, offset))
                        oldest_ms = min(oldest_ms, message.timestamp()[1])
                    if offset + 1 >= self.ends[partition]:
                        left.discard(partition)
            return max(0, oldest_ms - _SLACK_MS) if self.inputs else 0
        finally:
            consumer.close()

    def _consumer(self, topics: Sequence[str], since_ms: int) -> Consumer:
        """At the first record of each output that can be of an input looked at."""
        consumer = Consumer(self._options)
        asked = [
            TopicPartition(topic, part.partition, since_ms)
            for topic in topics
            for part in _partitions(consumer, topic)
        ]
        found = consumer.offsets_for_times(asked, timeout=_TIMEOUT_S)
        for part in found:
            if part.offset == OFFSET_END or part.offset < 0:
                _, part.offset = consumer.get_watermark_offsets(part, timeout=_TIMEOUT_S)
        consumer.assign(found)
        return consumer

    def _follow(self, number: int, consumer: Consumer, *, to_end: bool, deadline_s: float) -> None:
        """Take outputs: to where they end now, or until all inputs have one."""
        outcome, predictions = self.outcomes[number], self._topics[number][0]
        left = {(p.topic, p.partition) for p in consumer.assignment()}
        if to_end:
            outcome.read = {p.partition: 0 for p in consumer.assignment() if p.topic == predictions}
        while left if to_end else outcome.missing(self.inputs):
            if time.monotonic() > deadline_s:
                return
            for message in received(consumer.consume(4_096, 0.2)):
                partition, offset = _place(message)
                topic = str(message.topic())
                if is_end(message):
                    left.discard((topic, partition))
                    if topic == predictions:
                        outcome.read[partition] = max(outcome.read[partition], offset)
                    continue
                if topic == predictions:
                    outcome.read[partition] = offset + 1
                self._take(outcome, message, topic == predictions)

    def _take(self, outcome: Outcome, message: Message, is_prediction: bool) -> None:
        document = orjson.loads(message.value() or b"{}")
        source = document["source"]
        if source["topic"] != self._events:
            return
        place = source["partition"], source["offset"]
        if place[1] >= self.ends.get(place[0], 0):
            if is_prediction:
                outcome.later.setdefault(*_place(message))
        elif place not in self.inputs:
            return
        elif not is_prediction:
            outcome.refused.add(place)
        else:
            outcome.scores[place] = document["score"]
            if document["fallback_reason"] is not None:
                outcome.fallbacks.add(place)

    def _waited(self, consumer: Consumer) -> list[Message]:
        messages: list[Message] = consumer.consume(4_096, _TIMEOUT_S)
        if not messages:
            problem = f"{self._events} gave nothing for {_TIMEOUT_S:.0f} s"
            raise ControlError(problem, "try again")
        return messages


def _outputs(settings: Settings) -> list[str]:
    topics = settings.topics
    shed = [topics.shed] if topics.shed else []
    return [topics.predictions, topics.dead_letters, topics.duplicates, *shed]


def _partitions(consumer: Consumer, topic: str) -> list[TopicPartition]:
    found = consumer.list_topics(topic, timeout=_TIMEOUT_S).topics[topic]
    if not found.partitions:
        raise ControlError(f"there is no topic {topic}", "start the version: streamscore replay")
    return [TopicPartition(topic, n) for n in sorted(found.partitions)]


def _place(message: Message) -> Place:
    return int(message.partition() or 0), int(message.offset() or 0)
