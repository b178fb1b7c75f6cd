"""Where a run's rows are by the second of the run."""

from __future__ import annotations

import numpy as np

from jobs.demo.iot.runs import Run
from udfs.batches.events import IntArray


class Grids:
    """Each run's rows by the second of the run; a run begins again when it ends.

    Args:
        runs: Their rows follow each other in one table.
    """

    def __init__(self, runs: tuple[Run, ...]) -> None:
        lengths = [int(run.times_s[-1] - run.times_s[0]) + 1 for run in runs]
        rows = [len(run) for run in runs]
        self.first: IntArray = np.concatenate([[0], np.cumsum(rows)[:-1]]).astype(np.int64)
        self.lengths: IntArray = np.array(lengths, np.int64)
        self._starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        self._grid: IntArray = np.full(sum(lengths), -1, np.int64)
        for n, run in enumerate(runs):
            at = self._starts[n] + run.times_s - run.times_s[0]
            self._grid[at] = self.first[n] + np.arange(len(run))

    def rows(self, runs: IntArray, seconds: IntArray) -> IntArray:
        """Rows among all runs' rows, -1 where a run has no reading in that second."""
        found: IntArray = self._grid[self._starts[runs] + seconds % self.lengths[runs]]
        return found
