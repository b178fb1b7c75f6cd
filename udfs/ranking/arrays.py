"""Types and small array functions that the ranking modules share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

Keys = npt.NDArray[np.uint64]
Rows = npt.NDArray[np.int32]
Times = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]

DAY_MS = 24 * 60 * 60 * 1_000


def keys_of(ids: Sequence[str]) -> Keys:
    """A stable 64-bit key of each id: what state holds, so that it outlives a model version."""
    return np.fromiter((xxhash.xxh64_intdigest(text.encode()) for text in ids), np.uint64, len(ids))


def halved(ages_ms: npt.NDArray[Any], half_life_days: float) -> Floats:
    """What is left of one after each age, in ms: half after a half-life; below 0 counts as 0."""
    ages = np.maximum(np.asarray(ages_ms, np.float64), 0.0)
    left: Floats = np.exp2(-ages / (half_life_days * DAY_MS))
    return left


def largest(scores: npt.NDArray[Any], count: int) -> npt.NDArray[np.intp]:
    """Places of the ``count`` largest, the largest first; of equal ones the first.

    Args:
        scores: (n,), without NaN.
        count: How many; fewer come if there are fewer.
    """
    if count <= 0 or not len(scores):
        return np.empty(0, np.intp)
    if count >= len(scores):
        return np.argsort(-scores, kind="stable")
    least = np.partition(scores, len(scores) - count)[len(scores) - count]
    above = np.flatnonzero(scores > least)
    level = np.flatnonzero(scores == least)[: count - len(above)]
    found = np.sort(np.concatenate((above, level)))
    return found[np.argsort(-scores[found], kind="stable")]
