"""The histories of entities whose numbers of entries are known before: without look-ups."""

from __future__ import annotations

import numpy as np

from udfs.compiled import Floats, Ints
from udfs.features import log_kernels as kernels
from udfs.features import parallel_kernels
from udfs.features.histories import Histories
from udfs.features.log_kernels import Log
from udfs.features.window_plan import WindowPlan


class PartHistories(Histories):
    """Histories for one of several threads; slots count from 0 and nothing is packed.

    Args:
        plan: Which series they have, and what is measured.
        lengths: The most entries of each, int64 (entities,).
    """

    _observe = staticmethod(parallel_kernels.observe)
    _add = staticmethod(parallel_kernels.add)
    _learn = staticmethod(parallel_kernels.learn)
    _measure = staticmethod(parallel_kernels.measure)

    def __init__(self, plan: WindowPlan, lengths: Ints) -> None:
        super().__init__(plan)
        self._log = part_log(plan, lengths)


def part_log(plan: WindowPlan, lengths: Ints) -> Log:
    """Memory for histories of these lengths, int64 (entities,), side by side."""
    ends = np.cumsum(lengths + 2)  # the row before the first entry, and one that stays free
    begins = ends - lengths - 2
    entries = np.zeros((ends[-1] if len(ends) else 0, plan.words), np.int64)
    entries[begins, kernels.TIME] = kernels.NEVER_MS
    regions = np.stack([begins, begins, begins, ends, -begins, 0 * begins], axis=1)
    floats: Floats = entries.view(np.float64)
    used = np.array([len(entries), 0], np.int64)
    return Log(entries, floats, regions, used, _index_for(lengths))


def _index_for(lengths: Ints) -> Ints:
    """An index that never gets full, however many of the histories' ids expire."""
    indexed = int(lengths[lengths >= kernels.LONG].sum())
    return np.zeros(1 << (2 * indexed + 1_024).bit_length(), np.int64)
