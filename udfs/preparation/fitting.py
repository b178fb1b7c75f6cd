"""Fits a preparation to the rows that a model is trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from udfs.batches.events import FloatArray, IntArray
from udfs.definition.expression import ExpressionFeature
from udfs.definition.preparation import Impute
from udfs.definition.schema import Schema
from udfs.preparation.encoders import Encoder, Hashing, Matrix, OneHot, Ordinal, Target
from udfs.preparation.preparation import Input, Preparation

__all__ = ["TARGET_BLOCKS", "Rows", "fit", "training_matrix"]

TARGET_BLOCKS = 5
"""Parts of time for target encodings; each is encoded by what was before it.

Few and long ones, as a model in use is old: with more, training would see fresher means than the
job has.
"""

_ONE_HOT_CATEGORIES = 32


@dataclass(frozen=True, slots=True)
class Rows:
    """Labelled rows in event-time order.

    Attributes:
        features: float64 (n, columns); NaN is missing.
        labels: 0 or 1, float64 (n,).
        times: Event times in epoch ms, int64 (n,).
    """

    features: FloatArray
    labels: FloatArray
    times: IntArray

    def __len__(self) -> int:
        return len(self.times)

    def split(self, at: int) -> tuple[Rows, Rows]:
        """The rows before a place, and the others."""
        first = Rows(self.features[:at], self.labels[:at], self.times[:at])
        return first, Rows(self.features[at:], self.labels[at:], self.times[at:])


def fit(schema: Schema, rows: Rows, texts: Mapping[str, Mapping[int, str]]) -> Preparation:
    """What the settings ask for, fitted to the rows.

    Args:
        schema: The job's schema.
        rows: What the model is trained on.
        texts: For each feature of type category the text of each code.
    """
    categories, spec = schema.features.categories, schema.features.preparation
    inputs = []
    for name, column in zip(schema.columns, rows.features.T, strict=True):
        wanted = spec.of(name)
        if name in categories:
            encoding = _encoder(categories[name], column, rows.labels, texts[name])
            inputs.append(Input(name=name, indicator=wanted.indicator, encoding=encoding))
        else:
            assert wanted.impute is not None
            value = impute_value(wanted.impute, column)
            inputs.append(Input(name=name, indicator=wanted.indicator, impute=value))
    return Preparation(inputs)


def impute_value(impute: Impute, column: FloatArray) -> float | None:
    """What replaces a column's missing values; of a column without a known value 0.0.

    Args:
        impute: See ``PreparationSpec``.
        column: float64 (n,); NaN is missing.
    """
    if impute == "none":
        return None
    if not isinstance(impute, str):
        return float(impute)
    known = column[~np.isnan(column)]
    average = np.median if impute == "median" else np.mean
    return float(average(known)) if len(known) else 0.0


def _encoder(
    spec: ExpressionFeature, column: FloatArray, labels: FloatArray, texts: Mapping[int, str]
) -> Encoder:
    if spec.encoding == "hashing":
        return Hashing(buckets=spec.buckets)
    names, codes, some_are_left_out = _kept(spec, column, texts)
    if spec.encoding == "one_hot":
        return OneHot(texts=names, codes=codes, other=some_are_left_out or not names)
    if spec.encoding == "ordinal":
        return Ordinal(texts=names, codes=codes)
    prior = float(labels.mean())
    blank = Target(texts=names, codes=codes, values=(prior,) * len(names), prior=prior)
    values = _means(spec, blank, blank.places(column), labels)[:-1]
    return blank.model_copy(update={"values": tuple(values.tolist())})


def _kept(
    spec: ExpressionFeature, column: FloatArray, texts: Mapping[int, str]
) -> tuple[tuple[str, ...], tuple[int, ...], bool]:
    """Texts and codes of the categories kept, by frequency, and whether some are left out."""
    found, counts = np.unique(column[~np.isnan(column)], return_counts=True)
    named = [(texts[code], code) for code in map(int, found.tolist())]
    often = sorted(zip((-counts).tolist(), named, strict=True))
    most = _ONE_HOT_CATEGORIES if spec.encoding == "one_hot" else None
    kept = [category for count, category in often if -count >= spec.min_count]
    kept = kept[: spec.max_categories or most]
    return tuple(t for t, _ in kept), tuple(c for _, c in kept), len(kept) < len(often)


def _means(
    spec: ExpressionFeature, known: Target, places: npt.NDArray[np.intp], labels: FloatArray
) -> FloatArray:
    """``(sum + m * prior) / (n + m)`` of each known category, and last the prior of others."""
    length = len(known.codes) + 1
    counts = np.bincount(places, minlength=length)
    sums = np.bincount(places, labels, minlength=length)
    few = counts < spec.min_count
    few[-1] = True
    with np.errstate(invalid="ignore"):
        means = (sums + spec.smoothing * known.prior) / (counts + spec.smoothing)
    return np.where(few, known.prior, means)


def training_matrix(schema: Schema, preparation: Preparation, rows: Rows) -> Matrix:
    """The matrix to train on: as the job's, but for target encodings.

    If a row's own label were in its category's mean, the model would read the label off it. And a
    mean of labels around the row, as in leave-one-out or in random folds, knows of a burst of
    fraud while it goes on; the job never does, its means are as old as the model. So time is cut
    into parts of equally many rows, and each is encoded by the rows before it, as the rows after
    training are by all of them. The first part knows nothing yet: every category has the prior.

    Args:
        schema: The job's schema.
        preparation: Fitted to the rows.
        rows: What the model is trained on.

    Returns:
        float32 (n, columns of the preparation).
    """
    matrix = preparation.transform(rows.features)
    starts = _block_starts(rows.times)
    for n, column in enumerate(preparation.inputs):
        if isinstance(column.encoding, Target):
            at = preparation.columns_of(n).start
            spec = schema.features.categories[column.name]
            places = column.encoding.places(rows.features[:, n])
            for start, end in zip(starts, [*starts[1:], len(rows)], strict=True):
                means = _means(spec, column.encoding, places[:start], rows.labels[:start])
                matrix[start:end, at] = means[places[start:end]]
    return matrix


def _block_starts(times: IntArray) -> list[int]:
    """Where the parts of time begin; rows of one time are in one part."""
    even = [len(times) * n // TARGET_BLOCKS for n in range(TARGET_BLOCKS)]
    return sorted({int(np.searchsorted(times, times[at], "left")) for at in even})
