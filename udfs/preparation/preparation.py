"""From features to the model's columns: what is missing is replaced, categories are encoded.

Training fits a ``Preparation`` and writes it into the model's folder; from there the job takes it.
Predictions record the features as they were computed, the model gets the prepared ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, ValidationError

from model_server.errors import RepositoryError
from model_server.repository import FEATURES_FILE, load_document, load_features
from udfs.batches.events import FloatArray
from udfs.definition.preparation import INDICATOR
from udfs.definition.types import Strict
from udfs.preparation.encoders import Encoder, Finite, Matrix

__all__ = ["Input", "Preparation"]


class Input(Strict):
    """A feature, and how it becomes columns: its value or its encoding, then the indicator.

    Attributes:
        name: Its name.
        impute: What replaces a missing value; none for NaN.
        indicator: Whether a column says if it is missing.
        encoding: Of a category.
    """

    name: str = Field(min_length=1)
    impute: Finite | None = None
    indicator: bool = False
    encoding: Encoder | None = None

    @property
    def values(self) -> tuple[str, ...]:
        """The names of its columns without the indicator."""
        return (self.name,) if self.encoding is None else self.encoding.columns(self.name)

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of its columns."""
        return self.values + (INDICATOR.format(self.name),) * self.indicator

    @property
    def missing(self) -> list[float]:
        """What its columns hold where it is missing."""
        if self.encoding is None:
            return [np.nan if self.impute is None else self.impute, *[1.0] * self.indicator]
        encoded = np.empty((1, len(self.values)), np.float32)
        self.encoding.encode(np.array([np.nan]), encoded)
        return [*encoded[0].tolist(), *[1.0] * self.indicator]


class Preparation:
    """Turns features into the model's matrix.

    Attributes:
        inputs: The features, in the order of the job's columns.
        names: Their names.
        columns: The names of the model's columns; those of one feature stand side by side.
        is_plain: Whether every feature is one column, its own value or an imputed one.
    """

    def __init__(self, inputs: Sequence[Input]) -> None:
        """Lay out the columns."""
        self.inputs = tuple(inputs)
        self.names = tuple(column.name for column in inputs)
        self.columns = tuple(_distinct([name for column in inputs for name in column.columns]))
        widths = [len(column.columns) for column in inputs]
        self._starts = np.cumsum([0, *widths[:-1]])
        self._impute = np.array(
            [np.nan if column.impute is None else column.impute for column in inputs]
        )
        self.is_plain = not any(column.encoding or column.indicator for column in inputs)
        plain = [n for n, column in enumerate(inputs) if column.encoding is None]
        flagged = [n for n, column in enumerate(inputs) if column.indicator]
        ends = self._starts + widths
        self._values = self._starts[plain], np.array(plain, np.intp)
        self._flags = ends[flagged] - 1, np.array(flagged, np.intp)
        self._encoders = [
            (column.encoding, n, slice(start, start + len(column.values)))
            for n, (column, start) in enumerate(zip(inputs, self._starts.tolist(), strict=True))
            if column.encoding is not None
        ]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Preparation) and self.inputs == other.inputs

    def __hash__(self) -> int:
        return hash(self.names)

    def is_like(self, other: Preparation) -> bool:
        """Whether a column means the same in both; imputed values may differ."""
        return self is other or self._meaning == other._meaning

    @property
    def _meaning(self) -> list[tuple[str, Encoder | None, bool]]:
        return [(column.name, column.encoding, column.indicator) for column in self.inputs]

    @property
    def categories(self) -> dict[str, str]:
        """The encoding of each feature that has one."""
        return {c.name: c.encoding.kind for c in self.inputs if c.encoding is not None}

    def columns_of(self, n: int) -> slice:
        """Which columns are the n-th feature's."""
        start = int(self._starts[n])
        return slice(start, start + len(self.inputs[n].columns))

    def transform(self, features: FloatArray) -> Matrix:
        """The features as the model gets them.

        Args:
            features: float64 (n, features); NaN is missing, a category is its code.

        Returns:
            float32 (n, columns); NaN only where ``impute`` is none.
        """
        missing = np.isnan(features)
        filled = np.where(missing, self._impute, features)
        with np.errstate(over="ignore"):  # a double beyond float32 becomes infinite, as in C
            if self.is_plain:
                return filled.astype(np.float32, order="C")
            matrix = np.empty((len(features), len(self.columns)), np.float32)
            into, source = self._values
            matrix[:, into] = filled[:, source]
        into, source = self._flags
        matrix[:, into] = missing[:, source]
        for encoder, n, block in self._encoders:
            encoder.encode(features[:, n], matrix[:, block])
        return matrix

    def by_feature(self, contributions: FloatArray) -> FloatArray:
        """What each feature contributed: the sum over its columns.

        Args:
            contributions: float64 (n, columns).

        Returns:
            float64 (n, features).
        """
        if self.is_plain:
            return contributions
        return np.add.reduceat(contributions, self._starts, axis=1)

    def document(self) -> dict[str, Any]:
        """What ``features.json`` says of it; ``of`` reads it again."""
        missing = [value for column in self.inputs for value in column.missing]
        return {
            "format": 2,
            "features": [
                {"name": name, "type": "float", "impute": None if np.isnan(value) else value}
                for name, value in zip(self.columns, missing, strict=True)
            ],
            "inputs": [column.model_dump(exclude_none=True) for column in self.inputs],
        }

    @classmethod
    def load(cls, version_dir: Path) -> Preparation:
        """Read the preparation of a model's folder.

        A ``features.json`` of format 1 has a column for each feature, and ``impute``.

        Raises:
            RepositoryError: ``features.json`` is missing or malformed.
        """
        path, listed = version_dir / FEATURES_FILE, load_features(version_dir)
        document = load_document(version_dir)
        if document["format"] == 1:
            return cls([Input(name=f.name, impute=f.impute) for f in listed.features])
        try:
            inputs = [Input.model_validate(entry) for entry in _inputs(document)]
        except (ValidationError, TypeError) as exc:
            raise RepositoryError(f"{path}: inputs: {exc}") from exc
        found = cls(inputs)
        if found.columns != listed.names or len(set(found.names)) < len(found.names):
            raise RepositoryError(
                f'{path}: "features" must name the columns that "inputs" make, and each input must '
                "have a name of its own: write both from one training run"
            )
        return found


def _inputs(document: Any) -> list[Any]:
    entries = document.get("inputs")
    if not isinstance(entries, list) or not entries:
        raise TypeError("must be a list of at least one feature")
    return entries


def _distinct(names: Sequence[str]) -> Iterator[str]:
    """The names; one that was there before gets a number."""
    seen = set(names)
    taken: set[str] = set()
    for name in names:
        own, number = name, 2
        while own in taken or (own != name and own in seen):
            own, number = f"{name}_{number}", number + 1
        taken.add(own)
        yield own
