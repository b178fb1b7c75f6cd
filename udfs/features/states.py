"""A keyed stage's histories in Flink's state, and the journal that spares most of the writing.

A history is written as one value, so an event would cost a copy of all that its key has kept, and a
busy key would be copied with every batch. Instead a batch's events are appended to a journal, one
value a batch, and a history is written only when the journal has grown over its limit and the
oldest segment that names its key is retired. What a restart finds is a history as it was at some
place in the bucket's order of arrival, which the history says, and in the journal all that came
later: it is added again by the same code, so the outcome is the same to the bit.

Map state of a bucket, strings to bytes::

    e<entity>   the history of its events, written at some time
    l<entity>   the history of its labels, always up to date
    f<entity>   its first events, always up to date
    m<entity>   its mark in a roll-up: what the clock has closed
    j<number>   a segment of the journal
    #           the next place in the order of arrival; the journal's first and next number
    @           the series of each layout that histories and segments have been written with
    %, i...     which keys are idle in event time: see ``idle``
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import orjson

from udfs.batches.events import IntArray
from udfs.features.histories import Entries
from udfs.features.idle import NEVER_IDLE_MS, IdleKeys
from udfs.features.keyed import StageState, Stored
from udfs.features.layouts import Layouts, StateFormatError

__all__ = ["BucketStates"]

_COUNTERS = "#"
_COUNTERS_LAYOUT = struct.Struct("<qqq")
_LAYOUTS = "@"
_SEGMENT_LAYOUT = struct.Struct("<BBHIq")  # version, with ids?, layout, events, place of the first
_VERSION = 2
_OLD_VERSION = 1  # had the number of values in place of "with ids?", always ids, and no layout


class Stage(Protocol):
    """What keeps entries of events by key: a keyed stage, or a roll-up.

    Attributes:
        dedupes: Whether entries have ids.
    """

    dedupes: bool

    @property
    def stored_names(self) -> dict[Stored, list[str]]:
        """The names of the series of each stream."""
        ...

    def new_state(
        self,
        read: Callable[[str, str], bytes | None],
        max_entries: int,
        layouts: dict[Stored, Layouts],
    ) -> StageState:
        """Histories for a bucket; ``read`` gives what is packed of a stream and an entity."""
        ...

    def add_again(self, state: StageState, entries: Entries) -> None:
        """Add events that were kept once; the histories become the same."""
        ...


@dataclass(frozen=True, slots=True)
class _Segment:
    """What is remembered of a segment.

    Attributes:
        first: Place of its first event in the order of arrival.
        slots: The history of each of its events, int64 (n,).
    """

    first: int
    slots: IntArray


class _Reader:
    """Reads what is stored of an entity.

    Args:
        read: Reads the state, which takes as long for an entity that is not there.
        is_all_unpacked: As of a bucket that began empty: nothing needs to be read.
    """

    def __init__(self, read: Callable[[str, str], bytes | None], is_all_unpacked: bool) -> None:
        self._read, self.is_all_unpacked = read, is_all_unpacked

    def __call__(self, stream: str, entity: str) -> bytes | None:
        return None if self.is_all_unpacked else self._read(stream, entity)


@dataclass(slots=True)
class _Bucket:
    histories: StageState
    idle: IdleKeys
    reader: _Reader
    next_place: int = 0
    first_segment: int = 0
    journal: deque[_Segment] = field(default_factory=deque)
    journal_events: int = 0


class BucketStates:
    """The histories of a subtask's buckets: Flink's map state, unpacked on first use.

    Only this object writes the state, and all that a restart needs is written before the batch is
    done. A restart begins with nothing unpacked. The state's current key must be the bucket that a
    method is called with.

    Args:
        stage: The stage the histories belong to.
        state: Map state of the current bucket.
        cached_entries: How many entries per bucket and stream stay unpacked.
        journal_events: Events of a bucket's journal before histories are written; 0 writes each
            batch's histories at once.
        idle_ms: How much older than the newest event of its bucket the newest entry of a history is
            that is removed.
        first_state: Map state for each key's first events, which live longer; none: ``state``.
    """

    def __init__(
        self,
        stage: Stage,
        state: Any,
        cached_entries: int,
        journal_events: int,
        idle_ms: int = NEVER_IDLE_MS,
        first_state: Any = None,
    ) -> None:
        self._stage = stage
        self._state = state
        self._first_state = state if first_state is None else first_state
        self._cached_entries = cached_entries
        self._journal_events = journal_events
        self._idle_ms = idle_ms
        self._buckets: dict[int, _Bucket] = {}

    def of(self, bucket: int) -> StageState:
        """The bucket's histories.

        Raises:
            StateFormatError: what is stored is of another layout or release.
        """
        found = self._buckets.get(bucket)
        if found is None:
            found = self._buckets[bucket] = self._restored()
        if found.histories.events.is_over_size:
            self._state.put_all(self._retire(found, 0) | self._counters(found))
            found.histories.events.clear()
            found.reader.is_all_unpacked = False
        for histories in (found.histories.labels, found.histories.first):
            if histories is not None and histories.is_over_size:
                histories.clear()
                found.reader.is_all_unpacked = False
        return found.histories

    def add(self, bucket: int, entities: Sequence[str], entries: Entries) -> int:
        """Store what a batch has added to the histories of ``of(bucket)``.

        Args:
            bucket: The bucket.
            entities: The entity of each event.
            entries: The events.

        Returns:
            The first event's place in the bucket's order of arrival; the others follow.
        """
        found = self._buckets[bucket]
        first, n = found.next_place, len(entities)
        if not n:
            return first
        found.idle.clock_ms = max(found.idle.clock_ms, int(entries.times.max()))
        number = found.first_segment + len(found.journal)
        found.journal.append(_Segment(first, entries.slots))
        found.journal_events += n
        found.next_place = first + n
        segment = _pack_segment(found, first, entities, entries, self._stage.dedupes)
        changed = {f"j{number}": segment}
        changed |= self._retire(found, self._journal_events)
        if not found.journal:  # this very batch's histories are among those written
            del changed[f"j{number}"]
        self._state.put_all(changed | self._counters(found))
        self._write_first(found)
        found.idle.sweep(n, lambda names, until_ms: self._forgotten(found, names, until_ms))
        return first

    def _write_first(self, bucket: _Bucket) -> None:
        """Store the first events of entities that have others now."""
        histories = bucket.histories.first
        if histories is not None and len(slots := histories.take_changed()):
            packed = zip(histories.names(slots), histories.pack(slots), strict=True)
            self._first_state.put_all({f"f{entity}": history for entity, history in packed})

    def write_labels(self, bucket: int, entities: Sequence[str]) -> None:
        """Store the label histories of a batch's entities."""
        found = self._buckets[bucket]
        histories = found.histories.labels
        distinct = list(dict.fromkeys(entities))
        packed = histories.pack(histories.slots(distinct))
        names = [f"l{e}" for e in distinct]
        registered = found.idle.register(names, histories.newest_ms(distinct))
        self._state.put_all(dict(zip(names, packed, strict=True)) | registered)

    def write_marks(self, marks: dict[str, bytes]) -> None:
        """Store the marks of entities of the current bucket."""
        self._state.put_all({f"m{entity}": mark for entity, mark in marks.items()})

    def open_all(self, bucket: int) -> StageState:
        """As ``of``, with the histories of all entities unpacked, as a clock looks at all."""
        is_new = bucket not in self._buckets
        histories = self.of(bucket)
        if is_new:
            stored = [key[1:] for key in self._state.keys() if key[0] == "e"]  # noqa: SIM118
            histories.events.slots(stored)
        return histories

    def _counters(self, bucket: _Bucket) -> dict[str, bytes]:
        first = bucket.first_segment
        counters = bucket.next_place, first, first + len(bucket.journal)
        return {_COUNTERS: _COUNTERS_LAYOUT.pack(*counters)}

    def _retire(self, bucket: _Bucket, limit: int) -> dict[str, bytes]:
        """Shorten the journal to ``limit`` events; returns the histories to write."""
        histories = bucket.histories.events
        stale: list[IntArray] = []
        while bucket.journal and bucket.journal_events > limit:
            segment = bucket.journal.popleft()
            places = np.arange(segment.first, segment.first + len(segment.slots))
            stale.append(segment.slots[histories.written_until(segment.slots) <= places])
            bucket.journal_events -= len(segment.slots)
            # The segment that is being added has not been put yet: removing it does no harm.
            self._state.remove(f"j{bucket.first_segment}")
            bucket.first_segment += 1
        if not stale:
            return {}
        slots = np.unique(np.concatenate(stale))
        packed = histories.pack(slots, bucket.next_place)
        entities = histories.names(slots)
        names = [f"e{e}" for e in entities]
        registered = bucket.idle.register(names, histories.newest_ms(entities))
        return dict(zip(names, packed, strict=True)) | registered

    def _forgotten(self, bucket: _Bucket, names: list[str], until_ms: int) -> list[str]:
        """Forget the histories whose newest entry is before a time; returns which they are."""
        found = []
        for stream, histories in (
            ("e", bucket.histories.events),
            ("l", bucket.histories.labels),
        ):
            entities = [name[1:] for name in names if name[0] == stream]
            newest = histories.newest_ms(entities).tolist()
            old = [e for e, at_ms in zip(entities, newest, strict=True) if at_ms < until_ms]
            stored = {e: p for e in old if (p := self._state.get(stream + e)) is not None}
            idle = [e for e, p in stored.items() if histories.stored_newest_ms(p) < until_ms]
            if stream == "e":
                idle = self._not_in_journal(bucket, idle)
            histories.forget(idle)
            found += [stream + entity for entity in idle]
        return found

    def _not_in_journal(self, bucket: _Bucket, entities: list[str]) -> list[str]:
        """A restart adds the journal's events again: those have to stay a while."""
        histories = bucket.histories.events
        known = [entity for entity in entities if entity in histories]
        if not known or not bucket.journal:
            return entities
        journal = np.concatenate([segment.slots for segment in bucket.journal])
        stays = np.isin(histories.slots(known), journal)
        kept = {entity for entity, stay in zip(known, stays.tolist(), strict=True) if stay}
        bucket.idle.forget_registered([f"e{entity}" for entity in kept])
        return [entity for entity in entities if entity not in kept]

    def _restored(self) -> _Bucket:
        reader = _Reader(self._read, self._state.is_empty() and self._first_state.is_empty())
        layouts = self._layouts()
        histories = self._stage.new_state(reader, self._cached_entries, layouts)

        def newest_of(name: str, packed: bytes) -> int:
            own = histories.events if name[0] == "e" else histories.labels
            return own.stored_newest_ms(packed)

        bucket = _Bucket(histories, IdleKeys(self._state, self._idle_ms, newest_of), reader)
        counters = self._state.get(_COUNTERS)
        if counters is None:
            return bucket
        if len(counters) != _COUNTERS_LAYOUT.size:
            raise StateFormatError(
                "the stored state is another release's: start without it, or with that release"
            )
        bucket.next_place, bucket.first_segment, end = _COUNTERS_LAYOUT.unpack(counters)
        for number in range(bucket.first_segment, end):
            packed = self._state.get(f"j{number}")
            if packed is None:  # older than the state's time to live, like an idle key's history
                bucket.journal.append(_Segment(0, np.empty(0, np.int64)))
            else:
                self._add_again(bucket, packed)
        return bucket

    def _layouts(self) -> dict[Stored, Layouts]:
        """The layouts that are stored, and today's; stored too if it is new."""
        packed = self._state.get(_LAYOUTS)
        stored: dict[str, list[list[str]]] = {} if packed is None else orjson.loads(packed)
        names = self._stage.stored_names
        if "panes" in stored:
            names.setdefault("panes", [])
        layouts = {what: Layouts(names[what], stored.get(what, ())) for what in names}
        known = {stream: [list(s) for s in layout.all] for stream, layout in layouts.items()}
        if known != stored:
            self._state.put(_LAYOUTS, orjson.dumps(known))
        return layouts

    def _add_again(self, bucket: _Bucket, packed: bytes) -> None:
        """Add a segment's events to the histories that were written before they came."""
        histories = bucket.histories.events
        first, entities, entries = _unpack_segment(packed, histories.layouts)
        entries = replace(entries, slots=histories.slots(entities))
        places = np.arange(first, first + len(entities))
        missing = histories.written_until(entries.slots) <= places
        self._stage.add_again(bucket.histories, entries.select(missing))
        bucket.journal.append(_Segment(first, entries.slots))
        bucket.journal_events += len(entities)

    def _read(self, stream: str, entity: str) -> bytes | None:
        state = self._first_state if stream == "first" else self._state
        packed: bytes | None = state.get(stream[0] + entity)
        return packed


