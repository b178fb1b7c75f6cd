"""Compares the features of a job's predictions with what its topics give, value by value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from jobs.features.causes import Causes, Trained
from jobs.features.columns import PREDICTED_SCORED, Source
from jobs.features.reach import not_recomputed
from jobs.features.replay import Rows, replay, seen_of
from jobs.settings import Settings
from udfs.batches.events import FloatArray

Progress = Callable[[str, float], None]

RELATIVE = 1e-9
ABSOLUTE = 1e-12
"""Below it a difference is rounding, of sums of opposite signs."""

SHOWN = 20
"""Differences that are listed with their cause."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A value that is not what the topics give.

    Attributes:
        event_id: The event's id; empty if its record is not there.
        partition: Of the event's record.
        offset: Of the event's record.
        feature: Its name; empty if the whole event is missing.
        predicted: In the prediction; none is missing.
        recomputed: From the topics; none is missing.
        cause: The first that explains it, as far as can be told.
    """

    event_id: str
    partition: int
    offset: int
    feature: str
    predicted: float | None
    recomputed: float | None
    cause: str


@dataclass(frozen=True, slots=True)
class Parity:
    """The outcome.

    Attributes:
        predictions: Predictions read, repeats left out.
        repeats: Earlier predictions of the same record: at-least-once.
        compared: Predictions whose values were compared.
        values: Values compared.
        late: Compared predictions that say so.
        without_event: Predictions whose record is not in the events topic, or is refused now.
        unscored: Accepted records of the events topic that no prediction is of, and no feature.
        late_differences: Values that differ in those.
        by_feature: Differences by feature, those without any left out.
        first: The first ``SHOWN`` differences in the order of scoring, events missing included.
        notes: What else a reader should know.
        other_features: Names that only the predictions or only the settings have.
    """

    predictions: int
    repeats: int
    compared: int
    values: int
    late: int
    late_differences: int
    without_event: int
    unscored: int
    by_feature: dict[str, int]
    first: list[Difference]
    notes: list[str] = field(default_factory=list)
    other_features: list[str] = field(default_factory=list)

    @property
    def differences(self) -> int:
        """Values that differ."""
        return sum(self.by_feature.values())

    @property
    def is_equal(self) -> bool:
        """Whether every prediction has its event and every value is the same."""
        return not (self.differences or self.without_event or self.other_features)


def is_same(one: FloatArray, other: FloatArray) -> npt.NDArray[np.bool_]:
    """Whether values agree; a missing one agrees with a missing one."""
    with np.errstate(invalid="ignore"):
        largest = np.maximum(np.abs(one), np.abs(other))
        close = np.abs(one - other) <= RELATIVE * largest + ABSOLUTE
    same: npt.NDArray[np.bool_] = close | (np.isnan(one) & np.isnan(other))
    return same


def compare(
    settings: Settings,
    source: Source,
    limit: int | None,
    progress: Progress,
    *,
    with_late: bool = True,
) -> Parity:
    """Recompute the features of all predictions and compare them.

    Args:
        settings: The job's.
        source: Its topics.
        limit: Compare only the newest so many; none compares all.
        progress: Shown meanwhile.
        with_late: Also those that say late, whose features are not promised to be exact.
    """
    predictions, schema = source.predictions, settings.schema_
    seen = seen_of(source)
    known = np.flatnonzero(seen.rows >= 0)
    rows = seen.rows[: len(predictions)]
    present = np.flatnonzero(rows >= 0)
    replayed = replay(
        schema, source.events, seen.rows[known], seen.order[known], source.labels, progress
    ).first(len(present))
    newest = _newest(source, limit)
    if not with_late:
        newest &= ~predictions.late
    compared = newest[present]
    wrong = np.zeros(replayed.features.shape, np.bool_)
    unknown = not_recomputed(schema)
    columns = [n for n, name in enumerate(schema.columns) if name not in unknown]
    for n in columns:
        found, made = predictions.features[present, n], replayed.features[:, n]
        wrong[:, n] = ~is_same(found, made) & compared
        progress("comparing", (n + 1) / (columns[-1] + 1))
    missing = np.flatnonzero((rows < 0) & newest)
    causes = Causes(settings, source, rows, present, replayed, wrong)
    counts = zip(schema.columns, wrong.sum(axis=0).tolist(), strict=False)  # look-ups are last
    return Parity(
        predictions=len(predictions),
        repeats=predictions.records - predictions.elsewhere - len(predictions),
        compared=int(np.count_nonzero(compared)),
        values=int(np.count_nonzero(compared)) * len(columns),
        late=int(np.count_nonzero(predictions.late[present] & compared)),
        late_differences=int(np.count_nonzero(wrong[predictions.late[present]])),
        without_event=len(missing),
        unscored=len(source.events) - len(known),
        by_feature={name: count for name, count in counts if count},
        first=_first(source, causes, missing, present, wrong),
        notes=_notes(settings, source),
        other_features=[*predictions.extra, *predictions.absent],
    )


def _newest(source: Source, limit: int | None) -> npt.NDArray[np.bool_]:
    scored = source.predictions.times[:, PREDICTED_SCORED]
    if limit is None or limit >= len(scored):
        return np.ones(len(scored), np.bool_)
    newest = np.zeros(len(scored), np.bool_)
    newest[np.argsort(scored, kind="stable")[-limit:]] = True
    return newest


def _first(
    source: Source, causes: Causes, missing: Rows, present: Rows, wrong: npt.NDArray[np.bool_]
) -> list[Difference]:
    """The first differences by the time of the score; one for an event that is missing."""
    scored = source.predictions.times[:, PREDICTED_SCORED]
    lines = np.flatnonzero(wrong.any(axis=1))
    lines = lines[np.argsort(scored[present[lines]], kind="stable")][:SHOWN]
    pairs = [(int(line), n) for line in lines for n in np.flatnonzero(wrong[line]).tolist()]
    entries = [(int(scored[present[line]]), 1, line, n) for line, n in pairs]
    gone = missing[np.argsort(scored[missing], kind="stable")][:SHOWN]
    entries += [(int(scored[row]), 0, int(row), -1) for row in gone]
    return [
        _missing(source, causes, at) if n < 0 else _difference(source, causes, present, at, n)
        for _, _, at, n in sorted(entries)[:SHOWN]
    ]


def _missing(source: Source, causes: Causes, row: int) -> Difference:
    partition, offset = source.predictions.places[row].tolist()
    return Difference("", partition, offset, "", None, None, causes.of_missing(row))


def _difference(
    source: Source, causes: Causes, present: Rows, line: int, column: int
) -> Difference:
    row = int(present[line])
    partition, offset = source.predictions.places[row].tolist()
    return Difference(
        source.events.ids[int(causes.rows[row])],
        partition,
        offset,
        causes.columns[column],
        as_json(source.predictions.features[row, column]),
        as_json(causes.replayed.features[line, column]),
        causes.of_value(line, column),
    )


def as_json(value: float) -> float | None:
    """NaN as none."""
    return None if np.isnan(value) else float(value)


def _notes(settings: Settings, source: Source) -> list[str]:
    predictions, notes = source.predictions, []
    if unknown := sorted(not_recomputed(settings.schema_)):
        notes.append(f"not recomputed, as tables or look-ups decide them: {', '.join(unknown)}")
    if predictions.elsewhere:
        notes.append(f"{predictions.elsewhere:,} predictions are of another events topic: left out")
    for names, what in ((predictions.extra, "settings"), (predictions.absent, "predictions")):
        if names:
            notes.append(f"other settings: some {what} do not have {', '.join(names)}")
    trained = Trained(settings)
    for version in np.unique(predictions.versions).tolist():
        if other := trained.other_hash(version):
            notes.append(f"other settings: {other}")
    return notes
