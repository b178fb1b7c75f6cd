"""Which series, or panes, stored histories have: features may have changed since."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from udfs.compiled import Floats


class StateFormatError(ValueError):
    """Packed state that this release cannot read."""


class Layouts:
    """Which series stored entries have: the features may have changed since they were stored.

    Args:
        series: The names of today's series.
        stored: Those of each earlier layout, the oldest first.
    """

    def __init__(self, series: Sequence[str], stored: Sequence[Sequence[str]] = ()) -> None:
        today = tuple(series)
        self.all = tuple(map(tuple, stored))
        if today not in self.all:
            self.all = (*self.all, today)
        self.today = self.all.index(today)
        self._places = [[s.index(n) if n in s else -1 for n in today] for s in self.all]

    def values_of(self, number: int, values: Floats) -> Floats:
        """Values of an earlier layout in today's order; a series it had not is NaN.

        Args:
            number: Which layout.
            values: float64 (n, its series).

        Raises:
            StateFormatError: there is no such layout, or it has another number of series.
        """
        if number >= len(self.all) or len(self.all[number]) != values.shape[1]:
            raise StateFormatError(FOREIGN)
        if number == self.today:
            return values
        padded = np.concatenate([values, np.full((len(values), 1), np.nan)], axis=1)
        return np.ascontiguousarray(padded[:, self._places[number]])


FOREIGN = (
    "a stored history has another layout (another key's, or another release's): start without this "
    "state, or with the settings that wrote it"
)
