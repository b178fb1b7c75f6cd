"""Why a prediction's feature is not what the topics give: the first cause that can be told."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt

from jobs.features.catalogue import Described, describe
from jobs.features.columns import PREDICTED_EVENT, Source
from jobs.features.label_causes import LabelCauses
from jobs.features.places import Places
from jobs.features.replay import Replayed, Rows
from jobs.settings import Settings
from model_server.errors import RepositoryError
from model_server.repository import find_version, load_features
from udfs.batches.events import IntArray
from udfs.definition.types import format_duration
from udfs.features.formulas import parse


class Trained:
    """What features the models were trained with.

    Args:
        settings: The job's.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._known: dict[int, str] = {}

    def other_hash(self, version: int) -> str:
        """What differs; empty if nothing does, or the version's folder is not here."""
        if version not in self._known:
            self._known[version] = self._look(version)
        return self._known[version]

    def _look(self, version: int) -> str:
        model, own = self._settings.model, self._settings.features_hash
        if not version:
            return ""
        try:
            found = load_features(find_version(model.path, model.name, version).path).config_hash
        except RepositoryError:
            return ""
        if not found or found == own:
            return ""
        return f"model version {version} has features hash {found[:12]}, the settings {own[:12]}"


class Causes:
    """The causes of differences.

    Attributes:
        rows: The event of each prediction, -1 where there is none.
        columns: The features' names.
        replayed: The recomputation, a line per prediction of ``present``.

    Args:
        settings: The job's.
        source: Its topics.
        rows: The event of each prediction.
        present: The predictions that have one.
        replayed: Their recomputation.
        wrong: Which values differ, bool (present, columns).
    """

    def __init__(
        self,
        settings: Settings,
        source: Source,
        rows: Rows,
        present: Rows,
        replayed: Replayed,
        wrong: npt.NDArray[np.bool_],
    ) -> None:
        self.rows, self.replayed = rows, replayed
        self._schema = settings.schema_
        self.columns = self._schema.columns
        self._source, self._present, self._wrong = source, present, wrong
        self._described = {d.name: d for d in describe(self._schema)}
        self._trained = Trained(settings)
        self._buckets = settings.batch.buckets
        self._labels = LabelCauses(self._schema, source)

    def of_missing(self, row: int) -> str:
        """Why a prediction has no event."""
        partition, offset = self._source.predictions.places[row].tolist()
        events = self._source.events
        found = events.ranges.get(partition)
        where = f"record {partition}/{offset}"
        if found is None or offset >= found.end:
            return f"prediction without input: there is no {where}; was the topic made anew?"
        if offset < found.first:
            return f"event missing: {where} is gone by retention, the topic begins at {found.first}"
        refused = events.refused
        at = np.flatnonzero((refused[:, 0] == partition) & (refused[:, 1] == offset))
        if len(at):
            code = events.codes[int(refused[at[0], 2])]
            return f"other settings: {where} would be a dead letter now, {code}"
        return f"event missing: {where} was removed from the topic"

    def of_value(self, line: int, column: int) -> str:
        """Why a value differs; ``line`` counts the predictions that have an event."""
        name = self.columns[column]
        described = self._described[name]
        row = int(self._present[line])
        if name in self._source.predictions.absent and self._source.predictions.foreign[row]:
            return "other settings: the prediction was made without this feature, or another key"
        if described.kind == "formula":
            return self._of_formula(line, row, described)
        if described.kind == "window":
            cause = self._of_window(line, row, described)
            if cause:
                return cause
        return self._unexplained(row, described)

    def _of_formula(self, line: int, row: int, described: Described) -> str:
        kinds = {**self._schema.formula_kinds}
        kinds |= dict.fromkeys((f.name for f in self._schema.features.formulas), "number")
        for name in parse(described.reads, kinds).names:
            if name in self.columns and self._wrong[line, self.columns.index(name)]:
                return f"{name} differs: {self.of_value(line, self.columns.index(name))}"
        return self._unexplained(row, described)

    def _of_window(self, line: int, row: int, described: Described) -> str:
        if self.replayed.repeats[line]:
            return (
                "its id is a repeat of another event with a prediction: it was scored before a "
                "restart, and not again after it"
            )
        predictions = self._source.predictions
        late = bool(predictions.late[row] or self.replayed.late[line])
        if described.stream == "labels":
            cause = self._labels.cause(
                int(self.rows[row]),
                predictions.times[row],
                described,
                float(predictions.features[row, self.columns.index(described.name)]),
                late,
            )
        else:
            cause = self._missing_before(row, described) or self._places(row, described)
        if late and not cause:
            lateness = format_duration(self._schema.event.time.allowed_lateness)
            return (
                f"the event is late, by more than {lateness}: its windows lack what was forgotten; "
                "of labels, a restart brings back some of it"
            )
        return cause

    @cached_property
    def _missing(self) -> IntArray:
        return np.flatnonzero(self.rows < 0)

    def _missing_before(self, row: int, described: Described) -> str:
        """An event that this one may have seen and that is not in the topic any more."""
        predictions, stage = self._source.predictions, described.stage
        number, gone = self._schema.stages.index(stage), self._missing
        t = predictions.times[row, PREDICTED_EVENT]
        times = predictions.times[gone, PREDICTED_EVENT]
        before = predictions.order[gone, number] < predictions.order[row, number]
        horizon_ms = self._schema.horizon_ms(stage, "events")
        gone = gone[before & (times <= t) & (times > t - horizon_ms)]
        is_first = stage == self._schema.key
        if is_first:
            gone = np.array(
                [g for g in gone.tolist() if predictions.keys[g] == predictions.keys[row]], np.int64
            )
        if not len(gone):
            return ""
        which = int(gone[np.argmax(predictions.times[gone, PREDICTED_EVENT])])
        sees = "sees" if is_first else f"may see, if it has the same {stage},"
        return f"it {sees} another event. {self.of_missing(which)}"

    def _places(self, row: int, described: Described) -> str:
        number = self._schema.stages.index(described.stage)
        places = Places(self._schema, self._source, self.rows, number, self._buckets)
        return places.cause(row)

    def _unexplained(self, row: int, described: Described) -> str:
        if other := self._trained.other_hash(int(self._source.predictions.versions[row])):
            return f"other settings: {other}"
        what = "the event's fields agree" if described.kind == "expression" else "all inputs agree"
        return (
            f"the value differs although {what}: the prediction was changed, or made by other "
            "settings or another release"
        )
