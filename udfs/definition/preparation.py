"""What a user declares about the way from features to the model's columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, Field

from udfs.definition.types import Mistake, Strict

__all__ = ["ColumnPreparation", "Encoding", "Impute", "PreparationSpec", "encoding_mistakes"]


def _within_float32(value: float) -> float:
    if not abs(value) <= np.finfo(np.float32).max:
        raise ValueError(f"{value:g} is too large for a model")
    return value


Encoding = Literal["one_hot", "ordinal", "hashing", "target"]
Impute = Literal["median", "mean", "none"] | Annotated[float, AfterValidator(_within_float32)]

INDICATOR = "{}_missing"
"""Name of the column that says whether a feature is missing."""

_OPTIONS: dict[str, frozenset[str]] = {
    "max_categories": frozenset(("one_hot", "ordinal", "target")),
    "min_count": frozenset(("one_hot", "ordinal", "target")),
    "buckets": frozenset(("hashing",)),
    "smoothing": frozenset(("target",)),
}
"""The encodings that take an option of a category."""


class ColumnPreparation(Strict):
    """How one feature is prepared."""

    impute: Impute | None = Field(
        None, description="as `features.preparation.default`, for this feature alone"
    )
    indicator: bool = Field(
        False,
        description="also a column whose name ends in `_missing`: 1 where it is missing, else 0",
    )


class PreparationSpec(Strict):
    """What training does about missing values; the job and the server follow the model's folder."""

    default: Impute = Field(
        "median",
        description="what replaces a missing value: a number, or the mean or median of the rows "
        "trained on; `none`: the model gets NaN",
    )
    columns: dict[str, ColumnPreparation] = Field(
        default_factory=dict, description="exceptions by the feature's name"
    )

    def of(self, name: str) -> ColumnPreparation:
        """How a feature is prepared, the default filled in."""
        own = self.columns.get(name, ColumnPreparation())
        return own if own.impute is not None else own.model_copy(update={"impute": self.default})

    def unfit(self, names: tuple[str, ...], categories: frozenset[str]) -> Iterator[Mistake]:
        """What does not go with the features.

        Args:
            names: Every feature.
            categories: Those of type category.
        """
        for name, column in self.columns.items():
            path = ("features", "preparation", "columns", name)
            if name not in names:
                near = get_close_matches(name, names, n=1)
                hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(names)}"
                yield Mistake(path, f"no feature {name!r}; {hint}")
            elif name in categories and column.impute is not None:
                message = f"{name!r} is a category: its encoding says what a missing one becomes"
                yield Mistake((*path, "impute"), message)
            elif column.indicator and INDICATOR.format(name) in names:
                message = f"there is a feature {INDICATOR.format(name)!r} already: rename it"
                yield Mistake((*path, "indicator"), message)


def encoding_mistakes(
    kind: str, encoding: Encoding | None, options: Mapping[str, Any], defaults: Mapping[str, Any]
) -> Iterator[Mistake]:
    """What is wrong with the encoding of an expression.

    Args:
        kind: The expression's type.
        encoding: Its encoding.
        options: All its settings by name.
        defaults: What they are if nothing is set.
    """
    if (kind == "category") != (encoding is not None):
        verb = "needs an" if kind == "category" else "has no"
        yield Mistake(("encoding",), f"type {kind} {verb} encoding")
        return
    for name, encodings in _OPTIONS.items():
        if encoding not in encodings and options[name] != defaults[name]:
            message = f"{name} is an option of: {', '.join(sorted(encodings))}"
            yield Mistake((name,), message)
