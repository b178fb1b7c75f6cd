"""Exact sliding windows in plain Python, for the peers that have none per event.

It runs in the peers' own environments, so it imports nothing of this project.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

Group = tuple[int, tuple[str, ...], tuple[str, ...]]
"""A window of a key: its length in ms, its aggregates, and the features' names."""


def read_groups(path: str) -> dict[str, list[Group]]:
    """The windows of each key, from the columns that ``bench/features.py`` wrote as JSON."""
    columns = json.loads(Path(path).read_text())
    groups: dict[str, list[Group]] = {}
    for (key, window_ms), members in groupby(columns, lambda c: (c["key"], c["window_ms"])):
        part = list(members)
        aggregates = tuple(column["aggregate"] for column in part)
        names = tuple(column["name"] for column in part)
        groups.setdefault(key, []).append((window_ms, aggregates, names))
    return groups


class Window:
    """The latest ``length_ms`` of one key, updated in constant time per event.

    Mean and squared deviations follow Welford, also backwards as events leave; minimum and maximum
    are the heads of monotonic queues. What no aggregate needs is not kept.
    """

    __slots__ = (
        "_entries",
        "_highs",
        "_length_ms",
        "_lows",
        "_mean",
        "_spread",
        "_total",
        "_write",
    )

    def __init__(self, length_ms: int, aggregates: Sequence[str]) -> None:
        self._length_ms = length_ms
        self._entries: deque[tuple[int, float]] = deque()
        self._total = self._mean = self._spread = 0.0
        self._lows: deque[tuple[int, float]] | None = deque() if "min" in aggregates else None
        self._highs: deque[tuple[int, float]] | None = deque() if "max" in aggregates else None
        if "std" not in aggregates:
            self._spread = math.nan
        self._write = aggregates

    def add(self, time_ms: int, value: float) -> list[float | None]:
        """Add an event; returns the aggregates as it sees them, itself included."""
        entries = self._entries
        entries.append((time_ms, value))
        self._enter(value)
        until_ms = time_ms - self._length_ms
        while entries[0][0] <= until_ms:
            self._leave(entries.popleft()[1])
        if len(entries) == 1:  # what rounding left of earlier events ends here
            self._total = self._mean = value
            self._spread *= 0.0  # which stays NaN where nobody asks for it
        if self._lows is not None:
            _push(self._lows, time_ms, value, until_ms, -1.0)
        if self._highs is not None:
            _push(self._highs, time_ms, value, until_ms, 1.0)
        return [_AGGREGATES[name](self, value) for name in self._write]

    def _enter(self, value: float) -> None:
        self._total += value
        if self._spread == self._spread:
            delta = value - self._mean
            self._mean += delta / len(self._entries)
            self._spread += delta * (value - self._mean)

    def _leave(self, value: float) -> None:
        self._total -= value
        if self._spread == self._spread:
            delta = value - self._mean
            self._mean -= delta / len(self._entries)
            self._spread -= delta * (value - self._mean)


def _push(
    queue: deque[tuple[int, float]], time_ms: int, value: float, until_ms: int, sign: float
) -> None:
    while queue and sign * queue[-1][1] <= sign * value:
        queue.pop()
    queue.append((time_ms, value))
    while queue[0][0] <= until_ms:
        queue.popleft()


_AGGREGATES: dict[str, Callable[[Any, float], float | None]] = {
    "count": lambda w, own: len(w._entries),
    "sum": lambda w, own: w._total,
    "mean": lambda w, own: w._total / len(w._entries),
    "ratio_to_mean": lambda w, own: own * len(w._entries) / w._total if w._total else None,
    "min": lambda w, own: w._lows[0][1],
    "max": lambda w, own: w._highs[0][1],
    "std": lambda w, own: math.sqrt(max(w._spread, 0.0) / len(w._entries)),
}


def recounted(
    times: Sequence[float], values: Sequence[float], groups: Sequence[Group]
) -> dict[str, float | None]:
    """The features of the last event of a key's history, recounted.

    For a peer that stores a key's state as bytes: what it reads and writes should be short.
    """
    features: dict[str, float | None] = {}
    for length_ms, aggregates, names in groups:
        inside = values[bisect_right(times, times[-1] - length_ms) :]
        count, total = len(inside), sum(inside)
        mean = total / count
        for name, aggregate in zip(names, aggregates, strict=True):
            if aggregate == "count":
                features[name] = count
            elif aggregate == "sum":
                features[name] = total
            elif aggregate == "mean":
                features[name] = mean
            elif aggregate == "ratio_to_mean":
                features[name] = inside[-1] / mean if mean else None
            elif aggregate == "min":
                features[name] = min(inside)
            elif aggregate == "max":
                features[name] = max(inside)
            else:
                features[name] = math.sqrt(sum((v - mean) ** 2 for v in inside) / count)
    return features