def _pack_segment(
    bucket: _Bucket, first: int, entities: Sequence[str], entries: Entries, identified: bool
) -> bytes:
    layout = bucket.histories.events.layouts.today
    columns = [entries.times]
    if identified:
        columns += [entries.ids, entries.checks]
    return b"".join(
        [
            _SEGMENT_LAYOUT.pack(_VERSION, identified, layout, len(entities), first),
            *(column.tobytes() for column in columns),
            np.ascontiguousarray(entries.values).tobytes(),
            orjson.dumps(entities),
        ]
    )


def _unpack_segment(packed: bytes, layouts: Layouts) -> tuple[int, list[str], Entries]:
    """First place, entities and entries, whose slots are not set.

    Raises:
        StateFormatError: it is of another release's layout.
    """
    version, identified, layout, n, first = _SEGMENT_LAYOUT.unpack_from(packed)
    if version == _OLD_VERSION and identified == len(layouts.all[0]):
        layout, identified = 0, True
    elif version != _VERSION or layout >= len(layouts.all):
        raise StateFormatError(
            "a stored journal has another layout (windows over other values, or another release): "
            "start without this state, or with the settings that wrote it"
        )
    at, fixed = _SEGMENT_LAYOUT.size, 3 if identified else 1
    columns = np.frombuffer(packed, np.int64, fixed * n, at).reshape(fixed, n)
    times = columns[0]
    ids, checks = (columns[1], columns[2]) if identified else (np.zeros(n, np.int64),) * 2
    at += 8 * fixed * n
    series = len(layouts.all[layout])
    values = np.frombuffer(packed, np.float64, n * series, at).reshape(n, series)
    entities = orjson.loads(packed[at + 8 * n * series :])
    today = layouts.values_of(layout, values)
    return first, entities, Entries(np.zeros(n, np.int64), times, today, ids, checks)
