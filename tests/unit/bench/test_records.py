"""The demo data as an endless history."""

from __future__ import annotations

import orjson
import pandas as pd
import pytest

from bench import records
from jobs.demo.data import EVENT_COLUMNS, LABEL_DELAY_MS

START_MS = 1_735_689_600_000
FRAME = pd.DataFrame(
    {
        **{name: [None] * 3 for name in EVENT_COLUMNS},
        "transaction_id": ["t1", "t2", "t3"],
        "event_time_ms": [START_MS, START_MS + 1_000, START_MS + 2_000],
        "card_id": ["c1", "c2", "c1"],
        "terminal_id": ["m1", "m1", "m2"],
        "is_fraud": [0, 1, 0],
    }
)


def made(first: int, count: int) -> list[dict]:
    pairs = list(records.repeated(FRAME, first, count, "b"))
    events = [orjson.loads(value) for _, value in pairs]
    assert [key.decode() for key, _ in pairs] == [event["card_id"] for event in events]
    return events


def test_ids_are_new_and_times_go_on():
    events = made(0, 8)
    assert [event["transaction_id"] for event in events] == [f"b-{n}" for n in range(8)]
    times_ms = [event["event_time_ms"] for event in events]
    assert times_ms == sorted(set(times_ms))
    assert times_ms[3] - times_ms[0] == records.REPEAT_AFTER_MS


def test_a_later_start_goes_on_in_the_same_history():
    whole, rest = made(0, 8), made(2, 6)
    assert [e["event_time_ms"] for e in rest] == [e["event_time_ms"] for e in whole[2:]]
    assert [e["card_id"] for e in rest] == [e["card_id"] for e in whole[2:]]


def test_no_event_is_later_than_the_demo_data():
    last = (records.REPETITIONS_MAX - 1) * len(FRAME)
    assert made(last, 3)[0]["event_time_ms"] == START_MS
    with pytest.raises(ValueError, match="times at most"):
        made(last, 4)


def test_labels_are_those_of_the_first_events():
    events = made(0, 2)
    labels = [orjson.loads(value) for _, value in records.labels(FRAME, 2, "b")]
    assert [label["is_fraud"] for label in labels] == [0, 1]
    for label, event in zip(labels, events, strict=True):
        assert label["transaction_id"] == event["transaction_id"]
        assert label["known_at_ms"] == event["event_time_ms"] + LABEL_DELAY_MS
