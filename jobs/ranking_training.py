"""`streamscore train` of a ranking job: items, ranker, figures beside baselines, gate, new version.

A version's folder holds the items (``items.npz``), the ranking model with ``features.json``, and
``metrics.json``. What is published is what was measured: made of what was before the split.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jobs.model_folders import METRICS_FILE, publish, write_json
from jobs.ranking_data import TrainingData
from jobs.ranking_models import Made, Score, builder, model_of
from jobs.settings import Settings
from jobs.training import Trained, TrainingError
from model_server.backends import load_table
from model_server.errors import ModelError, RepositoryError
from model_server.repository import ModelVersion, find_version
from udfs.ranking.arrays import DAY_MS, Singles
from udfs.ranking.baselines import baselines
from udfs.ranking.counters import ItemCounters
from udfs.ranking.evaluation import Measured, every_basket, measure, next_basket, ranked_by
from udfs.ranking.examples import ExampleOptions, Examples, Progress, examples_before, replay_of
from udfs.ranking.features import FEATURES
from udfs.ranking.gate import GateOptions, refusal
from udfs.ranking.index import IndexFileError, ItemIndex
from udfs.ranking.log import PurchaseLog, item_keys
from udfs.ranking.replay import Replay

__all__ = ["GateRefused", "measured", "scorer_of", "summary", "train"]

OURS = "streamscore"


class GateRefused(TrainingError):
    """The new version is worse than the present one, which stays."""


def train(settings: Settings, data: TrainingData, progress: Progress) -> Trained:
    """Train on the earliest part of a log, measure on the rest, publish unless it is worse.

    Args:
        settings: A ranking job's.
        data: What to train on.
        progress: Shown while it goes on.

    Raises:
        GateRefused: The newest part ranks worse with it than with the present version.
        TrainingError: Nothing can be learnt from the log, or the version cannot be written.
    """
    split_ms = split_of(data.log, settings.training.train_fraction)
    examples = _examples(settings, data, split_ms, progress)
    with model_of(settings, examples, progress) as made:
        return _measured(settings, data, split_ms, examples, made, progress)


def _measured(
    settings: Settings,
    data: TrainingData,
    split_ms: int,
    examples: Examples,
    made: Made,
    progress: Progress,
) -> Trained:
    log = data.log
    progress("Measuring", 0.0)
    replay = _replay(settings, log, split_ms)
    figures = _figures(replay, log, split_ms, made.score)
    present = _present(settings, log, split_ms)
    progress("Measuring", 1.0)
    new = figures["every_basket"][OURS]
    refused = refusal(new, present[1] if present else None, _gate(settings))
    if refused:
        raise GateRefused(
            f"the new version is not published: {refused}",
            "look at what it was trained on; training.ranking.tolerance says what may be lost",
        )
    metrics = _report(settings, data, split_ms, examples, figures)
    metrics["present"] = present and {"version": present[0]} | present[1].document()
    return Trained(_store(settings, replay.index, made, metrics), metrics)


def split_of(log: PurchaseLog, train_fraction: float) -> int:
    """The event time before which that part of the purchases happened."""
    return int(log.times_ms[min(int(len(log) * train_fraction), len(log) - 1)])


def _gate(settings: Settings) -> GateOptions:
    tolerance = settings.training.ranking.tolerance
    return GateOptions(hit_rate=tolerance, ndcg=tolerance / 2)


def _examples(
    settings: Settings, data: TrainingData, split_ms: int, progress: Progress
) -> Examples:
    ranking, training = settings.ranking, settings.training.ranking
    assert ranking is not None
    chosen = ExampleOptions(
        training.folds, training.fold / DAY_MS, training.negatives, settings.training.seed
    )
    found = examples_before(
        data.log, split_ms, builder(settings), ranking.candidate_options, chosen, progress
    )
    found = found if data.feedback is None else found.joined(data.feedback)
    if len(np.unique(found.labels)) < 2:
        raise TrainingError(
            f"{found.requests:,} requests before the split give no example of each label",
            "train on a longer log, or on more or longer spans (training.ranking.folds, .fold)",
        )
    return found


def _figures(
    replay: Replay, log: PurchaseLog, split_ms: int, score: Score
) -> dict[str, dict[str, Measured]]:
    """Figures by protocol and ranking."""
    rankers = {OURS: ranked_by(score), **baselines(log, replay, split_ms)}
    sold = len(np.unique(log.before(split_ms).items))
    return {
        "next_basket": measure(next_basket(replay, log, split_ms), rankers, sold),
        "every_basket": measure(every_basket(replay, log, split_ms), rankers, sold),
    }


def _replay(settings: Settings, log: PurchaseLog, split_ms: int) -> Replay:
    assert settings.ranking is not None
    return replay_of(
        log,
        split_ms,
        builder(settings),
        settings.ranking.candidate_options,
        settings.ranking.user_limits,
    )


def _present(settings: Settings, log: PurchaseLog, split_ms: int) -> tuple[int, Measured] | None:
    """The number of the present version, and how it ranks the newest part."""
    try:
        found = find_version(settings.model.path, settings.model.name)
    except RepositoryError:
        return None
    return found.version, measured(settings, found, log, split_ms)


def measured(
    settings: Settings, version: ModelVersion, log: PurchaseLog, split_ms: int
) -> Measured:
    """How a stored version ranks just before each basket of a log from an event time on.

    Raises:
        TrainingError: It is none that can be asked.
    """
    assert settings.ranking is not None
    try:
        index, score = ItemIndex.load(version.path), scorer_of(version)
    except (IndexFileError, RepositoryError, ModelError) as exc:
        raise TrainingError(
            f"version {version.version} cannot be compared with: {exc}", "remove its folder"
        ) from exc
    replay = Replay(
        index,
        item_keys(log),
        settings.ranking.candidate_options,
        ItemCounters.empty(len(index), split_ms),
        settings.ranking.user_limits,
    )
    replay.take_all(log.before(split_ms))
    cases = every_basket(replay, log, split_ms)
    return measure(cases, {"": ranked_by(score)}, len(index))[""]


def scorer_of(version: ModelVersion) -> Score:
    """How a stored version scores; a column that is no candidate's feature is missing to it."""
    nested = version.path / "onnx"
    model = load_table(nested if nested.is_dir() else version.path)
    places = [FEATURES.index(n) if n in FEATURES else len(FEATURES) for n in model.feature_names]

    def score(features: Singles) -> npt.NDArray[Any]:
        missing = np.full((len(features), 1), np.nan, np.float32)
        return model.predict(np.concatenate((features, missing), axis=1)[:, places])

    return score


