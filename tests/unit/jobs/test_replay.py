"""The replay: what is sent, in which order, when, and exactly how many of each kind."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
import pandas as pd
import pytest

from jobs import settings
from jobs.demo.data import DAY_MS, LABEL_DELAY_MS
from jobs.demo.replay import Replay, ReplayError, due_s
from jobs.demo.script import LABEL_LEAD_MS, MAX_DISTANCE, Script, script
from jobs.environment import ROOT
from udfs.batches.events import Decoder

START_MS = 1_735_689_600_000
TOPICS = {"events": "transactions", "labels": "fraud-labels"}


def history(rows: int = 400, days: float = 20.0) -> pd.DataFrame:
    times = START_MS + np.linspace(0, days * DAY_MS, rows).astype(np.int64)
    return pd.DataFrame(
        {
            "transaction_id": [f"t{n:06d}" for n in range(rows)],
            "event_time_ms": times,
            "card_id": [f"c{n % 7}" for n in range(rows)],
            "terminal_id": [f"m{n % 5}" for n in range(rows)],
            "amount": 10.0,
            "type": ["CNP" if n % 2 else "CP" for n in range(rows)],
            **dict.fromkeys(("billing_lat", "billing_lon", "shipping_lat", "shipping_lon"), 1.0),
            **dict.fromkeys(("terminal_lat", "terminal_lon"), 2.0),
            "is_fraud": [int(n % 10 == 0) for n in range(rows)],
        }
    )


def content(bad: int = 0, duplicates: int = 0, frame: pd.DataFrame | None = None) -> Script:
    return script(history() if frame is None else frame, bad, duplicates)


def events_of(made: Script) -> list[bytes]:
    return [item.value for item in made.items if item.role == "events"]


def labels_of(made: Script) -> list[dict[str, Any]]:
    return [orjson.loads(item.value) for item in made.items if item.role == "labels"]


def ids(values: list[bytes]) -> list[str]:
    return [orjson.loads(value)["transaction_id"] for value in values]


class TestScript:
    def test_transactions_keep_their_order(self) -> None:
        assert ids(events_of(content())) == history()["transaction_id"].tolist()

    def test_everything_is_counted(self) -> None:
        made = content(bad=30, duplicates=20)
        assert made.events == 400 + 30 + 20
        assert made.bad.total() == 30
        assert made.duplicates == 20
        assert made.labels == len(made.items) - made.events > 0

    def test_duplicates_are_exact_and_soon_after_their_original(self) -> None:
        values = events_of(content(duplicates=50))
        places: dict[bytes, list[int]] = {}
        for place, value in enumerate(values):
            places.setdefault(value, []).append(place)
        repeated = [found for found in places.values() if len(found) > 1]
        assert len(repeated) == 50
        # Other duplicates may stand between the two.
        assert all(first < second <= first + 2 * MAX_DISTANCE for first, second in repeated)

    def test_no_more_duplicates_than_transactions(self) -> None:
        assert content(duplicates=500).duplicates == 400

    def test_every_bad_record_is_refused_and_no_other(self) -> None:
        made = content(bad=100, duplicates=20)
        schema = settings.load(ROOT / "conf" / "fraud.yaml").schema_
        raw = events_of(made)
        positions = np.array([(0, n, START_MS + 400 * DAY_MS) for n in range(len(raw))])
        decoded = Decoder.for_events(schema.event, schema.stages).decode(raw, positions)
        codes = Counter(reject.code for reject in decoded.rejects)
        conflicts = made.bad["other content"]
        assert codes.total() == 100 - conflicts
        assert {"not_json", "empty", "not_an_object", "not_utf8", "missing_field"} <= codes.keys()
        assert {"wrong_type", "out_of_range", "bad_time"} <= codes.keys()

    def test_another_content_follows_its_original_at_once(self) -> None:
        made = content(bad=200)
        values = events_of(made)
        conflicts = [n for n, value in enumerate(values) if b'"amount":0.01,' in value]
        assert len(conflicts) == made.bad["other content"] == 20
        for place in conflicts:
            conflicting = ids([values[place]])[0].encode()
            assert any(conflicting in value for value in values[max(0, place - 100) : place])

    def test_the_same_seed_makes_the_same_script(self) -> None:
        assert content(30, 20).items == content(30, 20).items
        assert script(history(), 30, 20, seed=2).items != content(30, 20).items

    def test_an_empty_history(self) -> None:
        made = content(bad=5, duplicates=5, frame=history().head(0))
        assert (made.events, made.labels, made.duplicates) == (0, 0, 0)


class TestLabels:
    def test_labels_that_would_come_after_the_end_are_not_sent(self) -> None:
        sent = {label["transaction_id"] for label in labels_of(content())}
        frame = history()
        due = frame["event_time_ms"] + LABEL_DELAY_MS - LABEL_LEAD_MS
        assert sent == set(frame["transaction_id"][due <= frame["event_time_ms"].iloc[-1]])

    def test_a_label_is_sent_a_day_before_it_is_known_and_not_earlier(self) -> None:
        clock_ms = 0
        for item in content().items:
            document = orjson.loads(item.value)
            if item.role == "events":
                clock_ms = document["event_time_ms"]
            else:
                early_ms = document["known_at_ms"] - clock_ms
                # The clock stands at the transaction before.
                assert LABEL_LEAD_MS < early_ms <= LABEL_LEAD_MS + 20 * DAY_MS / 399 + 1

    def test_every_label_is_sent_before_the_first_event_whose_window_needs_it(self) -> None:
        sent: set[str] = set()
        times = dict(zip(history()["transaction_id"], history()["event_time_ms"], strict=True))
        for item in content().items:
            document = orjson.loads(item.value)
            if item.role == "labels":
                sent.add(document["transaction_id"])
            else:
                end_ms = document["event_time_ms"] - LABEL_DELAY_MS
                assert {name for name, at_ms in times.items() if at_ms <= end_ms} <= sent


class TestPace:
    def test_it_takes_as_long_as_asked(self) -> None:
        due = due_s(np.linspace(0, 1, 1_001), duration_s=20, ramp_s=4)
        assert due[0] == 0
        assert due[-1] == pytest.approx(20)
        assert (np.diff(due) > 0).all()

    def test_the_rate_rises_and_then_stays(self) -> None:
        due = due_s(np.linspace(0, 1, 18_001), duration_s=20, ramp_s=4)
        per_s, _ = np.histogram(due, bins=20, range=(0, 20))
        assert per_s[:4].tolist() == pytest.approx([125, 375, 625, 875], abs=2)
        assert per_s[4:].tolist() == pytest.approx([1_000] * 16, abs=2)

    def test_no_ramp(self) -> None:
        assert due_s(np.array([0, 0.5, 1]), duration_s=10, ramp_s=0).tolist() == [0, 5, 10]


class FakeKafka:
    """Takes records with the time of a clock that only sleeping moves."""

    def __init__(self, fail_at: int = -1, full_at: int = -1) -> None:
        self.now_s = 100.0
        self.sent: list[tuple[float, str, bytes, bytes]] = []
        self.fail_at = fail_at
        self.full_at = full_at
        self.left = 0

    def clock(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def produce(
        self, topic: str, value: bytes, key: bytes, *, on_delivery: Callable[[Any, Any], None]
    ) -> None:
        if len(self.sent) == self.full_at:
            self.full_at = -1
            raise BufferError
        on_delivery("refused" if len(self.sent) == self.fail_at else None, None)
        self.sent.append((self.now_s - 100.0, topic, key, value))

    def poll(self, timeout: float) -> int:
        self.now_s += timeout
        return 0

    def flush(self, timeout: float) -> int:
        return self.left


def replay(kafka: FakeKafka, made: Script, duration_s: float = 10.0) -> Replay:
    played = Replay(made, TOPICS, duration_s, 2.0, kafka.clock, kafka.sleep)
    played.run(kafka, threading.Event())
    return played


class TestReplay:
    def test_everything_is_sent_once_in_order_to_its_topic(self) -> None:
        kafka, made = FakeKafka(), content(bad=30, duplicates=20)
        played = replay(kafka, made)
        expected = [(TOPICS[item.role], item.key, item.value) for item in made.items]
        assert [entry[1:] for entry in kafka.sent] == expected
        assert played.events_sent == made.events
        assert played.is_done
        assert played.progress == 1

    def test_each_is_sent_when_it_is_due_and_never_earlier(self) -> None:
        kafka, made = FakeKafka(), content()
        replay(kafka, made)
        due = due_s(made.places, 10.0, 2.0)
        late_s = np.array([entry[0] for entry in kafka.sent]) - due
        assert late_s.min() >= -1e-9
        assert late_s.max() < 0.01

    def test_a_full_queue_loses_nothing(self) -> None:
        kafka, made = FakeKafka(full_at=50), content()
        replay(kafka, made)
        assert len(kafka.sent) == len(made.items)

    def test_a_refused_record_ends_it(self) -> None:
        with pytest.raises(ReplayError, match="refused"):
            replay(FakeKafka(fail_at=5), content())

    def test_records_that_stay_in_the_queue_are_told(self) -> None:
        kafka = FakeKafka()
        kafka.left = 3
        with pytest.raises(ReplayError, match="last 3 records"):
            replay(kafka, content())

    def test_it_can_be_stopped(self) -> None:
        kafka, stop = FakeKafka(), threading.Event()
        stop.set()
        played = Replay(content(), TOPICS, 10.0, 2.0, kafka.clock, kafka.sleep)
        played.run(kafka, stop)
        assert not kafka.sent
        assert not played.is_done
