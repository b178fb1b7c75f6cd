"""``streamscore deliver`` at a real broker, with targets that go away, and its own kill."""

from __future__ import annotations

import base64
import urllib.request
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.support.outlet_process import OutletProcess, Topics
from tests.support.sns import Sns
from tests.support.waiting import wait_until
from tests.support.webhook import WebhookServer

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(240)]

QUICK = {"backoff": "50ms", "max_backoff": "200ms", "linger": "20ms", "batch": 20}


def alerts(count: int, first: int = 0) -> list[dict[str, Any]]:
    return [
        {
            "alert_id": f"m{n % 7}@{n}#1",
            "kind": "scores",
            "state": "open",
            "entity": f"m{n % 7}",
            "n": n,
        }
        for n in range(first, first + count)
    ]


@pytest.fixture
def server() -> Iterator[WebhookServer]:
    with WebhookServer() as server:
        yield server


def topics_of(bootstrap: str, folder: Path, server: WebhookServer, **changes: Any) -> Topics:
    webhook = {"url": server.url, "timeout": "20s", "in_flight": 4}
    return Topics(bootstrap, folder, delivery=QUICK | {"webhook": webhook} | changes)


def deliver(topics: Topics, folder: Path, *words: str) -> OutletProcess:
    return OutletProcess(folder / "log", "deliver", str(topics.conf), *words)


def keys(server: WebhookServer) -> set[str]:
    return {posted.key for posted in server.taken}


def test_an_outage_and_a_kill_lose_none(
    bootstrap: str, tmp_path: Path, server: WebhookServer
) -> None:
    topics = topics_of(bootstrap, tmp_path, server)
    topic, group = (
        topics.settings.topics.alerts,
        f"{topics.settings.kafka.group_id}-deliver-webhook",
    )
    sent = alerts(300)
    ids = {a["alert_id"] for a in sent}
    server.stop()  # before the first is sent
    with deliver(topics, tmp_path) as process:
        topics.write(topic, sent[:150])
        process.until("to be tried again")
        server.start()
        wait_until(lambda: len(keys(server)) >= 60, 60, "some are delivered")
        process.kill()
    assert len(keys(server)) < 300
    topics.write(topic, sent[150:])
    with deliver(topics, tmp_path, "--metrics-port", "0") as process:
        wait_until(lambda: keys(server) == ids, 60, "all are delivered")
        wait_until(lambda: topics.lag(topic, group) == 0, 60, "all are committed")
        assert metric(process, 'fate="done"') >= 150
        assert process.stop() == 0
    again = len(server.taken) - 300
    assert 0 <= again <= QUICK["batch"], "a kill repeats a batch at most"
    for entity in range(7):
        mine = [p.body["n"] for p in server.taken if p.body["entity"] == f"m{entity}"]
        firsts = [*dict.fromkeys(mine)]
        assert all(a < b for a, b in pairwise(firsts)), "an entity's alerts keep their order"
    with deliver(topics, tmp_path) as process:  # nothing is left, and it ends as it should
        topics.write(topic, alerts(1, 1_000))
        wait_until(lambda: "m6@1000#1" in keys(server), 60, "the last one is delivered")
        assert process.stop() == 0
    assert len(server.taken) == 301 + again


def metric(process: OutletProcess, labels: str) -> float:
    port = process.log.read_text(encoding="utf-8").rsplit("metrics port=", 1)[1].split()[0]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as page:
        lines = page.read().decode().splitlines()
    return float(
        next(line for line in lines if "messages_total" in line and labels in line).split()[-1]
    )


def test_what_nobody_takes_is_a_dead_letter(
    bootstrap: str, tmp_path: Path, server: WebhookServer
) -> None:
    topics = topics_of(bootstrap, tmp_path, server, give_up_after="600ms")
    topic = topics.settings.topics.alerts
    server.status = lambda body: {3: 400, 5: 503}.get(body["n"], 200)
    with deliver(topics, tmp_path) as process:
        topics.write(topic, [*alerts(10), b"{broken"])
        wait_until(lambda: len(keys(server)) == 8, 60, "the others are delivered")
        wait_until(lambda: len(topics.dead_letters()) == 3, 60, "three are not")
        topics.write(topic, alerts(5, 10))
        wait_until(lambda: len(keys(server)) == 13, 60, "it goes on")
        assert process.stop() == 0
    dead = {d["raw_base64"]: d for d in topics.dead_letters()}
    found = {base64.b64decode(raw): d for raw, d in dead.items()}
    reasons = {orjson.loads(v)["n"]: d["reason"] for v, d in found.items() if v != b"{broken"}
    assert reasons == {3: "HTTP 400: as told", 5: "given up: HTTP 503: as told"}
    assert found[b"{broken"]["reason"].startswith("not readable")
    assert {d["target"] for d in dead.values()} == {"webhook"}
    assert {d["source"]["topic"] for d in dead.values()} == {topic}


def test_a_stop_while_the_target_is_down_loses_none(
    bootstrap: str, tmp_path: Path, server: WebhookServer
) -> None:
    topics = topics_of(bootstrap, tmp_path, server)
    server.status = lambda body: 200 if body["n"] < 4 else 500
    with deliver(topics, tmp_path) as process:
        topics.write(topics.settings.topics.alerts, alerts(10))
        process.until("to be tried again")
        assert process.stop() == 0
    server.status = lambda body: 200
    with deliver(topics, tmp_path):
        wait_until(lambda: len(keys(server)) == 10, 60, "the rest is delivered")


def test_two_processes_share_the_work(
    bootstrap: str, tmp_path: Path, server: WebhookServer
) -> None:
    topics = topics_of(bootstrap, tmp_path, server)
    topic = topics.settings.topics.alerts
    with deliver(topics, tmp_path) as one:
        topics.write(topic, alerts(50))
        wait_until(lambda: len(keys(server)) == 50, 60, "the first one delivers")
        with OutletProcess(tmp_path / "other", "deliver", str(topics.conf)) as other:
            other.until("reading")
            topics.write(topic, alerts(100, 50))
            wait_until(lambda: len(keys(server)) == 150, 60, "both deliver")
            assert one.stop() == 0
            topics.write(topic, alerts(50, 150))
            wait_until(lambda: len(keys(server)) == 200, 60, "the other one takes over")
            assert other.stop() == 0


def test_sns_that_is_down_holds_up_no_other(
    bootstrap: str, tmp_path: Path, server: WebhookServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("boto3", reason="no client: make setup EXTRA=sns")
    sns = Sns("outage.fifo", monkeypatch)
    sns.stop()
    target = {"topic_arn": sns.topic, "endpoint": sns.endpoint, "timeout": "2s"}
    topics = topics_of(bootstrap, tmp_path, server, sns=target)
    sent = alerts(60)
    with deliver(topics, tmp_path) as process:
        topics.write(topics.settings.topics.alerts, sent)
        wait_until(lambda: len(keys(server)) == 60, 60, "the webhook gets all")
        process.until("sns: ")
        sns.start()
        group = f"{topics.settings.kafka.group_id}-deliver-sns"
        topic = topics.settings.topics.alerts
        wait_until(lambda: topics.lag(topic, group) == 0, 60, "SNS has taken all")
        assert process.stop() == 0
    received = [orjson.loads(r["Message"])["n"] for r in sns.received()]
    sns.stop()
    assert sorted(received) == list(range(60)), "each once"
