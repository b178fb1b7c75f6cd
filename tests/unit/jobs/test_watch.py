"""Counting a job's output: each record once, wherever it ended."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import orjson
import pytest

from jobs.demo.watch import Recent, Tally, WatchError, watch

KINDS = {"p": "predictions", "a": "alerts", "l": "dead_letters", "d": "duplicates"}


def prediction(offset: int, score: float = 0.1, fallback: str | None = None) -> dict[str, Any]:
    return {
        "prediction_id": f"transactions-0-{offset}",
        "event_id": f"t{offset}",
        "key": "c1",
        "score": score,
        "fallback_reason": fallback,
        "event_time_ms": 5_000 + offset,
        "ingest_time_ms": 1_000,
        "scored_time_ms": 1_020,
    }


def alert(offset: int) -> dict[str, Any]:
    reason = {"feature": "amount", "value": 900.0, "contribution": 1.5}
    return {"prediction": prediction(offset, 0.9), "reasons": [reason]}


def refused(offset: int, topic: str = "transactions", code: str = "not_json") -> dict[str, Any]:
    return {"code": code, "source": {"topic": topic, "partition": 0, "offset": offset}}


def tally_of(*records: tuple[str, dict[str, Any]]) -> Tally:
    tally = Tally("transactions", threshold=0.85)
    for kind, document in records:
        tally.add(kind, orjson.dumps(document), 1_025)
    return tally


class TestTally:
    def test_each_kind_is_counted(self) -> None:
        tally = tally_of(
            ("predictions", prediction(0)),
            ("predictions", prediction(1, 0.9)),
            ("alerts", alert(1)),
            ("dead_letters", refused(2)),
            ("duplicates", refused(3)),
            ("shed", refused(4)),
        )
        assert (tally.predictions, tally.shed) == (2, 1)
        assert tally.dead_letters == {"not_json": 1}
        assert tally.duplicates == 1
        assert tally.accounted == 5
        assert [row.event_id for row in tally.alerts] == ["t1"]

    @pytest.mark.parametrize(
        ("kind", "document"),
        [
            ("predictions", prediction(0)),
            ("alerts", alert(0)),
            ("dead_letters", refused(0)),
            ("duplicates", refused(0)),
            ("shed", refused(0)),
        ],
    )
    def test_a_repeat_is_dropped(self, kind: str, document: dict[str, Any]) -> None:
        once, twice = tally_of((kind, document)), tally_of((kind, document), (kind, document))
        assert twice.repeats == 1
        assert (twice.accounted, len(twice.alerts)) == (once.accounted, len(once.alerts))

    def test_one_source_in_two_topics_counts_twice(self) -> None:
        tally = tally_of(("dead_letters", refused(0)), ("duplicates", refused(0)))
        assert (tally.accounted, tally.repeats) == (2, 0)

    def test_latency_is_from_kafka_to_kafka(self) -> None:
        assert tally_of(("predictions", prediction(0))).latencies_ms == [25]

    def test_only_the_models_scores_above_the_threshold_are_due_as_alerts(self) -> None:
        tally = tally_of(
            ("predictions", prediction(0, 0.9)),
            ("predictions", prediction(1, 0.85)),
            ("predictions", prediction(2, 0.99, "timeout")),
        )
        assert tally.alerts_due == 1
        assert tally.fallbacks == {"timeout": 1}
        assert tally.is_fallback == [False, False, True]

    def test_a_refused_label_is_no_events_end(self) -> None:
        tally = tally_of(("dead_letters", refused(0, "fraud-labels")), ("dead_letters", refused(0)))
        assert (tally.refused_labels, tally.accounted, tally.repeats) == (1, 1, 0)


class FakeMessage:
    def __init__(self, topic: str, value: bytes, error: str | None = None) -> None:
        self._topic, self._value, self._error = topic, value, error

    def error(self) -> str | None:
        return self._error

    def topic(self) -> str:
        return self._topic

    def value(self) -> bytes:
        return self._value

    def timestamp(self) -> tuple[int, int]:
        return 2, 1_030


class FakeReader:
    def __init__(self, batches: list[list[FakeMessage]], stop: threading.Event) -> None:
        self._batches, self._stop = batches, stop

    def consume(self, num_messages: int, timeout: float) -> Sequence[FakeMessage]:
        if len(self._batches) == 1:
            self._stop.set()
        return self._batches.pop(0)


class TestWatch:
    def test_every_batch_is_counted_by_topic(self) -> None:
        stop, tally = threading.Event(), Tally("transactions", 0.85)
        first = [FakeMessage("p", orjson.dumps(prediction(0)))]
        last = [FakeMessage("l", orjson.dumps(refused(1)))]
        watch(FakeReader([first, [], last], stop), KINDS, tally, stop)
        assert (tally.predictions, tally.dead_letters.total()) == (1, 1)
        assert tally.latencies_ms == [30]

    def test_an_error_of_kafka_is_told(self) -> None:
        stop = threading.Event()
        reader = FakeReader([[FakeMessage("p", b"", "broker gone")]], stop)
        with pytest.raises(WatchError, match="broker gone"):
            watch(reader, KINDS, Tally("transactions", 0.85), stop)


class TestRecent:
    def test_nothing_yet(self) -> None:
        recent = Recent(tally_of())
        recent.sample(10.0, 0)
        assert recent.rates() == (0.0, 0.0)
        assert recent.latency_ms() == (None, None)

    def test_rates_and_latency_of_the_last_seconds(self) -> None:
        tally = tally_of()
        recent = Recent(tally)
        for second in range(20):
            tally.add("predictions", orjson.dumps(prediction(second)), 1_000 + second)
            recent.sample(float(second), 3 * second)
        assert recent.rates() == (3.0, 1.0)
        p50_ms, p99_ms = recent.latency_ms()
        assert p50_ms == 17  # those of the seconds 15 to 19
        assert p99_ms == pytest.approx(19, abs=0.1)
