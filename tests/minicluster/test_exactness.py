"""The whole job over the demo's transactions, every output compared with an independent oracle.

Kafka, the JVM's micro-batches, both keyed stages, the model and the sinks are the real ones. The
input comes in disorder over four partitions, with repeats, contradictions and spoilt records.
"""

from __future__ import annotations

import json
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pandas as pd
import pytest

from jobs.settings import Settings
from tests.support import cards, oracle
from tests.support.cards import DAY_MS, MINUTE_MS, Mixture
from tests.support.checks import (
    Model,
    accepted,
    check_accounts,
    check_alerts,
    check_features,
    check_schemas,
    check_scores,
    own_order,
)
from tests.support.fixtures import MakeSettings
from tests.support.kafka import Out, Traffic
from tests.support.running import learn, restarts, running
from tests.support.servers import ModelServerProcess

pytestmark = [pytest.mark.minicluster, pytest.mark.kafka, pytest.mark.timeout(600)]

PARTITIONS = 4
THRESHOLD = 0.5
EXACT = {
    "alerts.threshold": THRESHOLD,
    "model.deadline": "10s",  # a busy machine must not turn a score into a fallback here
    "topics.partitions": PARTITIONS,
}


class Case:
    """A run of the job over a mixture, and its outputs."""

    def __init__(self, traffic: Traffic, mixture: Mixture, labels: pd.DataFrame) -> None:
        self.traffic = traffic
        self.mixture = mixture
        self.labels = cards.documents(cards.label_records(labels, PARTITIONS))
        self.predictions: list[Out] = traffic.outputs["predictions"]

    def check(self, model: Model) -> None:
        check_schemas(self.traffic.outputs)
        check_accounts(self.traffic)
        self.check_places()
        self.check_refused()
        check_scores(model, self.predictions, version=1)
        check_alerts(self.traffic, model, THRESHOLD)
        assert len(self.traffic.outputs["alerts"]) > 20

    def check_places(self) -> None:
        """Predictions are keyed by card and carry their event's id, time and place."""
        topic = self.traffic.settings.topics.events
        for out in self.predictions:
            record, document = self.traffic.sent[out.place], out.document
            event = json.loads(record.value or b"")
            assert out.key == record.key == event["card_id"].encode()
            assert document["key"] == event["card_id"]
            assert document["event_id"] == event["transaction_id"]
            assert document["event_time_ms"] == event["event_time_ms"]
            assert document["prediction_id"] == f"{topic}-{out.place[0]}-{out.place[1]}"

    def check_refused(self) -> None:
        """Spoilt records and contradictions are dead letters, repeats are duplicates."""
        first = {out.document["event_id"]: out.place for out in self.predictions}
        assert len(first) == len(self.predictions)
        letters = {out.place: out for out in self.dead_letters}
        repeats = {out.place: out for out in self.traffic.outputs["duplicates"]}
        found: Counter[str] = Counter()
        for place, record in self.traffic.sent.items():
            kind = self._kind(place, first)
            if kind in ("scored", "repeat"):
                assert place not in letters
            else:
                assert letters[place].document["code"] == kind
                assert letters[place].raw == record.value
            if kind == "repeat":
                event_id = json.loads(record.value or b"")["transaction_id"]
                assert repeats[place].document["event_id"] == event_id
                assert repeats[place].key == record.key
            found[kind] += 1
        assert found["repeat"] == self.mixture.repeats
        assert found["id_conflict"] == self.mixture.conflicts
        assert set(cards.SPOIL) < found.keys()

    def _kind(self, place: tuple[int, int], first: dict[str, tuple[int, int]]) -> str:
        record = self.traffic.sent[place]
        if (spoilt := self.mixture.spoilt.get((record.key, record.value))) is not None:
            return spoilt
        chosen = first[json.loads(record.value or b"")["transaction_id"]]
        if chosen == place:
            return "scored"
        return "repeat" if self.traffic.sent[chosen].value == record.value else "id_conflict"

    @property
    def dead_letters(self) -> list[Out]:
        topic = self.traffic.settings.topics.events
        letters = self.traffic.outputs["dead_letters"]
        return [out for out in letters if out.document["source"]["topic"] == topic]

    def check_features(self) -> pd.DataFrame:
        """Returns the recomputation, in the order of the predictions."""
        order = own_order(self.predictions)
        check_features(self.traffic.sent, self.predictions, order, self.labels)
        return oracle.recompute(self._records(), order, self.labels)

    def check_the_check(self, expected: pd.DataFrame) -> None:
        """The comparison sees a value off by a millionth, and one event or label less or later."""
        found = [dict(out.document["features"]) for out in self.predictions]
        row = int(expected["card_count_24h"].idxmax())
        changed = list(found)
        changed[row] = found[row] | {"card_sum_24h": found[row]["card_sum_24h"] + 1e-6}
        wrong = oracle.differences(expected, changed)
        assert [(at, name) for at, name, *_ in wrong] == [(row, "card_sum_24h")]
        order = own_order(self.predictions)
        others = [n for n in range(len(found)) if n != row]
        fewer = self._records()
        del fewer[row]
        fewer_order = order.drop(index=row).reset_index(drop=True)
        without = oracle.recompute(fewer, fewer_order, self.labels)
        assert oracle.differences(without, [found[n] for n in others])
        later = order.copy()
        later.loc[row, ["card_id", "terminal_id"]] = len(self.traffic.sent)
        moved = oracle.recompute(self._records(), later, self.labels)
        assert oracle.differences(moved, found)
        positive = next(n for n, label in enumerate(self.labels) if label["is_fraud"])
        unknown = self.labels[:positive] + self.labels[positive + 1 :]
        assert oracle.differences(oracle.recompute(self._records(), order, unknown), found)

    def _records(self) -> list[bytes]:
        return accepted(self.traffic.sent, self.predictions)

    def lateness_ms(self, key: str) -> pd.Series[float]:
        """How much older than its key's newest event each one was when it came."""
        events = pd.DataFrame([json.loads(raw) for raw in self._records()])
        events["place"] = own_order(self.predictions)[key]
        events = events.sort_values("place")
        return events.groupby(key)["event_time_ms"].cummax() - events["event_time_ms"]


