"""Keys that are idle in event time, and the removal of their histories in slices.

A key is idle when the newest entry of its history is older than its bucket's clock by a given time;
the clock is the newest event that the bucket has seen. So a replay, or a job that was paused,
forgets what an uninterrupted one forgets.

A history that is written is registered under the period of its newest entry, once a period. When a
period is past, the histories registered there are looked at, a slice with each batch, and those
that have had no entry since are removed. A history is registered a few times before it can be idle,
so the cost is a fraction of that of writing it.

Map state of a bucket, beside that of ``states``::

    %             the clock, and how many slices each period has
    i<period>.<n> a slice: names of histories, at most 256
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import orjson

from udfs.compiled import Ints
from udfs.features.log_kernels import NEVER_MS

__all__ = ["IdleKeys"]

_DIRECTORY = "%"
_SLICE = 256
NEVER_IDLE_MS = 1 << 61
_PERIODS = 4
"""Periods in the time after which a key is idle: it goes at most a quarter of it later."""
_REMEMBERED = 1 << 18
"""Names whose period is in memory; a name that is forgotten may be registered twice."""


AreIdle = Callable[[list[str], int], list[str]]


class IdleKeys:
    """The idle keys of a bucket.

    Args:
        state: Map state of the bucket; the current key must be the bucket in every call.
        idle_ms: How much older than the clock the newest entry of an idle key is; none is idle from
            ``NEVER_IDLE_MS``.
        newest_of: Gives the time of the newest entry of a history from its name and bytes.
    """

    def __init__(self, state: Any, idle_ms: int, newest_of: Callable[[str, bytes], int]) -> None:
        self._state = state
        self._idle_ms = idle_ms
        self._period_ms = max(1, idle_ms // _PERIODS)
        self._registered: dict[str, int] = {}
        self.clock_ms = NEVER_MS
        self._slices: dict[int, int] = {}
        if idle_ms >= NEVER_IDLE_MS:
            return
        packed = state.get(_DIRECTORY)
        if packed is None:
            self._register_all(newest_of)
        else:
            directory = orjson.loads(packed)
            self.clock_ms = directory["clock_ms"]
            self._slices = {int(period): n for period, n in directory["slices"].items()}

    def _register_all(self, newest_of: Callable[[str, bytes], int]) -> None:
        """Those of a release that registered none."""
        newest = {
            name: newest_of(name, packed)
            for name, packed in self._state.items()
            if name[:1] in ("e", "l")
        }
        if newest:
            self._state.put_all(
                self.register([*newest], np.fromiter(newest.values(), np.int64, len(newest)))
            )

    def forget_registered(self, names: Sequence[str]) -> None:
        """Register these again when they are written, whatever their period."""
        for name in names:
            self._registered.pop(name, None)

    def register(self, names: Sequence[str], newest: Ints) -> dict[str, bytes]:
        """Register histories that are written.

        Args:
            names: Theirs, in the state.
            newest: Time of each one's newest entry, epoch ms, int64 (n,).

        Returns:
            What to put into the state.
        """
        if self._idle_ms >= NEVER_IDLE_MS:
            return {}
        if len(self._registered) > _REMEMBERED:
            self._registered.clear()
        periods = (newest // self._period_ms).tolist()
        changed: dict[int, list[str]] = {}
        for name, period in zip(names, periods, strict=True):
            if self._registered.get(name) != period:
                self._registered[name] = period
                changed.setdefault(period, []).append(name)
        if not changed:
            return {}
        made = {}
        for period, registered in changed.items():
            for start in range(0, len(registered), _SLICE):
                number = self._slices.get(period, 0)
                made[f"i{period}.{number}"] = orjson.dumps(registered[start : start + _SLICE])
                self._slices[period] = number + 1
        return made | self._directory()

    def _directory(self) -> dict[str, bytes]:
        slices = {str(period): n for period, n in self._slices.items()}
        return {_DIRECTORY: orjson.dumps({"clock_ms": self.clock_ms, "slices": slices})}

    def sweep(self, events: int, are_idle: AreIdle) -> None:
        """Remove the idle histories of periods that are past: at least as many as may have come.

        Args:
            events: How many events the bucket has got since it was swept.
            are_idle: Gives those of some histories whose newest entry, wherever it is kept, is
                before a time, and forgets them.
        """
        for _ in range(1 + 2 * events // _SLICE):
            self._sweep_one(are_idle)

    def _sweep_one(self, are_idle: AreIdle) -> None:
        if not self._slices:
            return
        period, until_ms = min(self._slices), self.clock_ms - self._idle_ms
        if (period + 1) * self._period_ms > until_ms:
            return
        number = self._slices[period] - 1
        name = f"i{period}.{number}"
        packed = self._state.get(name)
        for idle in are_idle([] if packed is None else orjson.loads(packed), until_ms):
            self._registered.pop(idle, None)
            self._state.remove(idle)
        self._state.remove(name)
        if number:
            self._slices[period] = number
        else:
            del self._slices[period]
        self._state.put_all(self._directory())
