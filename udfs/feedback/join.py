"""Joins what was shown with what became of it, in event time, a record at a time.

A request's example is written when the clock has passed its window and the allowed lateness. The
clock is the lesser of the newest event times of the two topics; while a topic is silent, its time
passes as the wall's does. So an example depends on the records alone and not on how they came in
batches, and a restart changes nothing: all of it, the clock included, is in the state.

Every interaction is counted once, see ``Counts``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from heapq import heappop, heappush
from typing import Protocol

import numpy as np

from udfs.feedback.entries import Entry, FeedbackStateError
from udfs.feedback.records import Impression, Interaction, Record, Shown, example, late

__all__ = ["Counts", "FeedbackJoin", "FeedbackOptions", "Written"]

_CLOCK = "#"
_REQUEST = "r"
_NEVER = -(2**62)


class State(Protocol):
    """Texts to bytes, as Flink's map state."""

    def items(self) -> Iterable[tuple[str, bytes]]:
        """All of it."""

    def put(self, key: str, value: bytes) -> None:
        """Write one."""

    def remove(self, key: str) -> None:
        """Forget one."""


@dataclass(frozen=True, slots=True)
class FeedbackOptions:
    """How long is waited.

    Attributes:
        window_ms: Event time after a request in which an interaction is a label.
        lateness_ms: How much longer late records are waited for.
        keep_ms: How much longer a closed request is known, and what comes is known to be late.
    """

    window_ms: int
    lateness_ms: int
    keep_ms: int

    @property
    def wait_ms(self) -> int:
        """Event time from a request to its example."""
        return self.window_ms + self.lateness_ms


