"""Since when a bucket's histories are complete, and which features that leaves incomplete.

A feature that is added to a running job sees nothing of what came before it. The first stage keeps,
for each of its buckets, since which event time every series of every stage has been kept without a
gap; an event whose window reaches back further is told which of its features are still warming.

Map state of a bucket of the first stage, beside that of ``states``::

    ~    the settings' fingerprint, and by stage, stream and series since when; JSON
    ^    the newest event time seen, epoch ms
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import orjson

from udfs.batches.events import IntArray
from udfs.definition.feature import WindowFeature
from udfs.definition.schema import Schema
from udfs.definition.window import Window
from udfs.features.fingerprint import Fingerprint, refusals
from udfs.features.layouts import StateFormatError
from udfs.features.window_plan import series_of

ENTRIES = ""
"""Stands for the events themselves, which features without a value count."""

_RECORD = "~"
_CLOCK = "^"
_MS = struct.Struct("<q")
_NEVER_MS = 1 << 62

Since = dict[str, dict[str, dict[str, int]]]
"""By stage, stream and series: epoch ms; a series that was there from the beginning is absent."""


class Need(NamedTuple):
    """What a window feature reads.

    Attributes:
        column: Its name.
        stage: Where it is kept.
        stream: Events, labels, or each key's first events.
        series: The series it reads; none counts entries.
        reach_ms: How far back before an event it looks.
    """

    column: str
    stage: str
    stream: str
    series: tuple[str, ...]
    reach_ms: int


def needs_of(schema: Schema) -> list[Need]:
    """What each window feature reads, in the order of the columns."""
    needs = []
    for stage in schema.stages:
        for feature in schema.features.of_stage(stage):
            series = tuple(s.name for s in series_of(feature)) or (ENTRIES,)
            windows = [window for window in feature.windows for _ in feature.aggregates]
            needs += [
                _need(stage, feature, window, column, series)
                for column, window in zip(feature.columns, windows, strict=True)
            ]
    return needs


def _need(
    stage: str, feature: WindowFeature, window: Window, column: str, series: tuple[str, ...]
) -> Need:
    stream = feature.stream if window.first is None else "first"
    return Need(column, stage, stream, series, window.reach_ms + feature.delay)


class _Warming(NamedTuple):
    """Until which event time a feature is incomplete, and what it says until then."""

    column: str
    since_ms: int
    until_ms: int


@dataclass(slots=True)
class _Bucket:
    clock_ms: int | None = None
    warming: list[_Warming] = field(default_factory=list)

    @property
    def until_ms(self) -> int:
        return max((w.until_ms for w in self.warming), default=0)


class Coverage:
    """Of the first stage's buckets.

    The state's current key must be the bucket that a method is called with.

    Args:
        schema: The job's schema.
        fingerprint: Of the settings.
        state: The stage's map state.
        begins_ms: Since when a job without state reads its topics, epoch ms; none: there is
            nothing before what it reads.
    """

    def __init__(
        self, schema: Schema, fingerprint: Fingerprint, state: Any, begins_ms: int | None = None
    ) -> None:
        self._begins_ms = begins_ms
        self._needs = needs_of(schema)
        self._fingerprint = fingerprint
        self._state = state
        self._buckets: dict[int, _Bucket] = {}

    def warming(self, bucket: int, times: IntArray) -> dict[str, IntArray]:
        """Which features of some events are incomplete; moves the bucket's clock.

        Args:
            bucket: The bucket.
            times: Event times, epoch ms, int64 (n,).

        Returns:
            By feature, int64 (n,): since when it is kept, epoch ms, or 0 where it is complete.
            Features that are complete for all events are left out.

        Raises:
            StateFormatError: what is stored cannot be read with today's settings.
        """
        found = self._of(bucket)
        if not len(times):
            return {}
        newest_ms = int(times.max())
        if found.clock_ms is None or newest_ms > found.clock_ms:
            found.clock_ms = newest_ms
            self._state.put(_CLOCK, _MS.pack(newest_ms))
        oldest_ms = int(times.min())
        if oldest_ms >= found.until_ms:
            return {}
        return {
            w.column: np.where(times < w.until_ms, w.since_ms, 0)
            for w in found.warming
            if oldest_ms < w.until_ms
        }

    def begin(self, bucket: int, since_ms: int, newest_ms: int) -> None:
        """Say of a bucket without state that its history begins with a time.

        Args:
            bucket: The bucket.
            since_ms: Since when all is known, epoch ms.
            newest_ms: The newest event's time.
        """
        since = self._all_since(since_ms)
        self._write(since)
        self._state.put(_CLOCK, _MS.pack(newest_ms))
        self._buckets[bucket] = self._bucket(newest_ms, since)

    def _of(self, bucket: int) -> _Bucket:
        if bucket not in self._buckets:
            self._buckets[bucket] = self._restored()
        return self._buckets[bucket]

    def _restored(self) -> _Bucket:
        packed, clock = self._state.get(_RECORD), self._state.get(_CLOCK)
        clock_ms = None if clock is None else int(_MS.unpack(clock)[0])
        if packed is None:  # a new job, or what an earlier release has left
            begun = {} if self._begins_ms is None else self._all_since(self._begins_ms)
            self._write(begun)
            return self._bucket(clock_ms, begun)
        record = orjson.loads(packed)
        old, since = record["fingerprint"], record["since"]
        if old != self._fingerprint:
            since = carried(old, self._fingerprint, since, clock_ms)
            self._write(since)
        return self._bucket(clock_ms, since)

    def _all_since(self, since_ms: int) -> Since:
        return {
            stage: {
                stream: dict.fromkeys((ENTRIES, *kept["series"]), since_ms)
                for stream, kept in streams.items()
            }
            for stage, streams in self._fingerprint["stages"].items()
        }

    def _write(self, since: Since) -> None:
        record = {"fingerprint": self._fingerprint, "since": since}
        self._state.put(_RECORD, orjson.dumps(record, option=orjson.OPT_SORT_KEYS))

    def _bucket(self, clock_ms: int | None, since: Since) -> _Bucket:
        return _Bucket(clock_ms, list(self._incomplete(since)))

    def _incomplete(self, since: Since) -> Iterator[_Warming]:
        for need in self._needs:
            kept = since.get(need.stage, {}).get(need.stream, {})
            starts = [kept[name] for name in need.series if name in kept]
            if starts:
                until_ms = max(starts) + need.reach_ms
                # The first events of keys that were there before are gone for good.
                yield _Warming(
                    need.column, max(starts), _NEVER_MS if need.stream == "first" else until_ms
                )


def carried(old: Fingerprint, new: Fingerprint, since: Since, clock_ms: int | None) -> Since:
    """Since when what ``new`` settings keep is complete, after histories made with ``old`` ones.

    A series that is new begins now. Where histories were kept for a shorter time than they now are,
    what is older than that is gone.

    Args:
        old: The fingerprint of the settings that stored the histories.
        new: Today's.
        since: As stored.
        clock_ms: The newest event time seen; none if there was no event yet.

    Raises:
        StateFormatError: the histories cannot be read with today's settings.
    """
    if found := refusals(old, new):
        raise StateFormatError("; ".join(f"{what} {reason}" for what, reason in found))
    if clock_ms is None:
        return {}
    result: Since = {}
    for stage, streams in new["stages"].items():
        for stream, kept in streams.items():
            before = old["stages"].get(stage, {}).get(stream)
            known = since.get(stage, {}).get(stream, {})
            names = (ENTRIES, *kept["series"])
            begun = _begun(names, before, kept["horizon_ms"], known, clock_ms)
            if begun:
                result.setdefault(stage, {})[stream] = begun
    return result


def _begun(
    names: tuple[str, ...],
    before: Mapping[str, Any] | None,
    horizon_ms: int,
    known: Mapping[str, int],
    clock_ms: int,
) -> dict[str, int]:
    if before is None:
        return dict.fromkeys(names, clock_ms)
    begun = dict(known)
    for name in names:
        if name != ENTRIES and name not in before["series"]:
            begun[name] = clock_ms
        elif horizon_ms > before["horizon_ms"]:
            gone_ms = clock_ms - before["horizon_ms"]
            begun[name] = max(known.get(name, gone_ms), gone_ms)
    return {name: begun[name] for name in names if name in begun}


def of_formulas(
    warming: dict[str, IntArray], reads: Mapping[str, tuple[str, ...]]
) -> dict[str, IntArray]:
    """``warming`` with the features that are computed from others: incomplete as these are.

    Args:
        warming: By feature, as ``Coverage.warming``.
        reads: What each such feature reads, in the order in which they are computed.
    """
    found = dict(warming)
    for name, inputs in reads.items():
        parts = [found[i] for i in inputs if i in found]
        if parts:
            found[name] = np.max(parts, axis=0)
    return found
