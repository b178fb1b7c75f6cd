"""Encodings of a category: from its code to columns of the model.

Each is a document in a model's ``features.json``, and knows what to do with a category that
training did not see or left out (unknown) and with a missing one (NaN).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import Field

from udfs.batches.categories import MAX_CODE, code_of
from udfs.batches.events import FloatArray
from udfs.definition.types import Mistake, Strict

__all__ = ["Encoder", "Hashing", "Matrix", "OneHot", "Ordinal", "Target"]

Matrix: TypeAlias = np.ndarray[Any, np.dtype[np.float32]]
Finite = Annotated[float, Field(allow_inf_nan=False)]

_MAX_NAME = 64
_NOT_IN_NAMES = re.compile(r"[\[\]<\s\x00-\x1f\x7f]")  # XGBoost refuses the first three


class _Known(Strict):
    """The categories that training kept, the most frequent first.

    Attributes:
        texts: Their texts.
        codes: Their codes, see ``udfs.batches.categories``.
    """

    texts: tuple[str, ...]
    codes: tuple[Annotated[int, Field(ge=1, le=MAX_CODE)], ...]

    def mistakes(self) -> Iterator[Mistake]:
        """See the base class."""
        if tuple(map(code_of, self.texts)) != self.codes:
            yield Mistake(("codes",), "must be the codes of the texts: train the model anew")
        elif len(set(self.codes)) < len(self.codes):
            yield Mistake(("texts",), "must differ")

    @cached_property
    def _sorted(self) -> tuple[FloatArray, npt.NDArray[np.intp]]:
        """The codes in ascending order with NaN at the end, and the place of each."""
        codes = np.array([*self.codes, np.nan])
        order = np.argsort(codes)
        return codes[order], order

    def places(self, column: FloatArray) -> npt.NDArray[np.intp]:
        """Where each code stands among the known, the number of known ones if it does not."""
        codes, order = self._sorted
        at = np.searchsorted(codes, column)
        found = order[at]
        found[codes[at] != column] = len(self.codes)
        return found


class OneHot(_Known):
    """A column per category; all are 0 if it is missing.

    Attributes:
        other: Whether a last column is 1 for an unknown category. It is there if training left
            one out; otherwise the model has seen none, and all columns are 0.
    """

    kind: Literal["one_hot"] = "one_hot"
    other: bool

    def mistakes(self) -> Iterator[Mistake]:
        """See the base class."""
        yield from super().mistakes()
        if not (self.texts or self.other):
            yield Mistake(("other",), "must be true where no category is known")

    def columns(self, name: str) -> tuple[str, ...]:
        """The columns' names."""
        texts = [_NOT_IN_NAMES.sub("_", text[:_MAX_NAME]) for text in self.texts]
        return tuple(f"{name}_{text}" for text in (*texts, *(["other"] * self.other)))

    def encode(self, column: FloatArray, out: Matrix) -> None:
        """Write the columns of codes (n,) to ``out`` (n, columns)."""
        places = self.places(column)
        shown = places < len(self.texts)
        if self.other:
            shown |= ~np.isnan(column)
        rows = np.flatnonzero(shown)
        out[:] = 0.0
        out[rows, places[rows]] = 1.0


class Ordinal(_Known):
    """The category's rank by frequency, the most frequent 0; unknown comes last, missing is -1."""

    kind: Literal["ordinal"] = "ordinal"

    def columns(self, name: str) -> tuple[str, ...]:
        """See ``OneHot``."""
        return (name,)

    def encode(self, column: FloatArray, out: Matrix) -> None:
        """See ``OneHot``."""
        out[:, 0] = np.where(np.isnan(column), -1.0, self.places(column))


class Hashing(Strict):
    """A column per bucket, 1 in that of the category's code; nothing is fitted or unknown."""

    kind: Literal["hashing"] = "hashing"
    buckets: int = Field(ge=2)

    def columns(self, name: str) -> tuple[str, ...]:
        """See ``OneHot``."""
        return tuple(f"{name}_{bucket}" for bucket in range(self.buckets))

    def encode(self, column: FloatArray, out: Matrix) -> None:
        """See ``OneHot``."""
        rows = np.flatnonzero(~np.isnan(column))
        out[:] = 0.0
        out[rows, column[rows].astype(np.int64) % self.buckets] = 1.0


class Target(_Known):
    """The category's mean label, smoothed; an unknown or missing one gets the prior.

    Attributes:
        values: Of each category.
        prior: The mean label of all rows.
    """

    kind: Literal["target"] = "target"
    values: tuple[Finite, ...]
    prior: Finite

    def mistakes(self) -> Iterator[Mistake]:
        """See the base class."""
        yield from super().mistakes()
        if len(self.values) != len(self.texts):
            yield Mistake(("values",), "must be one for each text")

    @cached_property
    def _by_place(self) -> FloatArray:
        return np.array([*self.values, self.prior])

    def columns(self, name: str) -> tuple[str, ...]:
        """See ``OneHot``."""
        return (name,)

    def encode(self, column: FloatArray, out: Matrix) -> None:
        """See ``OneHot``."""
        out[:, 0] = self._by_place[self.places(column)]


Encoder: TypeAlias = Annotated[OneHot | Ordinal | Hashing | Target, Field(discriminator="kind")]
