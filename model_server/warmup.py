"""Dummy batches before the first real one.

The first calls of a freshly loaded model pay for lazy imports, thread pools and cold caches; run
them before the server says SERVING, or before an operator takes its first batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from model_server.backends.base import TabularModel, TensorSpec

__all__ = ["BATCH_ROWS", "dummy_rows", "run", "zeros"]

#: Rows of each dummy batch: one record, a window at moderate load, a full batch.
BATCH_ROWS = (1, 32, 512)


def dummy_rows(feature_count: int, row_count: int) -> npt.NDArray[np.float32]:
    """Return float32 (row_count, feature_count) zeros with NaN in every other row.

    Both ways through a tree split, "a value" and "missing", are walked.
    """
    rows = np.zeros((row_count, feature_count), dtype=np.float32)
    rows[1::2] = np.nan
    return rows


def zeros(spec: TensorSpec, rows: int) -> npt.NDArray[Any]:
    """Return a tensor of zeros, or of empty strings, with ``rows`` wherever any size will do.

    Args:
        spec: Of a known rank.
        rows: At least 0.
    """
    shape = [rows if size is None else size for size in spec.shape or ()]
    if spec.dtype.kind == "O":
        return np.full(shape, b"", dtype=object)
    return np.zeros(shape, spec.dtype)


def run(model: TabularModel, *, explain: bool = True) -> None:
    """Run each dummy batch through ``predict``, and one row through ``explain``.

    Contributions cost a hundred times a prediction, so one row must do.

    Args:
        model: The model.
        explain: Whether it can.

    Raises:
        ModelServerError: The model cannot score its own dummy batch.
    """
    feature_count = len(model.feature_names)
    for row_count in BATCH_ROWS:
        model.predict(dummy_rows(feature_count, row_count))
    if explain:
        model.explain(dummy_rows(feature_count, 1))
