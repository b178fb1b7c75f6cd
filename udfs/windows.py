"""Exact sliding windows over the histories of many keys: the heart of every keyed feature.

A history is the entries of one key (an *entity*) in time order, each with the running (prefix) sum
of its values. Before the first entry stands the sum of all that has expired::

    row      start   start+1  start+2  start+3 = end
    times      -       t0       t1       t2             int64, epoch ms
    sums      S0       S1       S2       S3             S3 - S1 = value of t1 + value of t2

So any window is two binary searches and a subtraction, whatever its length: the window
``(t - w, t]`` holds the entries after the last one at or before ``t - w``. No window keeps state of
its own, a late event gets the windows of its own time, and nothing is re-scanned.

A prefix sum is a pair of doubles, exact to about 106 bits (Knuth's TwoSum, The Art of Computer
Programming vol. 2, 4.2.2): subtracting two of them loses nothing when a huge value has left the
window or a key has lived for years.

All histories of a bucket lie in one array, each in a region of its own; ``udfs.kernels`` says how,
and does the work on a whole micro-batch per call.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from udfs import kernels
from udfs.events import FloatArray, IntArray
from udfs.feature_spec import WindowFeature

# Version, values, words per entry, zero (entries stay aligned); place in the order of arrival.
_HEADER = struct.Struct("<BBHIq")
_VERSION = 2
_AGGREGATES = {
    "count": kernels.COUNT,
    "sum": kernels.SUM,
    "mean": kernels.MEAN,
    "ratio_to_mean": kernels.RATIO_TO_MEAN,
}


class StateFormatError(ValueError):
    """Packed state that this release cannot read."""


def entry_bytes(values: int) -> int:
    """Size of one entry: time, id hash and check, and a double-double per value, in bytes."""
    return 8 * (kernels.SUMS + 2 * values)


class WindowPlan:
    """What to measure for the windows of one key over one stream.

    Attributes:
        columns: The features' names, in the order of the plan.
        values: The fields aggregated, in the order of a history's values.
        horizon_ms: How long entries are kept.
        spans: Distinct pairs of window and delay, ms, int64 (spans, 2).
        plan: Span, aggregate and value of each column, int64 (columns, 3).
    """

    def __init__(self, windows: Sequence[WindowFeature], horizon_ms: int) -> None:
        self.horizon_ms = horizon_ms
        self.columns = tuple(column for w in windows for column in w.columns)
        self.values = tuple(dict.fromkeys(w.value for w in windows if w.value is not None))
        spans = tuple(dict.fromkeys((span, w.delay) for w in windows for span in w.windows))
        self.spans = np.array(spans, np.int64).reshape(-1, 2)
        self.plan = np.array(
            [
                (spans.index((span, w.delay)), _AGGREGATES[aggregate], self._value(w))
                for w in windows
                for span in w.windows
                for aggregate in w.aggregates
            ],
            np.int64,
        ).reshape(-1, 3)

    def _value(self, window: WindowFeature) -> int:
        return self.values.index(window.value) if window.value is not None else 0


@dataclass(frozen=True, slots=True)
class Entries:
    """Entries to be added.

    Attributes:
        slots: The history of each, int64 (n,).
        times: Epoch ms, int64 (n,).
        values: float64 (n, values).
        ids: Hashes of the ids, int64 (n,).
        checks: Hashes of the contents, int64 (n,).
    """

    slots: IntArray
    times: IntArray
    values: FloatArray
    ids: IntArray
    checks: IntArray

    def select(self, rows: npt.NDArray[np.intp] | npt.NDArray[np.bool_]) -> Entries:
        """These entries alone."""
        return Entries(
            self.slots[rows],
            self.times[rows],
            self.values[rows],
            self.ids[rows],
            self.checks[rows],
        )


class Histories:
    """The histories of one bucket's entities.

    Args:
        values: How many value columns an entry has; 0 only counts.
        read: Gives an entity's packed history, or none if it has none yet.
        max_entries: The array's size at which unpacked histories are better dropped.
    """

    def __init__(
        self,
        values: int,
        read: Callable[[str], bytes | None] = lambda _: None,
        max_entries: int = 1 << 62,
    ) -> None:
        self.values = values
        self._read = read
        self._max_entries = max_entries
        self._words = entry_bytes(values) // 8
        layout = _HEADER.pack(_VERSION, values, self._words, 0, 0)
        self._header = np.frombuffer(layout, np.int64)[0]
        self.clear()

    def clear(self) -> None:
        """Drop all that is unpacked, which must be stored elsewhere."""
        self._names: list[str] = []
        self._slots: dict[str, int] = {}
        self._regions = np.zeros((1_024, 4), np.int64)
        self._written = np.zeros(1_024, np.int64)
        self._used = np.zeros(1, np.int64)
        self._set_entries(np.zeros((4_096, self._words), np.int64))

    def _set_entries(self, entries: IntArray) -> None:
        self._ints = entries
        self._floats: FloatArray = entries.view(np.float64)

    def __len__(self) -> int:
        """How many entities are unpacked."""
        return len(self._slots)

    @property
    def entities(self) -> tuple[str, ...]:
        """The entities that are unpacked."""
        return tuple(self._names)

    def names(self, slots: IntArray) -> list[str]:
        """The entity of each slot."""
        return [self._names[slot] for slot in slots.tolist()]

    def written_until(self, slots: IntArray) -> IntArray:
        """The ``until`` each slot's history was last packed with, or read with; int64 (n,)."""
        return self._written[slots]

    @property
    def is_over_size(self) -> bool:
        """Whether more is unpacked than ``max_entries``."""
        return bool(self._used[0] > self._max_entries)

    @property
    def capacity_bytes(self) -> int:
        """Memory of the shared array, in bytes."""
        return self._ints.nbytes

    def slots(self, entities: Sequence[str]) -> IntArray:
        """The slot of each entity; an unknown one is read, or begins with an empty history.

        Raises:
            StateFormatError: a packed history is of another layout or version.
        """
        known = self._slots
        try:
            return np.array([known[entity] for entity in entities], np.int64)
        except KeyError:
            for entity in entities:
                if entity not in known:
                    self._open(entity)
            return np.array([known[entity] for entity in entities], np.int64)

    def _open(self, entity: str) -> None:
        packed = self._read(entity)
        live = 1 if packed is None else (len(packed) - _HEADER.size) // (8 * self._words)
        slot = len(self._slots)
        if slot == len(self._regions):
            self._regions = np.concatenate([self._regions, np.zeros_like(self._regions)])
            self._written = np.concatenate([self._written, np.zeros_like(self._written)])
        capacity = max(kernels.MIN_CAPACITY, 2 * live)
        if self._used[0] + capacity > len(self._ints):
            self._grow(capacity)
        begin = int(self._used[0])
        if packed is None:
            self._ints[begin] = 0
        else:
            self._ints[begin : begin + live] = self._unpack(packed)
            self._written[slot] = _HEADER.unpack_from(packed)[-1]
        self._used[0] += capacity
        self._regions[slot] = begin, begin, begin + live - 1, begin + capacity
        self._slots[entity] = slot
        self._names.append(entity)

    def _unpack(self, packed: bytes) -> IntArray:
        entries, rest = divmod(len(packed) - _HEADER.size, 8 * self._words)
        if packed[:8] != self._header.tobytes() or entries < 1 or rest:
            raise StateFormatError(
                "a stored history has another layout (windows over other values, or another "
                "release): start without this state, or with the settings that wrote it"
            )
        return np.frombuffer(packed, np.int64, offset=_HEADER.size).reshape(-1, self._words)

    def _grow(self, needed: int) -> None:
        """Move everything to an array in which at least half is free."""
        slots = len(self._slots)
        capacity = int((self._regions[:slots, kernels.LIMIT] - self._regions[:slots, 0]).sum())
        entries = np.zeros((2 * (capacity + needed) + 4_096, self._words), np.int64)
        kernels.compact(self._ints, entries, self._regions, slots, self._used)
        self._set_entries(entries)

    def pack(self, slots: IntArray, until: int = 0) -> list[bytes]:
        """Each slot's history as versioned bytes.

        Args:
            slots: int64 (n,).
            until: Place in the bucket's order of arrival up to which events are in the histories.
        """
        live = self._regions[slots, kernels.END] - self._regions[slots, kernels.START] + 1
        ends = np.cumsum(2 + self._words * live)
        words = np.empty(ends[-1] if len(ends) else 0, np.int64)
        kernels.pack(self._ints, self._regions, slots, self._header, until, ends, words)
        self._written[slots] = until
        data, bounds = words.tobytes(), [0, *(8 * ends).tolist()]
        return [data[begin:end] for begin, end in pairwise(bounds)]

    def observe(
        self, entries: Entries, plan: WindowPlan, dedupe_within_ms: int = 0
    ) -> tuple[FloatArray, IntArray]:
        """Add events one after the other; each sees its windows, itself included.

        Args:
            entries: The events in their order of arrival.
            plan: What to measure.
            dedupe_within_ms: An id seen within this time before the event is a repeat and not
                added; 0 looks for none.

        Returns:
            The features, float64 (n, columns), undefined for repeats; and for each event
            ``kernels.NEW``, ``DUPLICATE`` or, with another content, ``CONFLICT``, int64 (n,).
        """
        features = np.empty((len(entries.slots), len(plan.plan)))
        verdicts = np.zeros(len(entries.slots), np.int64)

        def run(row: int) -> int:
            next_row: int = kernels.observe(
                self._ints,
                self._floats,
                self._regions,
                self._used,
                entries.slots,
                entries.times,
                entries.values,
                entries.ids,
                entries.checks,
                dedupe_within_ms,
                plan.horizon_ms,
                plan.spans,
                plan.plan,
                features,
                verdicts,
                row,
            )
            return next_row

        self._run(run, entries)
        return features, verdicts

    def learn(self, entries: Entries) -> IntArray:
        """Add entries; one whose id is there already replaces it, or is a mere repeat.

        Returns:
            ``kernels.NEW``, ``DUPLICATE`` or, where it replaced another, ``CONFLICT``, int64 (n,).
        """
        verdicts = np.zeros(len(entries.slots), np.int64)

        def run(row: int) -> int:
            next_row: int = kernels.learn(
                self._ints,
                self._floats,
                self._regions,
                self._used,
                entries.slots,
                entries.times,
                entries.values,
                entries.ids,
                entries.checks,
                verdicts,
                row,
            )
            return next_row

        self._run(run, entries)
        return verdicts

    def _run(self, kernel: Callable[[int], int], entries: Entries) -> None:
        row = kernel(0)
        while row < len(entries.slots):
            region = self._regions[entries.slots[row]]
            self._grow(4 * int(region[kernels.LIMIT] - region[kernels.BEGIN]))
            row = kernel(row)

    def measure(self, slots: IntArray, times: IntArray, plan: WindowPlan) -> FloatArray:
        """The windows of events that are no entries; entries they no longer need are forgotten.

        Args:
            slots: int64 (n,).
            times: Event times, epoch ms, int64 (n,).
            plan: What to measure.

        Returns:
            float64 (n, columns).
        """
        features = np.empty((len(slots), len(plan.plan)))
        kernels.measure(
            self._ints,
            self._floats,
            self._regions,
            slots,
            times,
            plan.horizon_ms,
            plan.spans,
            plan.plan,
            features,
        )
        return features


def as_matrix(columns: Sequence[FloatArray], n: int) -> FloatArray:
    """Columns side by side, float64 (n, columns)."""
    return np.stack(columns, axis=1) if columns else np.empty((n, 0))
