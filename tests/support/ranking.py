"""A ranking model of a small log, and the settings of a job that serves it."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import numpy as np
import xgboost

from jobs.environment import ROOT
from jobs.kafka_topics import create_topics, partitions_of
from jobs.settings import Settings, load
from tests.support.models import write_features
from tests.support.purchases import middle_ms, replay_before, small_index, small_log
from udfs.ranking.candidates import CandidateOptions
from udfs.ranking.counters import ItemCounters
from udfs.ranking.features import FEATURES
from udfs.ranking.replay import Replay

CONFIG = ROOT / "conf" / "feed.yaml"
OPTIONS = CandidateOptions(count=60, filter_seen=False)
NAMES = (*FEATURES, "user_clicks_count_session30m")
"""The model's features: the candidates', and one of the request."""


def write_version(models: Path, version: int = 1) -> xgboost.Booster:
    """Write a version of model ``feed``; returns what it scores with."""
    log, index = small_log(), small_index()
    time_ms = middle_ms(log)
    replay = replay_before(log, index, time_ms, OPTIONS)
    matrices, labels = [], []
    for basket, request in replay.requests(log.since(time_ms), range(*_some_baskets())):
        matrices.append(request.features)
        labels.append(request.labels(replay.rows[basket.items]))
    matrix = np.concatenate(matrices)
    matrix = np.concatenate([matrix, np.zeros((len(matrix), 1), np.float32)], axis=1)
    data = xgboost.DMatrix(matrix, np.concatenate(labels), feature_names=list(NAMES))
    booster = xgboost.train({"objective": "binary:logistic", "nthread": 1}, data, 20)
    folder = models / "feed" / str(version)
    draft = models / "feed" / f".{version}"
    draft.mkdir(parents=True)
    booster.save_model(draft / "model.ubj")
    write_features(draft, NAMES)
    index.save(draft)
    draft.rename(folder)
    return booster


def _some_baskets() -> tuple[int, int]:
    log = small_log()
    first = int(log.baskets[log.place_of(middle_ms(log))])
    return first, first + 60


def offline(user: str) -> Replay:
    """The state before the version's time, for users of the log by ``offline_number``."""
    del user
    log, index = small_log(), small_index()
    replay = replay_before(log, index, middle_ms(log), OPTIONS)
    replay.counters = ItemCounters.of_index(index)
    return replay


def feed_overrides(bootstrap: str, models: Path, folder: Path) -> dict[str, Any]:
    """What keeps a job apart from the others of the session; plain JSON types."""
    name = f"feed-{uuid.uuid4().hex[:8]}"
    topics = ("events", "predictions", "impressions", "examples", "popularity")
    topics += ("dead_letters", "duplicates", "alerts")
    return {
        **{f"topics.{topic}": f"{name}-{topic}" for topic in topics},
        "name": name,
        "kafka.bootstrap_servers": bootstrap,
        "kafka.group_id": name,
        "model.path": str(models),
        "ranking.candidates": OPTIONS.count,
        "ranking.publish": "200ms",
        "ranking.reload": "200ms",
        "flink.checkpoint_dir": str(folder / f"{name}-checkpoints"),
        "flink.checkpoint_interval": "500ms",
        "flink.restart_attempts": 0,
    }


def feed_settings(overrides: dict[str, Any]) -> Settings:
    """conf/feed.yaml with its topics made."""
    settings = load(CONFIG, overrides)
    bootstrap = settings.kafka.bootstrap_servers
    create_topics(bootstrap, partitions_of(settings.topics))
    assert settings.topics.popularity is not None
    compacted = {settings.topics.popularity: settings.topics.partitions}
    create_topics(bootstrap, compacted, {"cleanup.policy": "compact"})
    return settings
