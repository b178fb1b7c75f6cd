"""The columns that formulas add to what the stages have measured."""

from __future__ import annotations

import numpy as np

from udfs.batches.events import FloatArray
from udfs.compiled import Floats
from udfs.definition.schema import Schema
from udfs.features.formulas import parse


class FormulaColumns:
    """The features that are computed from other features, when all stages are done.

    Args:
        schema: The job's schema.
    """

    def __init__(self, schema: Schema) -> None:
        self._columns = schema.stage_columns
        kinds = schema.formula_kinds
        self._formulas = []
        for feature in schema.features.formulas:
            self._formulas.append((feature.name, parse(feature.formula, kinds)))
            kinds = {**kinds, feature.name: "number"}
        made, fields = set(self._columns), dict[str, None]()
        for name, formula in self._formulas:
            fields |= dict.fromkeys(read for read in formula.names if read not in made)
            made.add(name)
        self.fields = tuple(fields)

    @property
    def reads(self) -> dict[str, tuple[str, ...]]:
        """The names that each formula reads, in the order in which they are computed."""
        return {name: formula.names for name, formula in self._formulas}

    def append(self, features: Floats, values: dict[str, FloatArray]) -> Floats:
        """The features with the formulas' columns after them.

        Args:
            features: float64 (n, stage columns).
            values: The event fields that formulas read, by name.

        Returns:
            float64 (n, columns); infinite results are missing, NaN.
        """
        if not self._formulas:
            return features
        known = dict(zip(self._columns, features.T, strict=True))
        columns = {**values, **known}
        made = []
        for name, formula in self._formulas:
            column = columns[name] = formula.finite(columns, len(features))
            made.append(column)
        return np.concatenate([features, np.stack(made, axis=1)], axis=1)
