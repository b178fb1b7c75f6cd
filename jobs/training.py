"""`streamscore train`: a model from a labelled history, with the live job's own features."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xgboost

from jobs.enrichment import tables_of
from jobs.history_files import HistoryFileError, labels_in
from jobs.metrics import average_precision, decide, roc_auc
from jobs.model_folders import METRICS_FILE, publish, write_json
from jobs.settings import Settings
from model_server.errors import RepositoryError
from model_server.repository import FEATURES_FILE, MODEL_FILES, ModelVersion
from udfs.batches.categories import texts_of
from udfs.batches.events import Events, FloatArray
from udfs.enrichment.table_readers import TableError
from udfs.offline.offline import (
    HistoryError,
    Progress,
    features_of,
    history_of,
    labels_of,
    silent,
)
from udfs.preparation.encoders import Matrix
from udfs.preparation.fitting import Rows, fit, training_matrix
from udfs.preparation.preparation import Preparation
from udfs.spec.schema import Schema

SHOWN_FEATURES = 15
_PART = "{rows:,} rows, {positives:,} positive, {from} to {to}"


class TrainingError(HistoryFileError):
    """No model can be trained on this history with these settings."""


@dataclass(frozen=True, slots=True)
class Trained:
    """A model that was trained and stored.

    Attributes:
        version: Its folder.
        metrics: What ``metrics.json`` holds; see ``_report``.
    """

    version: ModelVersion
    metrics: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Prepared:
    """The rows to learn from, the categories' texts, and how many rows of the table became what."""

    rows: Rows
    texts: dict[str, dict[int, str]]
    counts: dict[str, int]


class _Clock:
    """Adds up what each step took, in seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def of(self, step: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.seconds[step] = round(time.monotonic() - start, 3)


def train(settings: Settings, frame: pd.DataFrame, progress: Progress = silent) -> Trained:
    """Train a model on the earliest part of a history, measure it on the rest and store it.

    Args:
        settings: The job's settings; the model goes to ``model.path`` as a new version.
        frame: One row per event: the fields of ``event.fields`` and the label column. A row
            without a label counts in the features of others and is not trained on.
        progress: Shown while it goes on.

    Raises:
        HistoryFileError: a column is missing or wrong.
        TrainingError: a part of the history has only one label, or the model cannot be written.
    """
    clock = _Clock()
    labels = labels_in(settings, frame)
    with clock.of("features"):
        prepared = _prepare(settings, frame, labels, progress)
    part, rest = _split(prepared.rows, settings.training.train_fraction)
    schema = settings.schema_
    with clock.of("preparation"):
        preparation = fit(schema, part, prepared.texts)
        matrix = training_matrix(schema, preparation, part)
    with clock.of("fit"):
        booster = _fit(settings, preparation, matrix, part.labels, progress)
    with clock.of("evaluation"):
        rest_matrix = preparation.transform(rest.features)
        scores = booster.inplace_predict(rest_matrix, validate_features=False)
        metrics = _report(settings, part, rest, np.asarray(scores, np.float64))
    metrics |= {"rows": prepared.counts, "gain": _gain(booster), "seconds": clock.seconds}
    return Trained(_store(settings, booster, preparation, metrics), metrics)


def _prepare(
    settings: Settings, frame: pd.DataFrame, labels: FloatArray, progress: Progress
) -> _Prepared:
    schema = settings.schema_
    try:
        history = history_of(schema, frame, progress, tables_of(settings))
        events = history.events
        known = history.labels(labels)
        computed = features_of(schema, events, labels_of(schema, events, known), progress)
    except HistoryError as exc:
        raise TrainingError(str(exc), "correct the data, or the settings' event section") from exc
    except TableError as exc:
        raise TrainingError(str(exc), "make the table's topic or file, then train again") from exc
    labelled = ~np.isnan(known[computed.rows])
    at = computed.rows[labelled]
    rows = Rows(computed.features[labelled], known[at], events.times[at])
    _refuse_too_large(schema, rows.features)
    counts = {
        "history": len(frame),
        "refused": len(history.rejects),
        "duplicates": computed.duplicates + history.duplicates,
        "conflicts": computed.conflicts,
        "unlabelled": len(labelled) - len(rows),
    }
    return _Prepared(rows, _texts(schema, events), counts)


def _texts(schema: Schema, events: Events) -> dict[str, dict[int, str]]:
    """The text of each code, for each category."""
    categories = schema.features.categories.items()
    return {name: texts_of(set(events.texts[spec.fields[0]])) for name, spec in categories}


def _refuse_too_large(schema: Schema, features: FloatArray) -> None:
    """Refuse what float32, the model's type, can only hold as infinity."""
    large = np.flatnonzero((np.abs(features) > np.finfo(np.float32).max).any(axis=0))
    if len(large):
        raise TrainingError(
            f"feature {schema.columns[large[0]]!r} has values too large for a model",
            "set min and max of the field it reads in event.fields",
        )


