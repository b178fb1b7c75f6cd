"""Episodes of a running job against a recount of the scores that it wrote."""

from __future__ import annotations

import random
import time
from collections import defaultdict
from typing import Any

import orjson
import pytest

from jobs.settings import Settings
from tests.support.checks import check_accounts, check_schemas
from tests.support.episode_oracle import counted
from tests.support.fixtures import MakeSettings
from tests.support.kafka import Out, Record, Traffic
from tests.support.running import running
from udfs.alerting.hysteresis import Rules, Score

pytestmark = [pytest.mark.minicluster, pytest.mark.kafka, pytest.mark.timeout(600)]

CARDS = 12
ROUNDS = 30
RULES = Rules(2, 3, 1, 60_000)
THRESHOLD, OF_CNP = 0.01, 0.02
EPISODES = {
    "entity": "card_id",
    "open_at": RULES.open_at,
    "of_last": RULES.of_last,
    "close_below": RULES.close_below,
    "close_after": "1m",
    "silent_after": "2s",
    "thresholds": {"field": "type", "values": {"CNP": OF_CNP}},
    "features": ["card_count_5m", "amount"],
}


def records(rng: random.Random) -> list[Record]:
    """Cards by themselves, in an order of arrival that is not that of time."""
    begin_ms = time.time_ns() // 1_000_000 - 1_800_000
    made = []
    for n in range(CARDS * ROUNDS):
        time_ms = begin_ms + n * 700 + (90_000 if n > CARDS * ROUNDS * 2 // 3 else 0)
        card = f"c{rng.randrange(CARDS)}"
        event = {
            "transaction_id": f"t{n}",
            "event_time_ms": time_ms,
            "card_id": card,
            "terminal_id": f"m{rng.randrange(5)}",
            "amount": rng.choice([3.0, 40.0, 900.0]),
            "type": rng.choice(["CP", "CNP"]),
        }
        partition = int(card[1:]) % 4
        record = Record(partition, card.encode(), orjson.dumps(event))
        made.append((time_ms + rng.randrange(25_000), record))
    return [record for _, record in sorted(made, key=lambda pair: pair[0])]


def last_revisions(alerts: list[Out], kind: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for out in alerts:
        document = out.document
        assert out.key.decode() == document["entity"]["value"]
        if document["kind"] == kind:
            was = found.get(document["episode_id"])
            assert document["revision"] == (was["revision"] + 1 if was else 1)
            found[document["episode_id"]] = document
    return found


def expected(settings: Settings, traffic: Traffic) -> dict[str, tuple[Any, ...]]:
    scores: dict[str, list[Score]] = defaultdict(list)
    for (partition, offset), out in traffic.predictions().items():
        event = orjson.loads(traffic.sent[partition, offset].value or b"")
        threshold = OF_CNP if event["type"] == "CNP" else THRESHOLD
        time_ms, value = event["event_time_ms"], out.document["score"]
        scores[event["card_id"]].append(Score(time_ms, partition, offset, value, threshold))
    found = {}
    for card, own in scores.items():
        for e in counted(own, RULES):
            state = "open" if e.closed_ms is None else "closed"
            peak = f"{settings.topics.events}-{e.peak.partition}-{e.peak.offset}"
            closed = (e.closed_ms, e.closed_by, e.events, e.peak.value, peak)
            found[f"{card}@{e.start_ms}"] = (state, *(closed if e.closed_ms else ()))
    return found


def told(document: dict[str, Any]) -> tuple[Any, ...]:
    """What is compared: of an open episode only that it is."""
    if document["state"] == "open":
        return ("open",)
    peak = document["peak"]
    end = (document["closed_ms"], document["closed_by"], document["events"])
    return (document["state"], *end, peak["score"], peak["prediction_id"])


def of_scores(alerts: list[Out]) -> dict[str, tuple[Any, ...]]:
    """The episodes as told last, without those that have never been."""
    scores = last_revisions(alerts, "scores")
    return {name: told(d) for name, d in scores.items() if d["state"] != "withdrawn"}


def last_silences(alerts: list[Out]) -> dict[bytes, int]:
    """Of the cards that are silent as told last, when they were heard."""
    last = {o.key: o.document for o in alerts if o.document["kind"] == "silent"}
    return {card: d["start_ms"] for card, d in last.items() if d["state"] == "open"}


def newest_events(traffic: Traffic) -> dict[bytes, int]:
    """When each card came last, in event time; a silence that begins there has heard all of it.

    On a busy machine a card may count as silent before, while its events are on their way.
    """
    found: dict[bytes, int] = {}
    for record in traffic.sent.values():
        event = orjson.loads(record.value or b"")
        card = event["card_id"].encode()
        found[card] = max(event["event_time_ms"], found.get(card, 0))
    return found


def test_episodes_are_those_of_the_scores_in_order_of_time(make_settings: MakeSettings) -> None:
    settings = make_settings(
        {
            "model.embedded": True,
            "alerts.threshold": THRESHOLD,
            "alerts.episodes": EPISODES,
        }
    )
    with Traffic(settings) as traffic, running(settings):
        traffic.send(*records(random.Random(5)))
        traffic.wait_accounted()
        alerts = traffic.outputs["alerts"]
        traffic.poll_until(lambda: last_silences(alerts) == newest_events(traffic), 60)
        check_accounts(traffic)
        wanted = expected(settings, traffic)
        traffic.poll_until(lambda: of_scores(alerts) == wanted, 60)
        assert len(wanted) >= 5
        scores = last_revisions(alerts, "scores")
        assert any(d["revision"] > 2 for d in scores.values()), "late scores corrected none"
        assert all(d["moved_most"]["feature"] in EPISODES["features"] for d in scores.values())
        speaks_again(traffic)
        check_schemas(traffic.outputs)


def speaks_again(traffic: Traffic) -> None:
    """An event ends the silence of its card."""
    now_ms = time.time_ns() // 1_000_000
    place = next(p for p, r in traffic.sent.items() if r.key == b"c3")
    event = orjson.loads(traffic.sent[place].value or b"")
    event |= {"transaction_id": "again", "event_time_ms": now_ms}
    traffic.send(Record(place[0], b"c3", orjson.dumps(event)))
    silence = f"c3@{last_silences(traffic.outputs['alerts'])[b'c3']}/silent"

    def ended() -> bool:
        return any(
            o.document["episode_id"] == silence and o.document["end_ms"] == now_ms
            for o in traffic.outputs["alerts"]
        )

    traffic.poll_until(ended, 30)
