"""What the topics say of a job that was changed: gaps, losses, features and scores."""

from __future__ import annotations

import time
from array import array
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from bench.cluster_lab import accounts
from bench.common import say
from bench.lab import Place
from jobs import settings as job_settings
from jobs.settings import Settings
from model_server.backends import load_table
from udfs.preparation.preparation import Preparation

_BEFORE_MS = 5_000
_LATE_MS = 1_000.0
_CHUNK = 100_000
_OFFSET_BITS = 48
"""Of a place in a topic; the partition stands above them."""
_ROUNDING = 1e-6
"""Scores are float32 in the model and decimal in the record."""


@dataclass(frozen=True)
class Timeline:
    """How a change looked from outside.

    Attributes:
        gap_s: The longest time without a prediction.
        normal_s: From the gap's begin until the last prediction that was late.
    """

    gap_s: float
    normal_s: float


@dataclass(frozen=True)
class Seen:
    """What the predictions topic says.

    Attributes:
        appended_ms: Of each prediction, in order, int64 (n,).
        latency_ms: From the event's creation, int64 (n,).
        wide: Events with a prediction that has all features of the settings.
        fallbacks: Predictions that no model made.
        scored: By model version: scores, and the features that stand beside them.
    """

    appended_ms: npt.NDArray[np.int64]
    latency_ms: npt.NDArray[np.int64]
    wide: int = 0
    fallbacks: int = 0
    scored: dict[int, tuple[array[float], array[float]]] = field(default_factory=dict)

    def between(self, from_ms: int, to_ms: int) -> Timeline:
        """What was seen of a change that began at ``from_ms``; the next one began at ``to_ms``."""
        first, last = np.searchsorted(self.appended_ms, (from_ms, to_ms)).tolist()
        times = self.appended_ms[max(0, first - 1) : last]
        steps = np.diff(times)
        at = int(np.argmax(steps))
        begin = int(np.searchsorted(self.appended_ms, from_ms - _BEFORE_MS))
        usual = np.percentile(self.latency_ms[begin:first], 99) if first > begin else 0.0
        late = self.latency_ms[max(0, first - 1) : last] > max(_LATE_MS, 2 * float(usual))
        until = times[late].max(initial=times[at])
        return Timeline(float(steps[at]) / 1_000, float(until - times[at]) / 1_000)


def latency_s(at: Place, topic: str) -> float:
    """How old the oldest of the newest predictions is: since its event was created, until now.

    Infinite if a partition has none, or does not answer.
    """
    newest = at.topics.newest(topic)
    if len(newest) < len(at.topics.ends(topic)):
        return float("inf")
    created: list[int] = [
        orjson.loads(message.value() or b"{}")["ingest_time_ms"] for message in newest
    ]
    return time.time() - min(created) / 1_000


def read(at: Place, settings: Settings) -> Seen:
    """Read the predictions topic.

    Args:
        at: The broker.
        settings: The job's that ran last.
    """
    appended, created = array("q"), array("q")
    scored: dict[int, tuple[array[float], array[float]]] = defaultdict(
        lambda: (array("d"), array("d"))
    )
    places, fallbacks, most = array("q"), 0, len(settings.schema_.columns)
    for message in at.topics.read(settings.topics.predictions):
        document = orjson.loads(message.value() or b"{}")
        appended.append(message.timestamp()[1])
        created.append(document["ingest_time_ms"])
        if len(document["features"]) == most:
            source = document["source"]
            places.append(source["partition"] << _OFFSET_BITS | source["offset"])
        if (version := document["model"]["version"]) is None:
            fallbacks += 1
            continue
        scores, features = scored[version]
        scores.append(document["score"])
        features.extend(np.nan if v is None else v for v in document["features"].values())
    # A roll-back predicts again what the job before it had: those events count once, as the
    # comparison takes the newest prediction of each.
    wide = len(np.unique(np.array(places, np.int64)))
    order = np.argsort(np.array(appended), kind="stable")
    times = np.array(appended, np.int64)[order]
    return Seen(times, times - np.array(created, np.int64)[order], wide, fallbacks, dict(scored))


def judge(
    seen: Seen, settings: Settings, first_conf: Path, models: dict[int, Path]
) -> dict[str, tuple[float, str]]:
    """Recompute all features and scores; counts with their unit, by name.

    Args:
        seen: The predictions.
        settings: The job's that ran last.
        first_conf: The settings file that it began with.
        models: Each version's folder.
    """
    wrong_scores = sum(_wrong(models[version], *kept) for version, kept in seen.scored.items())
    seen.scored.clear()  # the recomputation wants the memory
    first = job_settings.load(first_conf, settings_overrides(settings))
    found = accounts(first)
    differences = [*found.first]
    wrong = found.wrong
    if first.schema_.columns != settings.schema_.columns:
        later = accounts(settings, seen.wide)
        wrong += later.wrong
        differences += later.first
    for difference in differences:
        say(f"wrong: {difference}")
    return {
        "events": (found.events, "events"),
        "lost": (found.lost, "events"),
        "wrong": (wrong, "values"),
        "wrong_scores": (wrong_scores, "predictions"),
        "repeats": (found.repeats, "predictions"),
        "fallbacks": (seen.fallbacks, "predictions"),
    }


def settings_overrides(settings: Settings) -> dict[str, Any]:
    """What the job of another settings file needs to read the same topics."""
    topics = settings.topics.model_dump(mode="json")
    return {
        "kafka.bootstrap_servers": settings.kafka.bootstrap_servers,
        "batch.buckets": settings.batch.buckets,
        **{f"topics.{name}": value for name, value in topics.items()},
    }


def _wrong(version: Path, scores: array[float], features: array[float]) -> int:
    """Scores that the model does not give for the features that stand beside them."""
    model, preparation = load_table(version), Preparation.load(version)
    made = np.array(scores)
    rows = np.array(features).reshape(len(made), -1)
    count = 0
    for n in range(0, len(made), _CHUNK):
        wanted = np.asarray(model.predict(preparation.transform(rows[n : n + _CHUNK])), np.float64)
        count += int(np.count_nonzero(np.abs(wanted - made[n : n + _CHUNK]) > _ROUNDING))
    model.close()
    return count
