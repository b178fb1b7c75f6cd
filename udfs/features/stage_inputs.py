"""What the keyed stages take of events: entities by key, and values by field."""

from __future__ import annotations

from udfs.batches.events import Events, FloatArray
from udfs.definition.feature import KEY_SEPARATOR
from udfs.definition.schema import Schema
from udfs.features.formula_columns import FormulaColumns
from udfs.features.keyed import Stream, _series, _windows
from udfs.features.series import SeriesReader


class StageInputs:
    """What the stages need of events, taken from them once.

    Attributes:
        stages: All stages but the first.
        names: What ``values`` gives.

    Args:
        schema: The job's schema.
    """

    def __init__(self, schema: Schema) -> None:
        self._later = {stage: schema.fields_of(stage) for stage in schema.stages[1:]}
        streams: tuple[Stream, ...] = ("events", "first")
        windows = (w for n in schema.stages for s in streams for w in _windows(schema, n, s))
        self._reader = SeriesReader(schema.known, _series(windows))
        self._fields = FormulaColumns(schema).fields
        self.stages = tuple(self._later)
        self.names = (*self._fields, *(s.name for s in self._reader.series))

    def entities(self, events: Events) -> dict[str, list[str]]:
        """The entity of each event in each stage but the first, by the stage's name."""
        return {
            stage: _joined([events.texts[f] for f in fields])
            for stage, fields in self._later.items()
        }

    def values(self, events: Events) -> dict[str, FloatArray]:
        """All series, and the fields that formulas read, by name; float64 (n,) each."""
        fields = {name: events.numbers[name] for name in self._fields}
        return fields | self._reader.read(events)


def _joined(columns: list[list[str]]) -> list[str]:
    if len(columns) == 1:
        return columns[0]
    return [*map(KEY_SEPARATOR.join, zip(*columns, strict=True))]
