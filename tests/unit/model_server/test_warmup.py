"""Dummy batches."""

from __future__ import annotations

import numpy as np

from model_server import warmup


class Recorder:
    feature_names = ("a", "b")

    def __init__(self) -> None:
        self.predicted: list[np.ndarray] = []
        self.explained: list[np.ndarray] = []

    def predict(self, rows: np.ndarray) -> None:
        self.predicted.append(rows)

    def explain(self, rows: np.ndarray) -> None:
        self.explained.append(rows)


def test_every_size_is_run_through_predict_and_one_row_through_explain() -> None:
    model = Recorder()
    warmup.run(model)  # type: ignore[arg-type]
    assert [rows.shape for rows in model.predicted] == [(1, 2), (32, 2), (512, 2)]
    assert [rows.shape for rows in model.explained] == [(1, 2)]


def test_dummy_rows_hold_values_and_missing_ones() -> None:
    rows = warmup.dummy_rows(3, 4)
    assert rows.dtype == np.float32
    assert np.isnan(rows[1::2]).all() and not np.isnan(rows[::2]).any()
