"""The functions of a job on the schema of ``streams``, and what one gives the next."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from pyflink.common import Row

from tests.support.flink import Subtask
from tests.support.streams import BUCKETS, SCHEMA, labels, micro_batch, raw_batches
from udfs.alerting.operator import EpisodeOperator
from udfs.batches.batch import FeatureBatch, LabelBatch
from udfs.batches.routing import Routing
from udfs.definition.episode import EpisodeSpec
from udfs.definition.overload import OverloadSpec
from udfs.feedback.join import FeedbackOptions
from udfs.feedback.operator import FeedbackStage
from udfs.scoring.base import Scoring
from udfs.stages.first import FirstStage
from udfs.stages.labels import LabelReader
from udfs.stages.next import NextStage

ROUTING = Routing(BUCKETS)


class PassOn:
    """Scores nothing: the last stage's batches as they are, with their bucket."""

    def open(self, runtime_context: Any) -> None:
        pass

    def close(self) -> None:
        pass

    def take(self, bucket: int, batch: FeatureBatch, timers: Any) -> Iterator[Row]:
        yield Row(bucket, batch)

    def on_timer(self, bucket: int, timestamp_ms: int, timers: Any) -> Iterator[Row]:
        raise AssertionError("no timer was set")

    def queue(self, bucket: int) -> float:
        return 0.0


def first_stage(**changes: Any) -> FirstStage:
    return FirstStage(**stage_settings("card", **changes))


def next_stage(scoring: Scoring | None = None, **changes: Any) -> NextStage:
    return NextStage(**stage_settings("terminal", scoring=scoring or PassOn(), **changes))


def stage_settings(key: str, **changes: Any) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "key": key,
        "routing": ROUTING,
        "topic": "events",
        "idle_ms": 3_600_000,
        "cached_entries": 1 << 40,
        "journal_events": 20,
    } | changes


def label_reader() -> LabelReader:
    return LabelReader(SCHEMA, ROUTING, "labels")


def routed(seed: int = 1) -> list[Any]:
    """The next stage's input: events, labels, and batches without rows."""
    batches = [micro_batch(b, r, 100 * n) for n, (b, r) in enumerate(raw_batches(seed))]
    batches.insert(3, micro_batch(BUCKETS[0], [b"", b"nonsense"], 9_000))
    stream = Subtask(first_stage()).run_all(batches)
    learned = Subtask(label_reader()).run_all(labels(seed))
    rng = random.Random(seed)
    for element in learned:
        stream.insert(rng.randrange(len(stream)), element)
    none = next(b for _, b in stream if isinstance(b, LabelBatch)).select([])
    return [*stream[:5], (BUCKETS[1], none), *stream[5:]]


def scorable(seed: int = 1) -> list[Any]:
    """The scorers' input: batches with all their features, some without rows."""
    return Subtask(next_stage()).run_all(routed(seed))


def overload(before: str) -> OverloadSpec:
    """Sheds from the first batch on: the records' Kafka time is years ago."""
    formula = "amount < 50 and kind == 'CP'"
    return OverloadSpec(low_priority=formula, keep=0.3, before=before, sustained=0, warm_up=0)


EPISODES = EpisodeSpec(
    entity="card", open_at=2, of_last=3, close_after=300_000, lateness=60_000, last_scores=4
)


def episodes() -> EpisodeOperator:
    return EpisodeOperator(EPISODES, "events", 3_600)


def feedback_stage() -> FeedbackStage:
    return FeedbackStage(FeedbackOptions(1_000, 200, 5_000), frozenset({"click", "purchase"}))
