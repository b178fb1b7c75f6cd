"""A keyed stage over a whole history: some entities at a time, in threads.

An entity's features depend on its own events alone, so entities may be taken in any order. With all
events of an entity one after the other its history stays in the processor's cache, and threads
share nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from udfs.batches.events import FloatArray, IntArray
from udfs.compiled import Floats
from udfs.features.identities import Identities
from udfs.features.keyed import KeyedStage
from udfs.features.parallel_kernels import group


@dataclass(frozen=True, slots=True)
class StageEvents:
    """Events or labels of a stage, in their order of arrival.

    Attributes:
        entities: The number of each one's entity, from 0; -1 leaves it out; int64 (n,).
        times: Epoch ms, int64 (n,).
        values: The stage's series by name, or what labels say, float64 (n,) each.
        identities: Of each.
    """

    entities: IntArray
    times: IntArray
    values: dict[str, FloatArray]
    identities: Identities


class StagePass:
    """One stage's features of all events.

    Args:
        stage: The stage.
        count: How many entities there are.
        events: The events.
        labels: The late labels, in ``values[""]``; none if the stage reads none.

    Attributes:
        kept: Which events are no duplicates, once it has run; bool (n,).
        late: Which came later than the allowed lateness, bool (n,).
        duplicates: How many had an id and a content seen before.
        conflicts: How many had an id seen before, with another content.
    """

    def __init__(
        self, stage: KeyedStage, count: int, events: StageEvents, labels: StageEvents | None
    ) -> None:
        self._stage, self._events, self._labels = stage, events, labels
        self._starts = np.zeros(count + 1, np.int64)
        self._rows = group(events.entities, self._starts)
        self._label_starts = np.zeros(count + 1, np.int64)
        if labels is not None:
            self._label_rows = group(labels.entities, self._label_starts)
            ids = np.sort(labels.identities.ids)
            self._are_new = bool((ids[1:] != ids[:-1]).all())
        self.kept = np.zeros(len(events.times), np.bool_)
        self.late = np.zeros(len(events.times), np.bool_)
        self.duplicates = self.conflicts = 0

    def run(self, features: Floats, pool: Executor, part_rows: int) -> Iterator[float]:
        """Compute; gives which part of it is done, 0 to 1.

        Args:
            features: Written: the stage's features of each kept event, (n, columns).
            pool: Its threads do the work.
            part_rows: About how many events a thread takes at a time.
        """
        total = len(self._rows)
        places = np.searchsorted(self._starts, np.arange(0, total, part_rows))
        cuts = np.unique([0, *places.tolist(), len(self._starts) - 1]).tolist()
        jobs = [pool.submit(self._part, a, b, features) for a, b in pairwise(cuts)]
        for job, end in zip(jobs, cuts[1:], strict=True):
            duplicates, conflicts = job.result()
            self.duplicates += duplicates
            self.conflicts += conflicts
            yield float(self._starts[end] / total)

    def _part(self, first: int, last: int, features: Floats) -> tuple[int, int]:
        """The entities from ``first`` to before ``last``: how many duplicates and conflicts."""
        starts, label_starts = self._starts[first : last + 1], self._label_starts[first : last + 1]
        state = self._stage.new_part(np.diff(starts), np.diff(label_starts))
        if self._labels is not None:
            rows = self._label_rows[label_starts[0] : label_starts[-1]]
            labels = _taken(self._labels, rows, first)
            self._stage.learn_slots(
                state,
                labels.entities,
                labels.times,
                labels.values[""],
                labels.identities,
                self._are_new,
            )
        rows = self._rows[starts[0] : starts[-1]]
        events = _taken(self._events, rows, first)
        observed = self._stage.observe_slots(
            state,
            events.entities,
            lambda _, kept: events.entities[kept],
            events.times,
            events.values,
            events.identities,
        )
        kept = rows[observed.kept]
        features[kept] = observed.features
        self.kept[kept] = True
        self.late[kept] = observed.late
        return len(observed.duplicates), len(observed.conflicts)


def _taken(events: StageEvents, rows: IntArray, first: int) -> StageEvents:
    """These alone, with entities numbered from ``first``."""
    return StageEvents(
        events.entities[rows] - first,
        events.times[rows],
        {name: values[rows] for name, values in events.values.items()},
        events.identities.select(rows),
    )
