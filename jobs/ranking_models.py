"""The models of a ranking job: boosted trees, or networks that TensorFlow trains."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jobs.model_folders import write_json
from jobs.settings import Settings
from jobs.training import TrainingError
from model_server.repository import FEATURES_FILE, MODEL_FILES
from udfs.preparation.preparation import Input, Preparation
from udfs.ranking import network
from udfs.ranking.arrays import DAY_MS, Singles
from udfs.ranking.boosting import TreeOptions, fit_trees
from udfs.ranking.building import BuildOptions, build_index
from udfs.ranking.examples import Build, Examples, Progress
from udfs.ranking.features import FEATURES
from udfs.ranking.index import ItemIndex
from udfs.ranking.log import PurchaseLog
from udfs.ranking.network import Network, NetworkError, NetworkOptions
from udfs.ranking.onnx_graph import OnnxMissing, write_onnx

__all__ = ["Made", "Score", "builder", "model_of", "write_network"]

Score = Callable[[Singles], npt.NDArray[Any]]
_CLOSE = 1e-5


@dataclass(frozen=True)
class Made:
    """A model that is not stored yet: how it scores, and what writes its files."""

    score: Score
    write: Callable[[Path], None]


def builder(settings: Settings) -> Build:
    """What makes a version's items: with an SVD's embeddings, or two towers'."""
    training = settings.training.ranking
    options = BuildOptions(
        dimensions=training.dimensions,
        neighbours=training.neighbours,
        half_life_days=training.half_life / DAY_MS,
        off_sale_days=(training.off_sale or 0) / DAY_MS,
        seed=settings.training.seed,
    )

    def build(log: PurchaseLog, as_of_ms: int) -> ItemIndex:
        index = build_index(log, as_of_ms, options)
        if training.model == "trees":
            return index
        with _explained():
            return network.with_towers(log, index, _network_options(settings))

    return build


@contextmanager
def model_of(settings: Settings, examples: Examples, progress: Progress) -> Iterator[Made]:
    """Train the ranking model; its files can be written while this is open.

    Raises:
        TrainingError: It cannot be trained here, or its two forms differ.
    """
    if settings.training.ranking.model == "trees":
        yield _trees(settings, examples, progress)
        return
    with tempfile.TemporaryDirectory() as folder:
        progress("Training", 0.0)
        with _explained():
            trained = network.train_ranker(examples, Path(folder), _network_options(settings))
        progress("Training", 1.0)
        score = partial(network.scores_of, trained)
        apart = np.abs(score(trained.probe) - trained.probe_scores).max()
        if not apart <= _CLOSE:
            raise TrainingError(
                f"the SavedModel's scores differ by {apart:g} from those of its weights",
                "train with the TensorFlow of conf/requirements-tensorflow.lock",
            )
        yield Made(score, partial(write_network, settings, trained))


def _trees(settings: Settings, examples: Examples, progress: Progress) -> Made:
    training = settings.training
    options = TreeOptions(training.trees, training.depth, training.learning_rate, training.seed)
    booster = fit_trees(examples, options, progress)

    def write(draft: Path) -> None:
        booster.save_model(draft / MODEL_FILES[0])
        _write_columns(settings, draft)

    return Made(partial(booster.inplace_predict, validate_features=False), write)


def write_network(settings: Settings, trained: Network, draft: Path) -> None:
    """Write one form for the server into the folder itself, the other below it."""
    onnx_first = settings.training.ranking.export == "onnx"
    onnx = draft if onnx_first else draft / "onnx"
    onnx.mkdir(exist_ok=True)
    saved_model = draft / "saved_model" if onnx_first else draft
    shutil.copytree(trained.saved_model, saved_model, dirs_exist_ok=True)
    with _explained():
        write_onnx(trained.weights, onnx / "model.onnx")
    for folder in {draft, onnx}:
        _write_columns(settings, folder)


def _write_columns(settings: Settings, folder: Path) -> None:
    inputs = [Input(name=name) for name in FEATURES]
    document = Preparation(inputs).document() | {"config_hash": settings.features_hash}
    write_json(folder / FEATURES_FILE, document)


def _network_options(settings: Settings) -> NetworkOptions:
    training = settings.training
    return NetworkOptions(training.ranking.python, training.ranking.epochs, training.seed)


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except (NetworkError, OnnxMissing) as exc:
        raise TrainingError(str(exc), "or leave training.ranking.model at trees") from exc
