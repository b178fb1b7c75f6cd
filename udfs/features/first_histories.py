"""The oldest events of each key, which nothing makes forget: what ``first`` windows look at."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from udfs.compiled import Floats, Ints
from udfs.features import measure_kernels, parallel_kernels
from udfs.features.histories import Entries, Histories
from udfs.features.layouts import Layouts
from udfs.features.part_histories import part_log
from udfs.features.window_plan import WindowPlan


class FirstHistories(Histories):
    """As ``Histories``, of at most as many entries as the largest window has.

    Args:
        plan: Windows by first events alone.
        read: Gives an entity's packed history, or none if it has none yet.
        max_entries: The array's size at which unpacked histories are better dropped.
        layouts: How packed histories may lie.
    """

    _observe_first = staticmethod(measure_kernels.observe_first)

    def __init__(
        self,
        plan: WindowPlan,
        read: Callable[[str], bytes | None] = lambda _: None,
        max_entries: int = 1 << 62,
        layouts: Layouts | None = None,
    ) -> None:
        super().__init__(plan, read, max_entries, layouts)
        self._changed: list[Ints] = []

    def measure_first(self, entries: Entries) -> Floats:
        """Add events one after the other where they are among the first; each sees its windows.

        Returns:
            The features, float64 (n, columns).
        """
        plan, n = self.plan, len(entries.slots)
        features, changed = np.empty((n, len(plan.columns))), np.zeros(n, np.int64)
        rows, bounds = entries.rows, plan.bounds(entries.times)

        def run(at: int) -> int:
            return self._observe_first(
                self._log, rows, plan.layout, plan.plan, bounds, features, changed, at
            )

        self._run(run, entries)
        self._changed.append(entries.slots[changed == 1])
        return features

    def take_changed(self) -> Ints:
        """The slots whose entries are others than when this was called last."""
        found: Ints = np.unique(np.concatenate([np.empty(0, np.int64), *self._changed]))
        self._changed.clear()
        return found


class PartFirstHistories(FirstHistories):
    """The same for one of several threads; slots count from 0 and nothing is packed.

    Args:
        plan: Windows by first events alone.
        lengths: The most events of each key, int64 (keys,).
    """

    _observe_first = staticmethod(parallel_kernels.observe_first)

    def __init__(self, plan: WindowPlan, lengths: Ints) -> None:
        super().__init__(plan)
        most = int(plan.plan.kinds[:, 1].max())
        # One more than is kept: an event that is late comes in before the newest goes.
        self._log = part_log(plan, np.minimum(lengths, most) + 1)