def _split(rows: Rows, train_fraction: float) -> tuple[Rows, Rows]:
    part, rest = rows.split(int(len(rows) * train_fraction))
    if len(np.unique(part.labels)) < 2:
        raise TrainingError(
            f"the first {len(part):,} of {len(rows):,} labelled rows do not hold both labels",
            "train on a longer history, or raise training.train_fraction",
        )
    return part, rest


def _fit(
    settings: Settings,
    preparation: Preparation,
    features: Matrix,
    labels: FloatArray,
    progress: Progress,
) -> xgboost.Booster:
    training = settings.training
    parameters = {
        "objective": "binary:logistic",
        "tree_method": "hist",
        "max_depth": training.depth,
        "learning_rate": training.learning_rate,
        "seed": training.seed,
        "nthread": 0,  # all cores
    }
    matrix = xgboost.QuantileDMatrix(
        features, labels, feature_names=list(preparation.columns), nthread=0
    )
    booster = xgboost.Booster(parameters, [matrix])
    for tree in range(training.trees):
        booster.update(matrix, tree)
        progress("Training", (tree + 1) / training.trees)
    return booster


def _report(settings: Settings, part: Rows, rest: Rows, scores: FloatArray) -> dict[str, Any]:
    """The metrics on the last part of time; a figure that does not exist is null."""
    threshold = settings.alerts.threshold
    return {
        "format": 1,
        "average_precision": _known(average_precision(rest.labels, scores)),
        "base_rate": float(rest.labels.mean()),
        "roc_auc": _known(roc_auc(rest.labels, scores)),
        "threshold": threshold,
        "at_threshold": {
            name: _known(value)
            for name, value in asdict(decide(rest.labels, scores, threshold)).items()
        },
        "train": _about(part),
        "test": _about(rest),
        "training": settings.training.model_dump(mode="json"),
    }


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _about(rows: Rows) -> dict[str, Any]:
    return {
        "rows": len(rows),
        "positives": int(rows.labels.sum()),
        "from": _iso(rows.times[0]),
        "to": _iso(rows.times[-1]),
    }


def _iso(time_ms: np.int64) -> str:
    return datetime.fromtimestamp(int(time_ms) / 1_000, UTC).isoformat(timespec="milliseconds")


def _gain(booster: xgboost.Booster) -> dict[str, float]:
    """Average loss reduction of the splits on a feature, the largest first."""
    gain: dict[str, Any] = booster.get_score(importance_type="gain")
    largest = sorted(gain.items(), key=lambda item: -item[1])
    return {name: round(value, 4) for name, value in largest[:SHOWN_FEATURES]}


def _store(
    settings: Settings,
    booster: xgboost.Booster,
    preparation: Preparation,
    metrics: dict[str, Any],
) -> ModelVersion:
    def write(draft: Path) -> None:
        booster.save_model(draft / MODEL_FILES[0])
        document = preparation.document() | {"config_hash": settings.features_hash}
        write_json(draft / FEATURES_FILE, document)
        write_json(draft / METRICS_FILE, metrics)

    model = settings.model
    try:
        return publish(model.path, model.name, write)
    except (OSError, RepositoryError) as exc:
        raise TrainingError(f"cannot write the model: {exc}", "check model.path and .name") from exc


def summary(trained: Trained) -> dict[str, str]:
    """What ``streamscore train`` shows."""
    metrics = trained.metrics
    at = metrics["at_threshold"]
    seconds = metrics["seconds"]
    return {
        "trained on": _PART.format(**metrics["train"]),
        "measured on": _PART.format(**metrics["test"]),
        "average precision": f"{_text(metrics['average_precision'])} "
        f"(base rate {metrics['base_rate']:.4f})",
        "ROC AUC": _text(metrics["roc_auc"]),
        f"alerts above {metrics['threshold']:g}": f"{at['alerts']:,}: precision "
        f"{_text(at['precision'])}, recall {_text(at['recall'])}, F1 {_text(at['f1'])}",
        "largest gains": ", ".join(list(metrics["gain"])[:5]),
        "seconds": ", ".join(f"{step} {took:.1f}" for step, took in seconds.items()),
        "model": str(trained.version.path),
    }


def _text(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"