def run(
    settings: Settings, mixture: Mixture, labels: pd.DataFrame, behind_ms: int, stack: ExitStack
) -> Case:
    """Labels first, then the events; returns when the job has ended."""
    traffic = stack.enter_context(Traffic(settings))
    wrong = cards.corrections(labels, seed=3, count=200)
    early = pd.concat([wrong, labels, labels.head(50)])  # corrected, and some repeated
    with running(settings) as job:
        learn(job, traffic, cards.label_records(early, PARTITIONS))
        traffic.pump(mixture.records, mixture.needed(behind_ms))
        traffic.wait_accounted()
        assert restarts(job) == 0
    traffic.read_to_end()
    return Case(traffic, mixture, labels)


@pytest.mark.parametrize(
    "embedded", [False, pytest.param(True, marks=pytest.mark.long)], ids=["served", "embedded"]
)
def test_every_output_equals_the_oracle(
    embedded: bool, make_settings: MakeSettings, demo: pd.DataFrame, models: Path, tmp_path: Path
) -> None:
    frame = demo[demo["terminal_id"] < "m00280"]
    assert len(frame) >= 20_000
    lateness_h = 12
    overrides = {
        "model.embedded": embedded,
        "batch.buckets": 1,
        "event.time.allowed_lateness": f"{lateness_h}h",
    }
    mixture = Mixture(frame, seed=1, partitions=PARTITIONS, disorder_ms=20 * MINUTE_MS, each=300)
    with ExitStack() as stack:
        if not embedded:
            server = stack.enter_context(ModelServerProcess(models, tmp_path / "server.log"))
            overrides["model.server"] = f"127.0.0.1:{server.port}"
        settings = make_settings(EXACT | overrides)
        case = run(settings, mixture, frame, (lateness_h - 1) * 60 * MINUTE_MS, stack)
        expected = case.check_features()
        case.check(Model(models / "fraud" / "1"))
    case.check_the_check(expected)
    # The input was what it should be: late within the limit, with long windows and labels in them.
    for key in ("card_id", "terminal_id"):
        late_ms = case.lateness_ms(key)
        assert late_ms.max() < lateness_h * 60 * MINUTE_MS
        assert (late_ms > 0).sum() > 100
    assert (expected["card_count_7d"] > expected["card_count_24h"]).mean() > 0.5
    assert expected["terminal_fraud_rate_mean_7d"].notna().mean() > 0.8
    assert (expected["terminal_fraud_rate_mean_30d"] > 0).mean() > 0.02


def test_two_subtasks_with_a_bucket_each(
    make_settings: MakeSettings, demo: pd.DataFrame, models: Path
) -> None:
    """The settings' own lateness of one hour; the order of arrival is one per bucket."""
    start_ms = int(demo["event_time_ms"].min()) + 40 * DAY_MS
    times = demo["event_time_ms"]
    frame = demo[(times >= start_ms) & (times < start_ms + 2 * DAY_MS)]
    labels = demo[(times >= start_ms - 20 * DAY_MS) & (times < start_ms - 5 * DAY_MS)]
    mixture = Mixture(frame, seed=2, partitions=PARTITIONS, disorder_ms=15 * MINUTE_MS, each=100)
    overrides = {"model.embedded": True, "batch.buckets": 2, "flink.parallelism": 2}
    with ExitStack() as stack:
        settings = make_settings(EXACT | overrides)
        case = run(settings, mixture, labels, 40 * MINUTE_MS, stack)
        expected = case.check_features()
        case.check(Model(models / "fraud" / "1"))
    places = own_order(case.predictions)
    assert not places["card_id"].is_unique  # two buckets count for themselves
    assert expected["terminal_fraud_rate_mean_7d"].notna().mean() > 0.8
