"""The webhook, SNS and PostgreSQL are down for a while, as alerts and predictions go on coming."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from typer.testing import CliRunner

from jobs import cli
from tests.support.outlet_process import OutletProcess, Topics
from tests.support.predictions import predictions
from tests.support.sns import Sns
from tests.support.stores import PostgresProcess
from tests.support.waiting import wait_until
from tests.support.webhook import WebhookServer

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

BEFORE_S, AFTER_S, TICK_S = 1.0, 1.0, 0.1
ALERTS, PREDICTIONS = 1, 20  # a tick; moto looks through all messages of a queue for each
IN_FLIGHT = 4
QUICK = {"backoff": "50ms", "max_backoff": "1s", "linger": "20ms", "batch": 50}


class Stream:
    """Alerts and predictions that come at a steady pace until they are told to end.

    Attributes:
        alerts: The ids of those sent.
        events: The ids of the predictions sent.
    """

    def __init__(self, topics: Topics, ticks: int) -> None:
        self.alerts: list[str] = []
        self.events: list[str] = []
        self._topics = topics
        self._made = predictions(ticks * PREDICTIONS, topics.settings.schema_.columns)
        self._ended = threading.Event()

    @contextmanager
    def flowing(self) -> Iterator[None]:
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()

    def _run(self) -> None:
        names = self._topics.settings.topics
        while not self._ended.wait(TICK_S) and len(self.events) < len(self._made):
            first = len(self.alerts)
            alerts = [alert(n) for n in range(first, first + ALERTS)]
            self._topics.write(names.alerts, alerts)
            self.alerts += [one["alert_id"] for one in alerts]
            begin = len(self.events)
            made = self._made[begin : begin + PREDICTIONS]
            self._topics.write(names.predictions, made, "key")
            self.events += [one["event_id"] for one in made]


def alert(n: int) -> dict[str, Any]:
    entity = f"m{n % 7}"
    identity = f"{entity}@{n}#1"
    return {"alert_id": identity, "kind": "scores", "state": "open", "entity": entity, "n": n}


@pytest.mark.parametrize("down_s", [5, pytest.param(60, marks=pytest.mark.long)])
def test_each_gets_all_of_an_outage_once(
    bootstrap: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, down_s: int
) -> None:
    pytest.importorskip("boto3", reason="no client: make setup EXTRA=sns")
    with PostgresProcess() as postgres, WebhookServer() as webhook:
        sns = Sns(f"outage{down_s}.fifo", monkeypatch)
        try:
            topics = topics_of(bootstrap, tmp_path, webhook, sns, postgres)
            made = CliRunner().invoke(cli.app, ["store", "init", str(topics.conf)])
            assert made.exit_code == 0, made.output
            stream = Stream(topics, int((down_s + 60) / TICK_S))
            with (
                OutletProcess(tmp_path / "deliver", "deliver", str(topics.conf)) as deliver,
                OutletProcess(tmp_path / "store", "store", "run", str(topics.conf)) as store,
            ):
                deliver.until("webhook: reading")
                store.until("reading")
                with stream.flowing():
                    wait_until(lambda: bool(webhook.taken), 60, "alerts are delivered")
                    fail_for(down_s, webhook, sns, postgres)
                    time.sleep(AFTER_S)  # not synchronisation: what comes after the outage
                for name in ("deliver-webhook", "deliver-sns"):
                    wait_for(topics, topics.settings.topics.alerts, name)
                wait_for(topics, topics.settings.topics.predictions, "store-postgres")
                assert deliver.says("to be tried again") and store.says("to be tried again")
                assert (deliver.stop(), store.stop()) == (0, 0)
            posted = [one.key for one in webhook.taken]
            published = Counter(orjson.loads(r["Message"])["alert_id"] for r in sns.received())
        finally:
            sns.stop()
        stored = Counter(row for (row,) in postgres.rows("SELECT event_id FROM kept"))
        assert len(stream.alerts) > ALERTS * down_s and len(stream.events) > PREDICTIONS * down_s
        assert published == Counter(stream.alerts)
        assert {*posted} == {*stream.alerts}
        repeated = len(posted) - len({*posted})
        assert repeated <= IN_FLIGHT, "only what lost its answer comes again, with the same key"
        assert stored == Counter(stream.events)
        assert topics.dead_letters() == []


def topics_of(
    bootstrap: str, folder: Path, webhook: WebhookServer, sns: Sns, postgres: PostgresProcess
) -> Topics:
    delivery = QUICK | {
        "webhook": {"url": webhook.url, "timeout": "20s", "in_flight": IN_FLIGHT},
        "sns": {"topic_arn": sns.topic, "endpoint": sns.endpoint, "timeout": "2s"},
    }
    own = {"dsn": postgres.dsn, "table": "kept", "batch": 500, "linger": "20ms"}
    store = {"backoff": "50ms", "max_backoff": "1s", "postgres": own}
    return Topics(bootstrap, folder, delivery=delivery, store=store)


def fail_for(down_s: float, webhook: WebhookServer, sns: Sns, postgres: PostgresProcess) -> None:
    """All of them at once; the time is what is tested, and nothing waits for it to pass."""
    time.sleep(BEFORE_S)
    webhook.stop()
    sns.stop()
    postgres.kill()
    taken = len(webhook.taken)
    time.sleep(down_s)
    assert len(webhook.taken) == taken, "a server that is down takes nothing"
    webhook.start()
    sns.start()
    postgres.start()


def wait_for(topics: Topics, topic: str, name: str) -> None:
    group = f"{topics.settings.kafka.group_id}-{name}"
    wait_until(lambda: topics.lag(topic, group) == 0, 120, f"{group} has taken all")
