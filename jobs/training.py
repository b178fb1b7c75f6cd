"""`streamscore train`: a model from a labelled history, with the live job's own features."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import pandas as pd

from jobs.enrichment import tables_of
from jobs.history_files import HistoryFileError, labels_in
from jobs.metrics import average_precision, decide, roc_auc
from jobs.model_folders import METRICS_FILE, publish, write_json
from jobs.sections.training import TrainingSettings
from jobs.settings import Settings
from jobs.training_autoencoder import Autoencoder
from jobs.training_forest import IsolationTrees
from jobs.training_xgboost import BoostedTrees
from model_server.errors import RepositoryError
from model_server.repository import FEATURES_FILE, ModelVersion
from udfs.batches.categories import texts_of
from udfs.batches.events import Events, FloatArray
from udfs.definition.schema import Schema
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

_PART = "{rows:,} rows, {positives:,} positive, {from} to {to}"


class TrainingError(HistoryFileError):
    """No model can be trained on this history with these settings."""


class Trainable(Protocol):
    """A kind of model that is trained here.

    Attributes:
        skips_blank: Whether rows of which every feature is missing are left out.
    """

    skips_blank: ClassVar[bool]

    @classmethod
    def fit(
        cls,
        training: TrainingSettings,
        columns: tuple[str, ...],
        matrix: Matrix,
        labels: FloatArray,
        progress: Progress,
    ) -> Self:
        """Train a model.

        Args:
            training: Its kind's options.
            columns: Names of the matrix's columns.
            matrix: float32 (n, columns).
            labels: 0 or 1, float64 (n,).
            progress: Shown while it goes on.
        """

    def scores(self, matrix: Matrix) -> FloatArray:
        """Score rows, float64 (n,), each in 0 to 1."""

    def about(self) -> dict[str, Any]:
        """What ``metrics.json`` says of this kind of model."""

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the model's file; returns what ``features.json`` has to say of it."""


_KINDS: dict[str, type[Trainable]] = {
    "xgboost": BoostedTrees,
    "isolation_forest": IsolationTrees,
    "autoencoder": Autoencoder,
}


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
        TrainingError: there are not the labels that the kind of model needs, or the model cannot
            be written.
    """
    clock = _Clock()
    labels = labels_in(settings, frame)
    with clock.of("features"):
        prepared = _prepare(settings, frame, labels, progress)
    part, rest = _split(prepared.rows, settings.training)
    schema = settings.schema_
    with clock.of("preparation"):
        preparation = fit(schema, part, prepared.texts)
        matrix = training_matrix(schema, preparation, part)
    with clock.of("fit"):
        kind = _KINDS[settings.training.kind]
        model = kind.fit(settings.training, preparation.columns, matrix, part.labels, progress)
    with clock.of("evaluation"):
        scores = model.scores(preparation.transform(rest.features))
        metrics = _report(settings, part, rest, scores)
    metrics |= {"rows": prepared.counts, "seconds": clock.seconds} | model.about()
    return Trained(_store(settings, model, preparation, metrics), metrics)


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
    # Imputed rows of a machine that is still warming up would teach a forest one point.
    blank = np.isnan(computed.features).all(axis=1) & _KINDS[settings.training.kind].skips_blank
    used = labelled & ~blank
    at = computed.rows[used]
    rows = Rows(computed.features[used], known[at], events.times[at])
    _refuse_too_large(schema, rows.features)
    counts = {
        "history": len(frame),
        "refused": len(history.rejects),
        "duplicates": computed.duplicates + history.duplicates,
        "conflicts": computed.conflicts,
        "unlabelled": int((~labelled).sum()),
        "blank": int((labelled & blank).sum()),
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


def _split(rows: Rows, training: TrainingSettings) -> tuple[Rows, Rows]:
    part, rest = rows.split(int(len(rows) * training.train_fraction))
    needed = {0.0, 1.0} if training.kind == "xgboost" else {0.0}
    if not needed <= set(np.unique(part.labels).tolist()):
        what = "both labels" if len(needed) > 1 else "a normal row, of label 0"
        raise TrainingError(
            f"the first {len(part):,} of {len(rows):,} labelled rows do not hold {what}",
            "train on a longer history, or raise training.train_fraction",
        )
    return part, rest


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


def _store(
    settings: Settings,
    model: Trainable,
    preparation: Preparation,
    metrics: dict[str, Any],
) -> ModelVersion:
    def write(draft: Path) -> None:
        document = preparation.document() | model.save(draft)
        document |= {"config_hash": settings.features_hash}
        write_json(draft / FEATURES_FILE, document)
        write_json(draft / METRICS_FILE, metrics)

    place = settings.model
    try:
        return publish(place.path, place.name, write)
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
        **_of_kind(metrics),
        "seconds": ", ".join(f"{step} {took:.1f}" for step, took in seconds.items()),
        "model": str(trained.version.path),
    }


def _of_kind(metrics: dict[str, Any]) -> dict[str, str]:
    if "gain" in metrics:
        return {"largest gains": ", ".join(list(metrics["gain"])[:5])}
    if "usual_error" in metrics:
        return {"error of one normal row in 100": _text(metrics["usual_error"])}
    quantiles = metrics["normal_scores"].items()
    return {"scores of normal rows": ", ".join(f"{q} below {v:.3f}" for q, v in quantiles)}


def _text(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"
