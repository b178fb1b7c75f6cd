"""A history of readings rolled up to windows, by the loops of the live job, on all cores."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import pandas as pd

from udfs.batches.categories import texts_of
from udfs.batches.events import Events, FloatArray, IntArray, Reject
from udfs.batches.routing import conflict, refused
from udfs.definition.schema import Schema
from udfs.features.identities import Identities
from udfs.features.parallel_kernels import group
from udfs.rollup.core import Rollup
from udfs.rollup.kernels import BY_END, Closed

PART_ROWS = 65_536
"""About how many readings a thread takes at a time; the windows do not depend on it."""

Order = Literal["time", "arrival"]
"""In which order events are taken to have arrived: that of their times, or the one given."""


@dataclass(frozen=True, slots=True)
class RolledUp:
    """What a history of readings came to.

    Attributes:
        windows: The windows as events; in order of time, or of closing with order ``arrival``.
        window_of: The window that each reading is in, -1 for none; int64 (n,).
        rejects: Readings of closed windows, and those whose id was another's.
        duplicates: How many readings had an id and a content seen before.
    """

    windows: Events
    window_of: IntArray
    rejects: list[Reject]
    duplicates: int


@dataclass(frozen=True, slots=True)
class _Part:
    """The windows of some keys; ``closed.slots`` and ``closed.rows`` count over all readings."""

    closed: Closed
    late: IntArray
    conflicts: IntArray
    duplicates: int
    kept: IntArray


class _Run:
    def __init__(self, schema: Schema, readings: Events, order: Order) -> None:
        # In the order of arrival nobody knows when readings came: no gap is taken for idleness.
        self._rollup = Rollup(schema, gaps_are_idle=order == "time")
        self._times = readings.times
        self._values = self._rollup.values(readings)
        ids = readings.texts[schema.arriving.id]
        self._identities = Identities(
            np.fromiter(map(hash, ids), np.int64, len(ids)),
            np.fromiter(map(hash, readings.raw), np.int64, len(ids)),
        )
        codes, names = pd.factorize(np.array(readings.texts[schema.key], object))
        self.codes, self.names = codes.astype(np.int64), names
        self._starts = np.zeros(len(names) + 1, np.int64)
        in_order = np.argsort(self._times, kind="stable") if order == "time" else None
        self._rows = group(self.codes if in_order is None else self.codes[in_order], self._starts)
        if in_order is not None:
            self._rows = in_order[self._rows]

    def parts(self) -> list[_Part]:
        places = np.searchsorted(self._starts, np.arange(0, len(self._rows), PART_ROWS))
        cuts = np.unique([0, *places.tolist(), len(self._starts) - 1]).tolist()
        ranges = [*pairwise(cuts)] or [(0, 0)]
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            return list(pool.map(lambda keys: self._part(*keys), ranges))

    def _part(self, first: int, last: int) -> _Part:
        starts = self._starts[first : last + 1]
        rows = self._rows[starts[0] : starts[-1]]
        windows = self._rollup.new_part(np.diff(starts))
        rolled = self._rollup.observe_slots(
            windows,
            self.codes[rows] - first,
            self._times[rows],
            self._values[rows],
            self._identities.select(rows),
        )
        last_ones = windows.close(np.arange(last - first), BY_END)
        pairs = zip(rolled.closed[:-1], last_ones[:-1], strict=True)
        merged = Closed._make([*(np.concatenate(pair) for pair in pairs), rolled.closed.used])
        by_rows = np.append(rows, -1)[merged.rows]
        return _Part(
            merged._replace(slots=merged.slots + first, rows=by_rows),
            rows[rolled.late],
            rows[rolled.conflicts],
            len(rolled.duplicates),
            rows[rolled.kept],
        )


def roll_up(schema: Schema, readings: Events, order: Order = "time") -> RolledUp:
    """The windows of a history of readings.

    Args:
        schema: A schema with a roll-up.
        readings: In any order. Where ``raw`` is empty bytes, a reading of a known id counts as a
            duplicate.
        order: As if each reading had arrived at its own time, when a gap longer than
            ``rollup.idle`` closes windows as the clock would; or in the order given, when readings
            can be late.

    The last windows of each key are closed by the end.
    """
    run = _Run(schema, readings, order)
    parts = run.parts()
    columns = zip(*(part.closed[:-1] for part in parts), strict=True)
    closed = Closed._make([*map(np.concatenate, columns), np.zeros(1, np.int64)])
    if order == "time":
        at = np.argsort(closed.ends, kind="stable")
    else:  # windows that one reading closes are in order already; the end comes last
        rows = np.where(closed.rows < 0, len(readings), closed.rows)
        at = np.lexsort((closed.ends, rows))
    closed = Closed._make([*(column[at] for column in closed[:-1]), closed.used])
    assert schema.rollup is not None
    kept_texts = (text for name in schema.rollup.keep for text in set(readings.texts[name]))
    keys: list[str] = run.names[closed.slots].tolist()
    windows = Rollup(schema).events(closed, keys, texts_of(kept_texts))
    kept = np.concatenate([part.kept for part in parts])
    return RolledUp(
        windows,
        _window_of(run.codes, readings.times, kept, closed, schema.rollup.every),
        _rejects(readings, parts),
        sum(part.duplicates for part in parts),
    )


def _window_of(
    codes: IntArray, times: IntArray, kept: IntArray, closed: Closed, every_ms: int
) -> IntArray:
    """The window of each reading: keys and ends as one number, looked up in the windows'."""
    found = np.full(len(times), -1, np.int64)
    if not len(closed.ends):
        return found
    base = closed.ends.min() // every_ms
    span = closed.ends.max() // every_ms - base + 1
    have = closed.slots * span + (closed.ends // every_ms - base)
    order = np.argsort(have)
    wanted = codes[kept] * span + (times[kept] // every_ms + 1 - base)
    found[kept] = order[np.searchsorted(have, wanted, sorter=order)]
    return found


def _rejects(readings: Events, parts: list[_Part]) -> list[Reject]:
    late = np.concatenate([part.late for part in parts]).tolist()
    conflicts = np.concatenate([part.conflicts for part in parts]).tolist()
    message = "its window was closed before it came"
    return [refused(readings, row, "late", message) for row in late] + [
        conflict(readings, row) for row in conflicts
    ]


def largest_of(labels: FloatArray, window_of: IntArray, windows: int) -> FloatArray:
    """The largest label of each window's readings, float64 (windows,); NaN if none has one."""
    found = np.full(windows, -np.inf)
    known = (window_of >= 0) & ~np.isnan(labels)
    np.maximum.at(found, window_of[known], labels[known])
    found[np.isinf(found)] = np.nan
    return found
