"""Topics of a job with every kind of feature, in disorder, with late events and with labels."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from jobs.features.columns import Source
from jobs.features.parity import Parity, compare
from jobs.features.replay import silent
from jobs.features.topics import collect
from jobs.settings import Settings, load
from tests.support.fixtures import CONFIG
from tests.support.recorded import ArrayJob, Message, Topics

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
START_MS = 1_700_000_000_000
NOW_MS = START_MS + 400 * DAY_MS
"""Of the broker: long after the events, as in a replay."""

WINDOWS: list[dict[str, Any]] = [
    {
        "prefix": "card",
        "key": "card_id",
        "value": "amount",
        "windows": ["1h", "24h", {"events": 3}, {"session": "30m"}, {"day": "Europe/Paris"}],
        "aggregates": ["count", "mean", "std", "p50", "lag1", "since_previous"],
    },
    {
        "prefix": "online",
        "key": "card_id",
        "value": "amount",
        "where": "type == 'CNP'",
        "windows": [{"hopping": "6h", "every": "1h"}, {"half_life": "2h"}],
        "aggregates": ["count", "mean"],
    },
    {
        "prefix": "terminal",
        "key": "terminal_id",
        "windows": ["24h", {"tumbling": "12h"}],
        "aggregates": ["count"],
    },
    {
        "prefix": "pair",
        "key": ["card_id", "terminal_id"],
        "value": "type",
        "windows": ["7d"],
        "aggregates": ["distinct", "own_share"],
    },
    {
        "prefix": "fraud_rate",
        "key": "terminal_id",
        "stream": "labels",
        "value": "is_fraud",
        "windows": ["24h", "7d"],
        "delay": "1d",
        "aggregates": ["count", "mean"],
    },
]
FORMULAS = [{"name": "burst", "formula": "card_count_1h / card_count_24h"}]


def case_settings(others: Mapping[str, Any] | None = None) -> Settings:
    changes = {
        "features.windows": WINDOWS,
        "features.formulas": FORMULAS,
        "event.dedupe_within": "1h",
        "model.path": "build/no-models",
        **(others or {}),
    }
    return load(CONFIG, changes)


@dataclass
class Case:
    """A job that has scored its topics."""

    settings: Settings
    topics: Topics
    job: ArrayJob

    def source(self) -> Source:
        return collect(self.settings, self.topics)

    def parity(self, limit: int | None = None) -> Parity:
        return compare(self.settings, self.source(), limit, silent)

    def predictions(self) -> list[dict[str, Any]]:
        records = self.topics.records[self.settings.topics.predictions]
        return [orjson.loads(m.raw) for m in records]

    def write_prediction(self, document: dict[str, Any]) -> None:
        self.topics.append(self.settings.topics.predictions, 0, orjson.dumps(document))

    def drop(self, kind: str, place: tuple[int, int]) -> Message:
        """Take one record out of a topic."""
        records = self.topics.records[getattr(self.settings.topics, kind)]
        (found,) = [m for m in records if m.place == place]
        records.remove(found)
        return found


def event(number: int, time_ms: int, chance: random.Random) -> dict[str, Any]:
    return {
        "transaction_id": f"t{number:05d}",
        "event_time_ms": time_ms,
        "card_id": f"c{chance.randrange(8)}",
        "terminal_id": f"m{chance.randrange(6)}",
        "amount": round(chance.uniform(1, 500), 2),
        "type": chance.choice(["CNP", "CP"]),
    }


def label(document: dict[str, Any], value: int) -> bytes:
    names = ("transaction_id", "event_time_ms", "terminal_id")
    return orjson.dumps({n: document[n] for n in names} | {"is_fraud": value})


def make_case(count: int = 500, *, with_labels: bool = True) -> Case:
    """``count`` events of ten days: a tenth out of order, some late, some twice, some spoilt."""
    chance, settings, topics = random.Random(5), case_settings(), Topics()
    job = ArrayJob(settings, topics)
    times = sorted(START_MS + chance.randrange(10 * DAY_MS) for _ in range(count))
    documents = []
    for n, time_ms in enumerate(times):
        moved = {0: 20 * 60_000, 1: 3 * HOUR_MS}.get(n % 20, 0)  # out of order; late
        documents.append(event(n, time_ms - moved, chance))
    if with_labels:
        for document in documents:
            raw = label(document, chance.randrange(2))
            topic = settings.topics.labels or ""
            job.learn(topics.append(topic, chance.randrange(2), raw, NOW_MS))
    records = [orjson.dumps(d) for d in documents]
    for n in (50, 150):
        records.insert(n + 3, records[n])  # a repeat
        records.insert(n, b"no JSON")
    sent = [
        topics.append(settings.topics.events, chance.randrange(3), raw, NOW_MS) for raw in records
    ]
    for start in range(0, len(sent), 16):
        job.take(sent[start : start + 16], NOW_MS + 1_000 + start)
    return Case(settings, topics, job)
