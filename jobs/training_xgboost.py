"""Boosted trees of XGBoost, trained on labels of both kinds."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import xgboost

from jobs.sections.training import TrainingSettings
from model_server.repository import MODEL_FILES
from udfs.batches.events import FloatArray
from udfs.offline.offline import Progress
from udfs.preparation.encoders import Matrix

SHOWN_FEATURES = 15


class BoostedTrees:
    """A booster as ``train`` needs it; see ``jobs.training.Trainable``."""

    skips_blank: ClassVar[bool] = False

    def __init__(self, booster: xgboost.Booster) -> None:
        """Take a trained booster; see ``fit``."""
        self._booster = booster

    @classmethod
    def fit(
        cls,
        training: TrainingSettings,
        columns: tuple[str, ...],
        matrix: Matrix,
        labels: FloatArray,
        progress: Progress,
    ) -> BoostedTrees:
        """See ``jobs.training.Trainable``."""
        parameters = {
            "objective": "binary:logistic",
            "tree_method": "hist",
            "max_depth": training.depth,
            "learning_rate": training.learning_rate,
            "seed": training.seed,
            "nthread": 0,  # all cores
        }
        data = xgboost.QuantileDMatrix(matrix, labels, feature_names=list(columns), nthread=0)
        booster = xgboost.Booster(parameters, [data])
        for tree in range(training.trees):
            booster.update(data, tree)
            progress("Training", (tree + 1) / training.trees)
        return cls(booster)

    def scores(self, matrix: Matrix) -> FloatArray:
        """See ``jobs.training.Trainable``."""
        scores = self._booster.inplace_predict(matrix, validate_features=False)
        return np.asarray(scores, np.float64)

    def about(self) -> dict[str, Any]:
        """``gain``: average loss reduction of the splits on a feature, the largest first."""
        gain: dict[str, Any] = self._booster.get_score(importance_type="gain")
        largest = sorted(gain.items(), key=lambda item: -item[1])
        return {"gain": {name: round(value, 4) for name, value in largest[:SHOWN_FEATURES]}}

    def save(self, folder: Path) -> dict[str, Any]:
        """See ``jobs.training.Trainable``."""
        self._booster.save_model(folder / MODEL_FILES[0])
        return {}
