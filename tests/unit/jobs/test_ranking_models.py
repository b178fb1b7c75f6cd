"""Where the two forms of a ranking network lie in a version's folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jobs.environment import ROOT
from jobs.ranking_models import write_network
from jobs.ranking_training import scorer_of
from jobs.settings import load
from model_server.repository import ModelVersion
from tests.support.networks import a_network, rows_with_gaps
from udfs.ranking.network import scores_of


@pytest.mark.parametrize(
    ("export", "onnx", "saved_model"),
    [
        ("onnx", "model.onnx", "saved_model/saved_model.pb"),
        ("saved_model", "onnx/model.onnx", "saved_model.pb"),
    ],
)
def test_the_server_finds_the_form_that_is_to_be_served(
    tmp_path: Path, export: str, onnx: str, saved_model: str
) -> None:
    settings = load(ROOT / "conf" / "feed.yaml", {"training.ranking.export": export})
    made, version = tmp_path / "made", tmp_path / "1"
    for folder in (made, version):
        folder.mkdir()
    (made / "saved_model.pb").write_bytes(b"as TensorFlow wrote it")
    network = replace(a_network(), saved_model=made)
    write_network(settings, network, version)
    assert (version / saved_model).read_bytes() == b"as TensorFlow wrote it"
    assert (version / onnx).is_file()
    rows = rows_with_gaps(20)
    scores = scorer_of(ModelVersion("feed", 1, version))(rows)
    np.testing.assert_allclose(scores, scores_of(network, rows), atol=1e-6)
