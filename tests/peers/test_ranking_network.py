"""TensorFlow trains the ranking networks; both exports score alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from jobs.environment import BUILD
from model_server.backends import load, load_table
from tests.support.models import write_features
from tests.support.networks import rows_with_gaps
from tests.support.purchases import small_index, small_log
from udfs.ranking.examples import Examples
from udfs.ranking.features import FEATURES
from udfs.ranking.network import NetworkOptions, train_ranker, with_towers
from udfs.ranking.onnx_graph import write_onnx

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def options() -> NetworkOptions:
    python = BUILD / "peers" / "tensorflow" / "bin" / "python"
    if not python.is_file():
        pytest.skip("no TensorFlow: make peers")
    return NetworkOptions(str(python), 20, 7)


def test_both_exports_give_equal_scores(tmp_path: Path, options: NetworkOptions) -> None:
    rows = rows_with_gaps(4_000)
    labels = (np.nan_to_num(rows[:, 3]) > 3).astype(np.float32)
    network = train_ranker(Examples(rows, labels, 200), tmp_path, options)
    onnx = tmp_path / "onnx"
    onnx.mkdir()
    write_onnx(network.weights, onnx / "model.onnx")
    for folder in (onnx, network.saved_model):
        write_features(folder, FEATURES)
    expected = load_table(onnx).predict(rows)
    served = load(network.saved_model, 1, python=options.python)
    try:
        scores = served.run("serving_default", {"inputs": rows}, ["scores"])["scores"]
    finally:
        served.close()
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    np.testing.assert_allclose(network.probe_scores, expected[:512], atol=1e-5)
    assert expected[labels > 0].mean() > expected[labels == 0].mean() + 0.1


def test_towers_are_directions(options: NetworkOptions) -> None:
    index = small_index()
    towers = with_towers(small_log(), index, options)
    lengths = np.linalg.norm(towers.embeddings, axis=1)
    np.testing.assert_allclose(lengths, np.linalg.norm(index.embeddings, axis=1), atol=1e-5)
    assert not np.allclose(towers.embeddings, index.embeddings, atol=0.01)
    assert np.abs(towers.user_tower).max() > 0