def _store(
    settings: Settings, index: ItemIndex, made: Made, metrics: dict[str, Any]
) -> ModelVersion:

    def write(draft: Path) -> None:
        index.save(draft)
        made.write(draft)
        write_json(draft / METRICS_FILE, metrics)

    try:
        return publish(settings.model.path, settings.model.name, write)
    except (OSError, RepositoryError) as exc:
        raise TrainingError(f"cannot write the model: {exc}", "check model.path and .name") from exc


def _report(
    settings: Settings,
    data: TrainingData,
    split_ms: int,
    examples: Examples,
    figures: dict[str, dict[str, Measured]],
) -> dict[str, Any]:
    log = data.log
    assert settings.ranking is not None
    return {
        "format": 1,
        "kind": "ranking",
        "data": data.source,
        "purchases": len(log),
        "users": len(log.user_ids),
        "items": len(log.item_ids),
        "split": _iso(split_ms),
        "to": _iso(int(log.times_ms[-1])),
        "filter_seen": settings.ranking.filter_seen,
        "examples": {
            "rows": len(examples),
            "positive": int(examples.labels.sum()),
            "requests": examples.requests,
            "of_feedback": 0 if data.feedback is None else data.feedback.requests,
        },
        "figures": {
            protocol: {name: one.document() for name, one in found.items()}
            for protocol, found in figures.items()
        },
        "training": settings.training.model_dump(mode="json"),
    }


def _iso(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1_000, UTC).isoformat(timespec="milliseconds")


def summary(trained: Trained) -> dict[str, str]:
    """What ``streamscore train`` shows."""
    metrics = trained.metrics
    examples = metrics["examples"]
    shown = {
        "data": f"{metrics['data']}: {metrics['purchases']:,} purchases, "
        f"{metrics['users']:,} users, {metrics['items']:,} items",
        "split": f"{metrics['split']}, measured to {metrics['to']}",
        "examples": f"{examples['rows']:,} rows of {examples['requests']:,} requests, "
        f"{examples['of_feedback']:,} of them of feedback",
    }
    for protocol, found in metrics["figures"].items():
        for name, one in found.items():
            shown[f"{protocol.replace('_', ' ')}: {name}"] = _figures_text(one)
    if metrics["present"]:
        before = metrics["present"]
        shown[f"version {before['version']}, every basket"] = _figures_text(before)
    return shown | {"model": str(trained.version.path)}


def _figures_text(one: dict[str, Any]) -> str:
    if math.isnan(one["hit_rate"]):
        return "no request"
    return (
        f"hit rate@10 {one['hit_rate']:.3f}, NDCG@10 {one['ndcg']:.3f}, "
        f"coverage {one['coverage']:.2f} of {one['requests']:,} requests"
    )
