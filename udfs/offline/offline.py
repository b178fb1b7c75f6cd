"""The features of a whole history, computed by the code of the live job and without an engine.

``history_of`` reads a table as the job reads its topic; ``features_of`` gives its events to
``evaluate`` and ``KeyedStage.observe_slots``, as the operators do. So a row that the job would
refuse or drop as a duplicate is no training row either.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from udfs.batches.batch import LabelBatch
from udfs.batches.events import BoolArray, CodedTexts, Events, FloatArray, IntArray
from udfs.definition.schema import Schema
from udfs.features.expressions import evaluate
from udfs.features.formula_columns import FormulaColumns
from udfs.features.identities import Identities
from udfs.features.keyed import KeyedStage
from udfs.features.series import kinds_of
from udfs.features.stage_inputs import StageInputs
from udfs.offline.history import History, HistoryError, Progress, history_of, labels_of, silent
from udfs.offline.rolling import Order
from udfs.offline.stage_pass import StageEvents, StagePass

__all__ = [
    "History",
    "HistoryError",
    "OfflineFeatures",
    "Order",
    "Progress",
    "features_of",
    "history_of",
    "labels_of",
    "silent",
]

CHUNK_ROWS = 32_768
"""Events that a thread takes at a time; the features do not depend on it."""


@dataclass(frozen=True, slots=True)
class OfflineFeatures:
    """The features of a history.

    Attributes:
        features: float64 (kept rows, columns of the schema) in order of arrival; NaN is missing.
        rows: Which event each row is of, indices into the events given; intp (kept rows,).
        duplicates: How many events had an id and a content seen before.
        conflicts: How many events had an id seen before, with another content.
        late: How many of the kept came later than the allowed lateness, in some stage.
    """

    features: FloatArray
    rows: npt.NDArray[np.intp]
    duplicates: int
    conflicts: int
    late: int


def features_of(
    schema: Schema,
    events: Events,
    labels: LabelBatch | None = None,
    progress: Progress = silent,
    chunk_rows: int = CHUNK_ROWS,
    order: Order = "time",
) -> OfflineFeatures:
    """The features of all events of a history, on all cores.

    Columns stand in the order of ``schema.columns``: the expressions, then stage by stage. Events
    of one time keep the order given. Without ``labels``, label features are those of an empty
    history.

    Args:
        schema: The job's schema.
        events: The history, in any order. Where ``raw`` is empty bytes, an event of a known id
            counts as a duplicate even if its content differs: neither enters a feature, so only
            the counts tell.
        labels: The labels of the whole history, or none.
        progress: Shown while they are computed.
        chunk_rows: Events that a thread takes at a time.
        order: As if each event had arrived at its own time, or in the order given.

    Raises:
        HistoryError: a label feature has no delay, so it would see the event's own label.
    """
    if labels is not None:
        _refuse_own_labels(schema)
    rows = np.arange(len(events))
    if order == "time" and (np.diff(events.times) < 0).any():
        rows = np.argsort(events.times, kind="stable")
        events = events.select(rows)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        run = _Run(schema, events, labels, pool, chunk_rows)
        steps = len(schema.stages)
        for stage, name in enumerate(schema.stages):
            for done in run.stage(name):
                progress("Computing features", (stage + done) / steps)
    progress("Computing features", 1.0)
    return run.result(rows)


def _refuse_own_labels(schema: Schema) -> None:
    for window in schema.features.windows:
        if window.stream == "labels" and window.delay <= 0:
            raise HistoryError(
                f"features {window.prefix!r} read labels without a delay: in training each event "
                "would see its own label; set delay to the time after which labels are known"
            )


@dataclass(slots=True)
class _Entities:
    """A stage's entities: the number of each event's, and of each entity by its name."""

    codes: IntArray
    count: int
    _numbers: Callable[[], dict[str, int]]

    @classmethod
    def of(cls, column: list[str]) -> _Entities:
        if isinstance(column, CodedTexts):
            codes = column.codes
            return cls(codes, column.most, lambda: dict(zip(column, codes.tolist(), strict=True)))
        codes, names = pd.factorize(np.array(column, object))
        return cls(codes.astype(np.int64), len(names), lambda: {n: i for i, n in enumerate(names)})

    def known(self, names: list[str]) -> IntArray:
        """The number of each name, -1 for one that is not there; int64 (n,)."""
        numbers = self._numbers()
        return np.fromiter((numbers.get(name, -1) for name in names), np.int64, len(names))


class _Run:
    """Events on their way through the stages, as a ``FeatureBatch`` is in the live job."""

    def __init__(
        self,
        schema: Schema,
        events: Events,
        labels: LabelBatch | None,
        pool: Executor,
        chunk_rows: int,
    ) -> None:
        self._schema, self._pool, self._chunk_rows = schema, pool, chunk_rows
        self._labels = labels
        self._times = events.times
        self._identities = Identities(_hashes(events.texts[schema.event.id]), _hashes(events.raw))
        inputs = StageInputs(schema)
        first = {schema.key: events.texts[schema.key]}
        self._entities = {
            name: _Entities.of(column) for name, column in (first | inputs.entities(events)).items()
        }
        self._features = np.empty((len(events), len(schema.stage_columns)))
        self._values = {name: np.empty(len(events)) for name in inputs.names}
        self._column = len([c for e in schema.features.expressions for c in e.columns])
        jobs = [
            pool.submit(self._of_events_alone, events, inputs, start)
            for start in range(0, len(events), chunk_rows)
        ]
        for job in jobs:
            job.result()
        self._looked_up = [events.numbers[name] for name in schema.lookup_columns]
        self._kept = np.arange(len(events))
        self._late = np.zeros(len(events), np.bool_)
        self._duplicates = self._conflicts = 0

    def _of_events_alone(self, events: Events, inputs: StageInputs, start: int) -> None:
        rows = slice(start, start + self._chunk_rows)
        part = events.part(rows.start, rows.stop)
        expressions = self._schema.features.expressions
        self._features[rows, : self._column] = evaluate(
            expressions, part, kinds_of(self._schema.known)
        )
        for name, values in inputs.values(part).items():
            self._values[name][rows] = values

    def stage(self, name: str) -> Iterator[float]:
        """Compute a stage's features; gives which part of it is done. Duplicates leave."""
        stage = KeyedStage(self._schema, name)
        entities = self._entities.pop(name)
        events = StageEvents(
            entities.codes,
            self._times,
            {s.name: self._values[s.name] for s in stage.series},
            self._identities if stage.dedupes else Identities.none(len(entities.codes)),
        )
        first, self._column = self._column, self._column + len(stage.columns)
        target = self._features[:, first : self._column]
        done = StagePass(stage, entities.count, events, self._labels_of(stage, entities))
        yield from done.run(target, self._pool, self._chunk_rows)
        self._late |= done.late
        self._duplicates += done.duplicates
        self._conflicts += done.conflicts
        if not done.kept.all():
            self._keep(done.kept)

    def _keep(self, kept: BoolArray) -> None:
        self._kept, self._late = self._kept[kept], self._late[kept]
        self._times, self._features = self._times[kept], self._features[kept]
        self._looked_up = [column[kept] for column in self._looked_up]
        for entities in self._entities.values():
            entities.codes = entities.codes[kept]
        self._values = {name: column[kept] for name, column in self._values.items()}

    def _labels_of(self, stage: KeyedStage, entities: _Entities) -> StageEvents | None:
        """The labels that a stage learns before the first event.

        A label lies at its own event's time, and a label window ends ``delay`` before the event
        that looks: labels of later events are outside of it whether they are there or not, those
        inside are what the live job knows if every label arrives within its delay.
        """
        labels = self._labels
        if labels is None or not stage.reads_labels:
            return None
        return StageEvents(
            entities.known(labels.entities),
            labels.times,
            {"": labels.values},
            Identities(_hashes(labels.ids), labels.values.view(np.int64)),
        )

    def result(self, rows: npt.NDArray[np.intp]) -> OfflineFeatures:
        """The features with those of the formulas and look-ups; ``rows`` are the events' own."""
        features = FormulaColumns(self._schema).append(self._features, self._values)
        if self._looked_up:
            features = np.column_stack([features, *self._looked_up])
        return OfflineFeatures(
            features,
            rows[self._kept],
            self._duplicates,
            self._conflicts,
            int(np.count_nonzero(self._late)),
        )


def _hashes(of: Sequence[str] | Sequence[bytes]) -> IntArray:
    """64-bit hashes that hold within this process: no state is stored with them."""
    return np.fromiter(map(hash, of), np.int64, len(of))
