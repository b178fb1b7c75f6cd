"""Which keys have sent nothing for long, by the clock; the clock is the caller's."""

from __future__ import annotations

import numpy as np

from udfs.compiled import Ints
from udfs.features.log_kernels import NEVER_MS
from udfs.rollup.windows import OpenWindows


class Idleness:
    """When each key of a bucket was heard last.

    After a restart each counts as heard then: a job that was away takes no machine for silent.

    Args:
        windows: The bucket's open windows.
        idle_ms: A key that sent nothing for so long gets its windows closed.
        silent_ms: One that sent nothing for so long is silent; None tells nobody.
        now_ms: Epoch ms.
        overdue_ms: See ``RollupSpec.overdue``.
    """

    def __init__(
        self,
        windows: OpenWindows,
        idle_ms: int,
        silent_ms: int | None,
        now_ms: int,
        overdue_ms: int | None = None,
    ) -> None:
        self._windows, self._idle_ms, self._silent_ms = windows, idle_ms, silent_ms
        self._overdue_ms = overdue_ms
        self._lag_ms: float = np.inf  # after a restart, until readings say how far the job is
        self._heard_ms = np.full(max(1_024, len(windows)), now_ms)
        self._newest_ms = np.full_like(self._heard_ms, NEVER_MS)
        self._newest_ms[: len(windows)] = windows.newest(np.arange(len(windows)))
        self._moved_ms = self._heard_ms.copy()  # when the newest reading came

    @property
    def tick_ms(self) -> int:
        """How often to look: what is due is found at most that much later."""
        if self._overdue_ms is None:
            return self.stall_ms
        return min(self.stall_ms, max(50, self._overdue_ms // 10))

    @property
    def stall_ms(self) -> int:
        """A look that is so late tells that the job stood still."""
        return min(1_000, max(50, self._idle_ms // 8))

    def heard(self, slots: Ints, now_ms: int, written_ms: int | None = None) -> None:
        """Readings of these keys came, whatever became of them.

        Args:
            slots: The keys'.
            now_ms: Epoch ms.
            written_ms: When Kafka got the oldest of them; none: now.
        """
        self._lag_ms = 0 if written_ms is None else now_ms - written_ms
        if len(self._windows) > len(self._heard_ms):
            more = np.full(2 * len(self._windows) - len(self._heard_ms), now_ms)
            self._heard_ms = np.concatenate([self._heard_ms, more])
            self._moved_ms = np.concatenate([self._moved_ms, more])
            never = np.full(len(more), NEVER_MS)
            self._newest_ms = np.concatenate([self._newest_ms, never])
        self._heard_ms[slots] = now_ms
        newest_ms = self._windows.newest(slots)
        self._moved_ms[slots[newest_ms != self._newest_ms[slots]]] = now_ms
        self._newest_ms[slots] = newest_ms

    def forgive(self, blocked_ms: int) -> None:
        """The job itself stood still for so long: nobody could be heard."""
        self._heard_ms += blocked_ms
        self._moved_ms += blocked_ms

    def idle(self, now_ms: int) -> Ints:
        """The slots whose open windows must close."""
        slots = self._windows.open_slots()
        found: Ints = slots[self._heard_ms[slots] <= now_ms - self._idle_ms]
        return found

    def overdue(self, now_ms: int) -> tuple[Ints, Ints]:
        """The slots whose next reading is too late to wait for it with an open window.

        By their own time: as far as their newest reading, and as much further as time has passed
        since that came. While the job is behind its input, and after a restart until it has read
        of it, it is the job that is late: none is found.

        Returns:
            The slots, and where the last such window of each one ends, both int64 (n,).
        """
        if self._overdue_ms is None or self._lag_ms > self._overdue_ms:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        keys = len(self._windows)
        own_ms = self._newest_ms[:keys] + now_ms - self._moved_ms[:keys]
        return self._windows.open_until(own_ms - self._windows.lateness_ms - self._overdue_ms)

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
