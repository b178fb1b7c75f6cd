"""An Isolation Forest's graph gives scikit-learn's scores; what it cannot do is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from jobs import settings
from jobs.environment import ROOT
from jobs.sections.training import TrainingSettings
from jobs.settings_file import SettingsError
from jobs.training_forest import IsolationTrees
from model_server.backends.onnx import OnnxTable
from udfs.offline.offline import silent
from udfs.preparation.encoders import Matrix

CONFIG = ROOT / "conf" / "fraud.yaml"
COLUMNS = tuple("abcdefgh")


def matrix(rows: int, spread: float = 1.0) -> Matrix:
    values = np.random.default_rng(9).normal(0, spread, (rows, len(COLUMNS)))
    return values.astype(np.float32)


@pytest.mark.parametrize("seed", range(2))
def test_the_graph_gives_the_forests_scores(tmp_path: Path, seed: int) -> None:
    chosen = TrainingSettings(kind="isolation_forest", seed=seed, trees=40)
    rows = matrix(2_000)
    forest = IsolationTrees.fit(chosen, COLUMNS, rows, np.zeros(len(rows)), silent)
    names = [{"name": name, "type": "float", "impute": 0.0} for name in COLUMNS]
    document = {"format": 1, "features": names} | forest.save(tmp_path)
    (tmp_path / "features.json").write_text(json.dumps(document))
    sent = np.concatenate([rows, matrix(1_000, 50.0), np.zeros((1, len(COLUMNS)), np.float32)])
    scores = OnnxTable.load(tmp_path).predict(sent)
    np.testing.assert_allclose(scores, forest.scores(sent), rtol=0, atol=1e-5)
    assert 0 <= scores.min() < 0.5 < scores.max() <= 1


def test_rows_that_are_not_normal_do_not_count() -> None:
    chosen = TrainingSettings(kind="isolation_forest", trees=40)
    rows = np.concatenate([matrix(500), matrix(100) + 20])
    labels = np.repeat([0.0, 1.0], [500, 100])
    one = IsolationTrees.fit(chosen, COLUMNS, rows, labels, silent)
    two = IsolationTrees.fit(chosen, COLUMNS, rows[:500], labels[:500], silent)
    np.testing.assert_array_equal(one.scores(rows), two.scores(rows))
    assert one.about()["normal_rows"] == 500
    assert one.scores(rows)[500:].min() > one.about()["normal_scores"]["0.99"]


def test_a_missing_value_must_become_a_number(tmp_path: Path) -> None:
    changes = {"training.kind": "isolation_forest", "features.preparation": {"default": "none"}}
    with pytest.raises(SettingsError, match="no place for a missing value"):
        settings.load(CONFIG, changes)
