"""The ranking network's weights score alike in NumPy and in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from model_server.backends import load_table
from tests.support.models import write_features
from tests.support.networks import a_network, rows_with_gaps
from udfs.ranking.examples import Examples
from udfs.ranking.features import FEATURES
from udfs.ranking.network import (
    NetworkError,
    NetworkOptions,
    scores_of,
    train_ranker,
)
from udfs.ranking.onnx_graph import write_onnx


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
