"""An autoencoder: trained by an interpreter with PyTorch, served by the model server's worker."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from jobs.environment import NotReadyError
from jobs.sections.training import TrainingSettings
from jobs.training_autoencoder import Autoencoder
from model_server.backends.pytorch import PyTorchTable
from tests.support import torch_models
from udfs.offline.offline import silent
from udfs.preparation.encoders import Matrix

COLUMNS = tuple("abcdef")


def rows(count: int, shift: float = 0.0) -> Matrix:
    """Six columns that two numbers make."""
    chance = np.random.default_rng(2)
    hidden = chance.normal(0, 1, (count, 2))
    values = hidden @ chance.normal(0, 1, (2, 6)) + chance.normal(0, 0.05, (count, 6))
    values[:, 0] += shift
    return values.astype(np.float32)


def test_the_server_gives_the_scores_of_the_training(tmp_path: Path) -> None:
    python = torch_models.torch_python()
    chosen = TrainingSettings(kind="autoencoder", epochs=25, torch_python=Path(python))
    learnt = np.concatenate([rows(2_000), rows(50, shift=30.0)])
    labels = np.repeat([0.0, 1.0], [2_000, 50])
    model = Autoencoder.fit(chosen, COLUMNS, learnt, labels, silent)
    names = [{"name": name, "type": "float", "impute": 0.0} for name in COLUMNS]
    document = {"format": 1, "features": names} | model.save(tmp_path)
    (tmp_path / "features.json").write_text(json.dumps(document))
    served = PyTorchTable.load(tmp_path, python=python)
    try:
        scores = served.predict(learnt)
    finally:
        served.close()
    np.testing.assert_allclose(scores, model.scores(learnt), rtol=0, atol=1e-5)
    assert np.quantile(scores[:2_000], 0.99) == pytest.approx(0.5, abs=0.01)
    assert scores[2_000:].min() > 0.9


def test_without_pytorch_it_says_what_to_do() -> None:
    chosen = TrainingSettings(kind="autoencoder", torch_python=Path(sys.executable))
    with pytest.raises(NotReadyError, match="torch_python"):
        Autoencoder.fit(chosen, COLUMNS, rows(10), np.zeros(10), silent)
