"""Which keys have sent nothing for long, by the clock; the clock is the caller's."""

from __future__ import annotations

import numpy as np

from udfs.compiled import Ints
from udfs.rollup.windows import OpenWindows


class Idleness:
    """When each key of a bucket was heard last.

    After a restart each counts as heard then: a job that was away takes no machine for silent.

    Args:
        windows: The bucket's open windows.
        idle_ms: A key that sent nothing for so long gets its windows closed.
        silent_ms: One that sent nothing for so long is silent; None tells nobody.
        now_ms: Epoch ms.
    """

    def __init__(
        self, windows: OpenWindows, idle_ms: int, silent_ms: int | None, now_ms: int
    ) -> None:
        self._windows, self._idle_ms, self._silent_ms = windows, idle_ms, silent_ms
        self._heard_ms = np.full(max(1_024, len(windows)), now_ms)

    @property
    def tick_ms(self) -> int:
        """How often to look: an idle key is found at most that much later."""
        return min(1_000, max(50, self._idle_ms // 8))

    def heard(self, slots: Ints, now_ms: int) -> None:
        """Readings of these keys came, whatever became of them."""
        if len(self._windows) > len(self._heard_ms):
            more = np.full(2 * len(self._windows) - len(self._heard_ms), now_ms)
            self._heard_ms = np.concatenate([self._heard_ms, more])
        self._heard_ms[slots] = now_ms

    def forgive(self, blocked_ms: int) -> None:
        """The job itself stood still for so long: nobody could be heard."""
        self._heard_ms += blocked_ms

    def idle(self, now_ms: int) -> Ints:
        """The slots whose open windows must close."""
        slots = self._windows.open_slots()
        found: Ints = slots[self._heard_ms[slots] <= now_ms - self._idle_ms]
        return found

    def newly_silent(self, now_ms: int) -> Ints:
        """The slots whose silence has not been told; it counts as told from now on."""
        if self._silent_ms is None:
            return np.empty(0, np.int64)
        heard_ms = self._heard_ms[: len(self._windows)]
        slots = np.flatnonzero(heard_ms <= now_ms - self._silent_ms)
        newest_ms = self._windows.newest(slots)
        told = self._windows.marks.silent_since
        is_new = told[slots] != newest_ms
        told[slots[is_new]] = newest_ms[is_new]
        found: Ints = slots[is_new]
        return found
