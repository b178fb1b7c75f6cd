"""Exact sliding windows over the histories of many keys: the heart of every keyed feature.

A history is the entries of one key (an *entity*) in time order, each with the running (prefix) sum
of its values. Before the first entry stands the sum of all that has expired::

    index    start   start+1  start+2  start+3 = end
    times      -       t0       t1       t2             int64, epoch ms
    sums      S0       S1       S2       S3             S3 - S1 = value of t1 + value of t2

So any window is two binary searches and a subtraction, whatever its length: the window
``(t - w, t]`` holds the entries after the last one at or before ``t - w``. No window keeps state of
its own, a late event gets the windows of its own time, and nothing is re-scanned.

A prefix sum is a pair of doubles, exact to about 106 bits (Knuth's TwoSum, The Art of Computer
Programming vol. 2, 4.2.2): subtracting two of them loses nothing when a huge value has left the
window or a key has lived for years.

All histories of a bucket lie in one array, each in a region of its own, and a whole micro-batch is
appended and measured by NumPy at once. Per event that is a fraction of what a Python loop costs.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from udfs.events import FloatArray, IntArray

IdArray = npt.NDArray[np.uint64]
CheckArray = npt.NDArray[np.uint32]

_HEADER = struct.Struct("<BBH")
_VERSION = 1
_MIN_CAPACITY = 8
_FOREVER = np.iinfo(np.int64).max


class StateFormatError(ValueError):
    """Packed state that this release cannot read."""


def record_type(values: int) -> np.dtype[np.void]:
    """The layout of one entry: time, prefix sums (double-double) per value, identity."""
    sums = [(f"{part}{n}", "<f8") for n in range(values) for part in ("high", "low")]
    return np.dtype([("time", "<i8"), ("id", "<u8"), ("check", "<u4"), *sums])


def ragged(starts: IntArray, lengths: IntArray) -> IntArray:
    """The indices ``starts[i] .. starts[i] + lengths[i] - 1`` of every i, one after the other."""
    before = np.cumsum(lengths) - lengths
    indices: IntArray = np.repeat(starts - before, lengths)
    indices += np.arange(len(indices), dtype=np.int64)
    return indices


class Histories:
    """The histories of one bucket's entities.

    Args:
        values: How many value columns an entry has; 0 only counts.
        read: Gives an entity's packed history, or none if it has none yet.
        max_entries: The array's size at which unpacked histories are dropped (``trim``).
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
        self._type = record_type(values)
        self._header = _HEADER.pack(_VERSION, values, self._type.itemsize)
        self._clear()

    def _clear(self) -> None:
        self._slots: dict[str, int] = {}
        self._start = np.empty(1_024, np.int64)
        self._end = np.empty(1_024, np.int64)
        self._limit = np.empty(1_024, np.int64)
        self._used = 0
        self._set_records(np.zeros(16_384, self._type))

    def _set_records(self, records: npt.NDArray[np.void]) -> None:
        self._records = records
        self._times: IntArray = records["time"]
        self._ids: IdArray = records["id"]
        self._checks: CheckArray = records["check"]
        self._high: list[FloatArray] = [records[f"high{n}"] for n in range(self.values)]
        self._low: list[FloatArray] = [records[f"low{n}"] for n in range(self.values)]

    def __len__(self) -> int:
        """How many entities are unpacked."""
        return len(self._slots)

    @property
    def capacity_bytes(self) -> int:
        """Memory of the shared array, in bytes."""
        return self._records.nbytes

    # -- entities ---------------------------------------------------------------------------

    def slots(self, entities: Sequence[str]) -> IntArray:
        """The slot of each entity; an unknown one is read, or begins with an empty history.

        Raises:
            StateFormatError: a packed history is of another layout or version.
        """
        known = self._slots
        found = [known.get(entity, -1) for entity in entities]
        if -1 in found:
            for entity in entities:
                if entity not in known:
                    self._open(entity)
            found = [known[entity] for entity in entities]
        return np.array(found, dtype=np.int64)

    def _open(self, entity: str) -> None:
        packed = self._read(entity)
        records = np.zeros(1, self._type) if packed is None else self._unpack(packed)
        slot = len(self._slots)
        if slot == len(self._start):
            self._start, self._end, self._limit = (
                np.concatenate([a, np.empty_like(a)]) for a in (self._start, self._end, self._limit)
            )
        self._slots[entity] = slot
        self._place(slot, records, 0)

    def _unpack(self, packed: bytes) -> npt.NDArray[np.void]:
        if packed[: _HEADER.size] != self._header or (len(packed) - _HEADER.size) % (
            self._type.itemsize
        ):
            raise StateFormatError(
                "a stored history has another layout (windows over other values, or another "
                "release): start without this state, or with the settings that wrote it"
            )
        return np.frombuffer(packed, self._type, offset=_HEADER.size)

    def pack(self, slots: IntArray) -> list[bytes]:
        """Each slot's history as versioned bytes."""
        header, records = self._header, self._records
        ranges = zip(self._start[slots].tolist(), (self._end[slots] + 1).tolist(), strict=True)
        return [header + records[start:end].tobytes() for start, end in ranges]

    def trim(self) -> None:
        """Drop what is unpacked when the array is over its size; all of it is stored elsewhere."""
        if self._used > self._max_entries:
            self._clear()

    # -- room -------------------------------------------------------------------------------

    def _place(self, slot: int, records: npt.NDArray[np.void], extra: int) -> None:
        """Give a slot a new region that holds these records and has room for ``extra`` more."""
        capacity = max(_MIN_CAPACITY, 2 * (len(records) + extra))
        if self._used + capacity > len(self._records):
            self._grow(capacity)
        start = self._used
        self._used += capacity
        self._records[start : start + len(records)] = records
        self._start[slot] = start
        self._end[slot] = start + len(records) - 1
        self._limit[slot] = start + capacity

    def _grow(self, needed: int) -> None:
        larger = np.zeros(max(2 * len(self._records), self._used + needed), self._type)
        larger[: self._used] = self._records[: self._used]
        self._set_records(larger)

    def _reserve(self, slots: IntArray, counts: IntArray) -> None:
        """Make room for ``counts`` more entries in each of these distinct slots."""
        short = np.flatnonzero(self._end[slots] + counts >= self._limit[slots])
        for slot, extra in zip(slots[short].tolist(), counts[short].tolist(), strict=True):
            live = self._records[self._start[slot] : self._end[slot] + 1].copy()
            self._place(slot, live, extra)
        if len(short):
            self._compact()

    def _compact(self) -> None:
        """Move the regions together when less than a third of the used part is theirs."""
        n = len(self._slots)
        capacity = self._limit[:n] - self._start[:n]
        if self._used < 65_536 or 3 * int(capacity.sum()) > self._used:
            return
        old = self._start[:n].copy()
        lengths = self._end[:n] - old + 1
        starts = np.cumsum(capacity) - capacity
        records = np.zeros(max(16_384, 2 * int(capacity.sum())), self._type)
        records[ragged(starts, lengths)] = self._records[ragged(old, lengths)]
        self._used = int(capacity.sum())
        self._start[:n], self._end[:n] = starts, starts + lengths - 1
        self._limit[:n] = starts + capacity
        self._set_records(records)

    # -- entries ----------------------------------------------------------------------------

    def add(
        self,
        slots: IntArray,
        times: IntArray,
        values: FloatArray,
        ids: IdArray,
        checks: CheckArray,
    ) -> None:
        """Put entries at their places in time, after those of the same time.

        Entries at least as new as their history's newest are appended, all at once; older ones
        are inserted, the n-th late entry of every history together.

        Args:
            slots: The history of each entry, n of them; a history may occur more than once.
            times: Epoch ms, int64 (n,).
            values: float64 (n, values).
            ids: 8-byte id hashes, uint64 (n,).
            checks: 4-byte content checks, uint32 (n,).
        """
        self._reserve(*np.unique(slots, return_counts=True))
        order = np.lexsort((times, slots))
        entries = _Entries(slots[order], times[order], values[order], ids[order], checks[order])
        end = self._end[entries.slots]
        newest = np.where(end > self._start[entries.slots], self._times[end], -_FOREVER)
        late = entries.times < newest
        if late.any():
            self._insert(entries.select(np.flatnonzero(late)))
            entries = entries.select(np.flatnonzero(~late))
        self._append(entries)

    def _append(self, entries: _Entries) -> None:
        rank, distinct, counts = _ranks(entries.slots)
        at = self._end[entries.slots] + 1 + rank
        self._end[distinct] += counts
        self._write(at, entries)
        for rows in _waves(rank):
            self._sum(at[rows], entries.values[rows])

    def _insert(self, entries: _Entries) -> None:
        for rows in _waves(_ranks(entries.slots)[0]):
            self._insert_distinct(entries.select(rows))

    def _insert_distinct(self, entries: _Entries) -> None:
        """Insert at most one entry per history: later entries move up and their sums grow."""
        end = self._end[entries.slots]
        at = self.index_at(entries.slots, entries.times, end) + 1
        lengths = end + 1 - at
        later = ragged(at, lengths)
        self._records[later + 1] = self._records[later]
        self._end[entries.slots] += 1
        self._write(at, entries)
        self._sum(at, entries.values)
        self._raise(later + 1, np.repeat(entries.values, lengths, axis=0))

    def _write(self, at: IntArray, entries: _Entries) -> None:
        self._times[at] = entries.times
        self._ids[at] = entries.ids
        self._checks[at] = entries.checks

    def _sum(self, at: IntArray, values: FloatArray) -> None:
        """Set the prefix sums at distinct indices: the sum before, plus the value."""
        for n, (high, low) in enumerate(zip(self._high, self._low, strict=True)):
            high[at], error = _two_sum(high[at - 1], values[:, n])
            low[at] = low[at - 1] + error

    def _raise(self, at: IntArray, values: FloatArray) -> None:
        """Add a value to the prefix sums at distinct indices."""
        for n, (high, low) in enumerate(zip(self._high, self._low, strict=True)):
            high[at], error = _two_sum(high[at], values[:, n])
            low[at] += error

    def remove(self, slot: int, index: int) -> None:
        """Take the entry at that index out."""
        end = int(self._end[slot])
        value = [
            (high[index] - high[index - 1]) + (low[index] - low[index - 1])
            for high, low in zip(self._high, self._low, strict=True)
        ]
        self._records[index:end] = self._records[index + 1 : end + 1].copy()
        self._end[slot] -= 1
        moved = np.arange(index, end)
        self._raise(moved, np.tile(-np.array(value), (len(moved), 1)))

    # -- windows ----------------------------------------------------------------------------

    def index_at(self, slots: IntArray, limits: IntArray, last: IntArray) -> IntArray:
        """The index of the last entry at or before a time, by binary search in every history.

        Args:
            slots: The histories, broadcastable to the shape of ``limits``.
            limits: Epoch ms.
            last: Entries after this index are not looked at; shaped like ``slots``.

        Returns:
            Indices shaped like ``limits``; the history's start where every entry is later.
        """
        low = np.broadcast_to(self._start[slots], limits.shape).copy()
        high = np.broadcast_to(last, limits.shape).copy()
        for _ in range(int((high - low).max(initial=0)).bit_length()):
            middle = (low + high + 1) >> 1
            inside = (self._times[middle] <= limits) & (low < high)
            low = np.where(inside, middle, low)
            high = np.where(inside, high, np.maximum(low, middle - 1))
        return low

    def measure(
        self, slots: IntArray, times: IntArray, spans: Sequence[tuple[int, int]]
    ) -> FloatArray:
        """Count and sums of the windows ``(t - delay - window, t - delay]`` of stored entries.

        Args:
            slots: int64 (n,).
            times: The t of each row, epoch ms, int64 (n,).
            spans: Pairs of window and delay, in ms.

        Returns:
            float64 (n, spans, 1 + values): the count, then the sum of each value.
        """
        ends = times[:, None] - np.array([delay for _, delay in spans], np.int64)
        starts = ends - np.array([window for window, _ in spans], np.int64)
        rows, last = slots[:, None], self._end[slots][:, None]
        end = self.index_at(rows, ends, last)
        start = self.index_at(rows, starts, end)
        result = np.empty((*ends.shape, 1 + self.values))
        result[:, :, 0] = end - start
        for n, (high, low) in enumerate(zip(self._high, self._low, strict=True)):
            result[:, :, 1 + n] = (high[end] - high[start]) + (low[end] - low[start])
        return result

    def find(self, slots: IntArray, ids: IdArray, since: IntArray) -> IntArray:
        """The index of an entry with that id and a time after ``since``; -1 where there is none."""
        end = self._end[slots]
        start = self.index_at(slots, since, end)
        lengths = end - start
        found = np.full(len(slots), -1, np.int64)
        if not lengths.any():
            return found
        entries = ragged(start + 1, lengths)
        owners = np.repeat(np.arange(len(slots)), lengths)
        hits = np.flatnonzero(self._ids[entries] == ids[owners])
        found[owners[hits]] = entries[hits]
        return found

    def check_at(self, index: IntArray) -> CheckArray:
        """The content checks of the entries at these indices."""
        return self._checks[index]

    def expire(self, slots: IntArray, horizon_ms: int, now: IntArray | None = None) -> None:
        """Forget entries at or before ``now - horizon``; now defaults to the newest entry's time.

        The sums stay right: the last entry forgotten becomes the sum before the first.
        """
        end = self._end[slots]
        newest = self._times[end] if now is None else now
        self._start[slots] = self.index_at(slots, newest - horizon_ms, end)


