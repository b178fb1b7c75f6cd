"""What leaves a ranking job: replies, impressions with features, dead letters, duplicates."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from pyflink.common import Row

from udfs.batches.batch import FeatureBatch
from udfs.batches.events import FloatArray
from udfs.batches.records import Verdict, source_of
from udfs.preparation.preparation import Preparation
from udfs.ranking.arrays import largest
from udfs.ranking.candidates import Source, reason
from udfs.scoring.pairs import pairs

__all__ = ["COLUMNS", "RankingOutput", "expired_reply"]

COLUMNS = ("predictions", "impressions", "dead_letters", "duplicates")
"""The records of a batch, one sink each; the first are the replies."""

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class RankingOutput:
    """Writes scored candidates. A batch holds whole requests, one after the other.

    The first row of a request has what it asked for as its ``raw``, the others nothing; ``ids`` are
    the items; ``values`` has ``sources`` (bits) and ``popularity`` of each.

    Attributes:
        topic: Of the events, named in ``source``.
        preparation: From features to the model's columns, as in training.
    """

    topic: str
    preparation: Preparation

    def warm_up(self) -> None:
        """Nothing is compiled here."""

    def fallback(
        self, batch: FeatureBatch, model_name: str, reason: str, arm: str | None = None
    ) -> Verdict:
        """See ``Outputs``; the scores are not looked at."""
        return Verdict(np.zeros(len(batch)), model_name, None, reason, arm)

    def rows_to_explain(self, batch: FeatureBatch, verdict: Verdict) -> list[int]:
        """A candidate has its reason already."""
        return []

    def emit(
        self, batch: FeatureBatch, verdict: Verdict | None, contributions: FloatArray | None
    ) -> Iterator[Row]:
        """See ``Outputs``."""
        yield self.rows(batch, verdict, contributions)

    def rows(
        self, batch: FeatureBatch, verdict: Verdict | None, contributions: FloatArray | None
    ) -> Row:
        """Replies keyed by gateway, impressions keyed by user, and what was refused."""
        replies: list[tuple[str, bytes]] = []
        impressions: list[tuple[str, bytes]] = []
        if verdict is not None:
            for start, stop in _requests(batch):
                document, kept = self._ranked(batch, verdict, start, stop)
                gateway = document.pop("gateway")
                impressions.append((document["user"], self._impression(document, batch, kept)))
                replies.append((gateway, orjson.dumps(document)))
        return Row(
            pairs(replies), pairs(impressions), pairs(batch.dead_letters), pairs(batch.duplicates)
        )

    def shadow_rows(self, batch: FeatureBatch, verdict: Verdict) -> Row:
        """A shadow ranks for nobody; its calls are in the server's metrics."""
        return Row([], [], [], [])

    def _ranked(
        self, batch: FeatureBatch, verdict: Verdict, start: int, stop: int
    ) -> tuple[dict[str, Any], list[int]]:
        """A request's reply, and the rows of its items."""
        asked = orjson.loads(batch.raw[start])
        fell_back = verdict.fallback_reason is not None
        by = batch.values["popularity"] if fell_back else verdict.scores
        kept = (start + largest(by[start:stop], asked.pop("items"))).tolist()
        partition, offset, kafka_time_ms = batch.positions[start].tolist()
        model: dict[str, Any] = {"name": verdict.model_name, "version": verdict.model_version}
        if verdict.arm is not None:
            model["arm"] = verdict.arm
        document = {
            "schema_version": SCHEMA_VERSION,
            **asked,
            "event_time_ms": int(batch.times[start]),
            "ingest_time_ms": kafka_time_ms,
            "ranked_time_ms": time.time_ns() // 1_000_000,
            "model": model,
            "fallback_reason": verdict.fallback_reason,
            "candidates": stop - start,
            "items": [
                {
                    "item": batch.ids[row],
                    "position": n,
                    "score": None if fell_back else float(verdict.scores[row]),
                    "reason": _reason(int(batch.values["sources"][row]), fell_back),
                }
                for n, row in enumerate(kept)
            ],
            "source": source_of(self.topic, partition, offset),
        }
        return document, kept

    def _impression(self, document: dict[str, Any], batch: FeatureBatch, kept: list[int]) -> bytes:
        """The reply again, with the features that the model was given; NaN is null."""
        features = batch.features[kept].astype(np.float32)  # as the model gets them
        items = [
            {**one, "features": row} for one, row in zip(document["items"], features, strict=True)
        ]
        return orjson.dumps(
            {**document, "kind": "impression", "columns": self.preparation.names, "items": items},
            option=orjson.OPT_SERIALIZE_NUMPY,
        )


def expired_reply(
    gateway: str, batch: FeatureBatch, row: int, topic: str, model_name: str, item_version: int
) -> tuple[str, bytes]:
    """What a request gets whose caller waits no longer: no items, so that it is accounted for."""
    partition, offset, kafka_time_ms = batch.positions[row].tolist()
    document = {
        "schema_version": SCHEMA_VERSION,
        "request_id": batch.ids[row],
        "user": batch.keys[row],
        "item_version": item_version,
        "event_time_ms": int(batch.times[row]),
        "ingest_time_ms": kafka_time_ms,
        "ranked_time_ms": time.time_ns() // 1_000_000,
        "model": {"name": model_name, "version": None},
        "fallback_reason": "expired",
        "candidates": 0,
        "items": [],
        "source": source_of(topic, partition, offset),
    }
    return gateway, orjson.dumps(document)


def _requests(batch: FeatureBatch) -> Iterator[tuple[int, int]]:
    starts = [row for row, raw in enumerate(batch.raw) if raw]
    yield from zip(starts, [*starts[1:], len(batch)], strict=True)


def _reason(sources: int, fell_back: bool) -> str:
    return reason(Source.POPULAR) if fell_back else reason(sources)
