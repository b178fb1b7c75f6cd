"""The ranking network's weights score alike in NumPy and in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_server.backends import load_table
from tests.support.models import write_features
from udfs.ranking.examples import Examples
from udfs.ranking.features import FEATURES
from udfs.ranking.network import (
    Network,
    NetworkError,
    NetworkOptions,
    scores_of,
    train_ranker,
)
from udfs.ranking.onnx_graph import write_onnx


def rows_with_gaps(count: int) -> np.ndarray:
    random = np.random.default_rng(5)
    rows = random.normal(3, 4, (count, len(FEATURES))).astype(np.float32)
    rows[random.random(rows.shape) < 0.1] = np.nan
    return rows


def a_network() -> Network:
    random = np.random.default_rng(1)
    width = len(FEATURES)
    weights: dict[str, Any] = {
        "mean": random.normal(size=width).astype(np.float32),
        "inverse": random.uniform(0.1, 1, width).astype(np.float32),
        "limit": np.float32(5),
    }
    for n, (rows, columns) in enumerate([(2 * width, 16), (16, 8), (8, 1)]):
        weights[f"weights_{n}"] = random.normal(0, 0.3, (rows, columns)).astype(np.float32)
        weights[f"biases_{n}"] = random.normal(0, 0.1, columns).astype(np.float32)
    return Network(weights, Path(), rows_with_gaps(1), np.zeros(1, np.float32))


def test_the_onnx_file_scores_as_the_weights_say(tmp_path: Path) -> None:
    network, rows = a_network(), rows_with_gaps(300)
    write_onnx(network.weights, tmp_path / "model.onnx")
    write_features(tmp_path, FEATURES)
    scores = load_table(tmp_path).predict(rows)
    assert scores.std() > 0.01
    np.testing.assert_allclose(scores, scores_of(network, rows), atol=1e-6)


def test_without_tensorflow_training_says_how_to_get_it(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho \"No module named 'tensorflow'\" >&2\nexit 1\n")
    python.chmod(0o755)
    options = NetworkOptions(str(python), 1, 1)
    examples = Examples(rows_with_gaps(4), np.array([0, 1, 0, 1], np.float32), 1)
    with pytest.raises(NetworkError, match=r"No module named 'tensorflow'.*EXTRA=tensorflow"):
        train_ranker(examples, tmp_path, options)
    with pytest.raises(NetworkError, match="cannot be run"):
        train_ranker(examples, tmp_path, NetworkOptions(str(tmp_path / "none"), 1, 1))