@dataclass(frozen=True, slots=True)
class _Entries:
    slots: IntArray
    times: IntArray
    values: FloatArray
    ids: IdArray
    checks: CheckArray

    def select(self, rows: npt.NDArray[np.intp]) -> _Entries:
        return _Entries(
            self.slots[rows], self.times[rows], self.values[rows], self.ids[rows], self.checks[rows]
        )


def _two_sum(a: FloatArray, b: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The rounded sum and its exact error."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def _ranks(ordered: IntArray) -> tuple[IntArray, IntArray, IntArray]:
    """For equal values side by side: each row's rank among its equals, the values, the counts."""
    distinct, first, counts = np.unique(ordered, return_index=True, return_counts=True)
    return np.arange(len(ordered)) - np.repeat(first, counts), distinct, counts


def _waves(rank: IntArray) -> Iterator[npt.NDArray[np.intp]]:
    """The rows of rank 0, then those of rank 1, ..."""
    order = np.argsort(rank, kind="stable")
    yield from np.split(order, np.cumsum(np.bincount(rank))[:-1]) if len(rank) else ()


def among_rows(
    slots: IntArray, times: IntArray, values: FloatArray, spans: Sequence[tuple[int, int]]
) -> FloatArray:
    """What the rows of one batch add to each other's windows: each sees itself and those before it.

    Args:
        slots: The history of each row, int64 (n,).
        times: Epoch ms, int64 (n,).
        values: float64 (n, values).
        spans: Pairs of window and delay, in ms.

    Returns:
        float64 (n, spans, 1 + values), to be added to ``Histories.measure`` taken before ``add``.
    """
    order = np.argsort(slots, kind="stable")
    rank, _, _ = _ranks(slots[order])
    seen = rank + 1
    viewer = order[np.repeat(np.arange(len(order)), seen)]
    entry = order[ragged(np.arange(len(order)) - rank, seen)]
    age = times[viewer] - times[entry]
    result = np.zeros((len(slots), len(spans), 1 + values.shape[1]))
    for at, (window, delay) in enumerate(spans):
        inside = np.flatnonzero((age >= delay) & (age < delay + window))
        rows, entries = viewer[inside], entry[inside]
        result[:, at, 0] = np.bincount(rows, minlength=len(slots))
        for n in range(values.shape[1]):
            result[:, at, 1 + n] = np.bincount(rows, values[entries, n], len(slots))
    return result
