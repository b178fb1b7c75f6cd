"""Version folders of every kind of model, small and quick to make."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt
import xgboost
from skl2onnx import to_onnx
from sklearn.ensemble import IsolationForest
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from model_server import repository
from model_server.backends.base import check_rows
from model_server.backends.tabular import Tabular
from tests.support import torch_models

NAMES = ("a", "b", "c", "d", "e")
ROWS = np.random.default_rng(3).normal(size=(200, 5)).astype(np.float32)
ROWS[::7, 2] = np.nan
LABELS = (ROWS[:, 0] + ROWS[:, 1] > 0).astype(int)

Score = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float64]]


def write_features(
    folder: Path, names: tuple[str, ...] = NAMES, score: str = "", impute: float | None = None
) -> None:
    """Write features.json."""
    features = [{"name": name, "type": "float", "impute": impute} for name in names]
    document = {"format": 1, "features": features}
    if score:
        document["score"] = {"output": score}  # type: ignore[assignment]
    (folder / "features.json").write_text(json.dumps(document))


def xgboost_folder(folder: Path) -> Score:
    """Write a booster; return its own prediction."""
    matrix = xgboost.DMatrix(ROWS, LABELS, feature_names=list(NAMES))
    settings = {"objective": "binary:logistic", "nthread": 1}
    booster = xgboost.train(settings, matrix, num_boost_round=5)
    folder.mkdir(parents=True)
    booster.save_model(folder / "model.ubj")
    write_features(folder)
    return lambda rows: np.asarray(
        booster.inplace_predict(rows, missing=np.nan, validate_features=False), np.float64
    )


def onnx_classifier_folder(folder: Path) -> Score:
    """Write a scikit-learn pipeline as ONNX; return the pipeline's own prediction."""
    pipeline = make_pipeline(SimpleImputer(), LogisticRegression()).fit(ROWS, LABELS)
    graph = to_onnx(pipeline, ROWS[:1], options={"zipmap": False})
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(graph.SerializeToString())
    write_features(folder)
    return lambda rows: np.asarray(pipeline.predict_proba(rows)[:, 1], np.float64)


def isolation_forest_folder(folder: Path) -> Score:
    """Write an Isolation Forest as ONNX; return its own decision function."""
    clean = np.nan_to_num(ROWS)
    forest = IsolationForest(n_estimators=20, random_state=0).fit(clean)
    graph = to_onnx(forest, clean[:1], target_opset={"": 17, "ai.onnx.ml": 3})
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(graph.SerializeToString())
    write_features(folder, score="scores", impute=0.0)
    return lambda rows: np.asarray(forest.decision_function(rows), np.float64)


class LinearModel(Tabular):
    """A user's own class: weights in a file."""

    platform: ClassVar[str] = "linear"

    def __init__(self, features: repository.FeatureList, weights: npt.NDArray[np.float32]) -> None:
        super().__init__(features, explains=False, classifies=False)
        self._weights = weights

    @classmethod
    def load(cls, version_dir: Path, *, threads: int = 1) -> Self:
        weights = np.array(json.loads((version_dir / "weights.json").read_text()), np.float32)
        return cls(repository.load_features(version_dir), weights)

    def predict(self, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        check_rows(rows, len(self._weights))
        return (np.nan_to_num(rows, nan=0.0) * self._weights).sum(axis=1).astype(np.float64)


def python_class_folder(folder: Path) -> Score:
    """Write the weights of a ``LinearModel``; return what it should give."""
    weights = np.array([0.5, -1.0, 0.25, 2.0, 1.0], np.float32)
    folder.mkdir(parents=True)
    (folder / "weights.json").write_text(json.dumps(weights.tolist()))
    write_features(folder)
    return lambda rows: (np.nan_to_num(rows, nan=0.0) * weights).sum(axis=1).astype(np.float64)


def torch_folder(source: str, name: str) -> Callable[[Path], Score]:
    """Return what writes a file of ``torch_models`` as a table's model."""

    def write(folder: Path) -> Score:
        folder.mkdir(parents=True)
        shutil.copy(torch_models.files() / source, folder / name)
        write_features(folder)
        return torch_models.score

    return write


FOLDERS: Mapping[str, Callable[[Path], Score]] = {
    "xgboost": xgboost_folder,
    "onnx": onnx_classifier_folder,
    "isolation_forest": isolation_forest_folder,
    "python_class": python_class_folder,
    "torchscript": torch_folder("table.pt", "model.pt"),
    "exported_program": torch_folder("table.pt2", "model.pt2"),
}
"""How a version folder of each kind is written."""

REMOTE = frozenset({"torchscript", "exported_program"})
"""Kinds that need ``torch_models.torch_python``."""

PYTHON_CLASS = f"{__name__}:LinearModel"