@dataclass(slots=True)
class Counts:
    """What became of what came.

    Attributes:
        examples: Requests written as examples.
        unshown: Impressions that no caller got: no example.
        repeated: Impressions that had come before.
        labels: Interactions that are a label.
        outside: Interactions before the request or after its window.
        elsewhere: Interactions with an item that the impression has not, or of one not shown.
        unmatched: Interactions whose impression never came.
        unlinked: Interactions that name no request.
        late: Interactions after the example was written; each is written as a correction.
    """

    examples: int = 0
    unshown: int = 0
    repeated: int = 0
    labels: int = 0
    outside: int = 0
    elsewhere: int = 0
    unmatched: int = 0
    unlinked: int = 0
    late: int = 0

    def taken(self) -> dict[str, int]:
        """What was counted since the last call, without zeros."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        for name in found:
            setattr(self, name, 0)
        return {name: n for name, n in found.items() if n}


@dataclass(frozen=True, slots=True)
class Written:
    """A record for the topic of examples: its key, the user, and its value."""

    key: str
    value: bytes


class FeedbackJoin:
    """The join of one bucket of users.

    Args:
        options: How long is waited.
        state: What an earlier run left; only this object writes it.

    Raises:
        FeedbackStateError: the state is of another layout.
    """

    def __init__(self, options: FeedbackOptions, state: State) -> None:
        self._options = options
        self._state = state
        self._entries: dict[str, Entry] = {}
        self._changed: set[str] = set()
        self._due: list[tuple[int, str]] = []
        self._clock = np.array([_NEVER, _NEVER], np.int64)  # impressions, events
        self._heard = [False, False]
        self._unheard_ms = 0
        self.counts = Counts()
        for key, value in state.items():
            if key == _CLOCK:
                self._clock = _clock_of(value)
            else:
                request_id = key.removeprefix(_REQUEST)
                self._entries[request_id] = Entry.unpacked(request_id, value)
                self._schedule(request_id)

    @property
    def now_ms(self) -> int:
        """The clock: no record older than this, less the lateness, is waited for."""
        return int(self._clock.min())

    def take(self, records: Iterable[Record]) -> Iterator[Written]:
        """Join records in their order; the state is written at the end.

        Yields:
            Examples and corrections.
        """
        for record in records:
            yield from self._take(record)
            topic = 0 if isinstance(record, Impression) else 1
            self._heard[topic] = True
            self._clock[topic] = max(int(self._clock[topic]), record.time_ms)
            yield from self._close_due()
        self._write()

    def pass_time(self, elapsed_ms: int) -> Iterator[Written]:
        """Let the time of a topic pass that was silent since the last call.

        A topic that has never said anything while a whole wait passed is as far as the other, so
        that what is kept for it ends.

        Args:
            elapsed_ms: Wall time since then.
        """
        for topic in (0, 1):
            if not self._heard[topic]:
                self._pass_silent(topic, elapsed_ms)
            self._heard[topic] = False
        yield from self._close_due()
        self._write()

    def _pass_silent(self, topic: int, elapsed_ms: int) -> None:
        if self._clock[topic] > _NEVER:
            self._clock[topic] += elapsed_ms
        elif self._clock[1 - topic] > _NEVER:
            self._unheard_ms += elapsed_ms
            if self._unheard_ms > self._options.wait_ms:
                self._clock[topic] = self._clock[1 - topic]

    def finish(self) -> Iterator[Written]:
        """Nothing comes any more: close all that is open."""
        for request_id in sorted(self._entries):
            entry = self._entries[request_id]
            if not entry.closed:
                yield from self._close(request_id, entry)
        self._write()

    def _take(self, record: Record) -> Iterator[Written]:
        match record:
            case Impression():
                self._impression(record)
            case Shown():
                entry = self._entry(record.request_id, record.time_ms)
                if not entry.closed:
                    entry.shown = True
                    self._touch(record.request_id)
            case Interaction() if not record.request_id:
                self.counts.unlinked += 1
            case Interaction():
                yield from self._interaction(record)

    def _impression(self, record: Impression) -> None:
        entry = self._entry(record.request_id, record.time_ms)
        if entry.closed or entry.body:
            self.counts.repeated += 1
            return
        entry.keep(record.body)
        entry.time_ms, entry.items, entry.user = record.time_ms, record.items, record.user
        self._touch(record.request_id)

    def _interaction(self, record: Interaction) -> Iterator[Written]:
        entry = self._entry(record.request_id, record.time_ms)
        if entry.closed:
            self.counts.late += 1
            yield Written(entry.user, late(entry.user, record))
            return
        entry.interactions.append(record)
        self._touch(record.request_id)

    def _entry(self, request_id: str, time_ms: int) -> Entry:
        entry = self._entries.get(request_id)
        if entry is None:
            entry = self._entries[request_id] = Entry(time_ms)
            self._touch(request_id)
        elif not entry.body and not entry.closed and time_ms < entry.time_ms:
            entry.time_ms = time_ms
            self._touch(request_id)
        return entry

    def _touch(self, request_id: str) -> None:
        self._changed.add(request_id)
        self._schedule(request_id)

    def _schedule(self, request_id: str) -> None:
        heappush(self._due, (self._due_ms(self._entries[request_id]), request_id))

    def _due_ms(self, entry: Entry) -> int:
        return (
            entry.time_ms + self._options.wait_ms + (self._options.keep_ms if entry.closed else 0)
        )

    def _close_due(self) -> Iterator[Written]:
        while self._due and self._due[0][0] < self.now_ms:
            _, request_id = heappop(self._due)
            entry = self._entries.get(request_id)
            if entry is None or self._due_ms(entry) >= self.now_ms:
                continue  # an older turn of one that was scheduled anew
            if entry.closed:
                del self._entries[request_id]
                self._changed.add(request_id)
            else:
                yield from self._close(request_id, entry)

    def _close(self, request_id: str, entry: Entry) -> Iterator[Written]:
        if not entry.body:
            self.counts.unmatched += len(entry.interactions)
        elif not entry.shown:
            self.counts.unshown += 1
            self.counts.elsewhere += len(entry.interactions)
        else:
            self.counts.examples += 1
            yield Written(entry.user, self._example(entry))
        entry.closed, entry.body = True, b""
        entry.items, entry.interactions = (), []
        self._touch(request_id)

    def _example(self, entry: Entry) -> bytes:
        kinds: dict[str, list[str]] = {}
        first_ms: dict[str, int] = {}
        last_ms = entry.time_ms + self._options.window_ms
        for one in sorted(entry.interactions, key=lambda one: (one.time_ms, one.item, one.kind)):
            if one.item not in entry.items:
                self.counts.elsewhere += 1
            elif not entry.time_ms <= one.time_ms <= last_ms:
                self.counts.outside += 1
            else:
                self.counts.labels += 1
                kinds.setdefault(one.item, []).append(one.kind)
                first_ms.setdefault(one.item, one.time_ms)
        return example(entry.impression, kinds, first_ms)

    def _write(self) -> None:
        for request_id in self._changed:
            entry = self._entries.get(request_id)
            if entry is None:
                self._state.remove(_REQUEST + request_id)
            else:
                self._state.put(_REQUEST + request_id, entry.packed())
        self._changed.clear()
        self._state.put(_CLOCK, self._clock.tobytes())


def _clock_of(data: bytes) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    if len(data) != 16:
        raise FeedbackStateError("the stored clock has another layout")
    return np.frombuffer(data, np.int64).copy()
