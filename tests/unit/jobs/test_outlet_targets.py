"""Webhook and SNS: what is delivered, refused and tried again, at real servers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from jobs.outlets.settings import SnsSettings, WebhookSettings
from jobs.outlets.sns import MAX_BYTES, SnsTarget
from jobs.outlets.target import Fate, Message, Outcome
from jobs.outlets.webhook import WebhookTarget
from tests.support.sns import Sns
from tests.support.webhook import WebhookServer

pytest.importorskip("boto3", reason="no client: make setup EXTRA=sns")


def message(n: int, key: str = "m1", **more: Any) -> Message:
    value = {"alert_id": f"a{n}", "kind": "scores", "state": "open"} | more
    return Message(0, n, key.encode(), orjson.dumps(value))


def fates(outcomes: list[Outcome]) -> list[Fate]:
    return [outcome.fate for outcome in outcomes]


# -- the webhook --------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[WebhookServer]:
    with WebhookServer() as server:
        yield server


@pytest.fixture
def webhook(server: WebhookServer, request: pytest.FixtureRequest) -> Iterator[WebhookTarget]:
    options = {"token": "t", "timeout": 2_000} | getattr(request, "param", {})
    target = WebhookTarget(WebhookSettings(url=server.url, **options))
    target.open()
    yield target
    target.close()


def test_each_alert_is_posted_with_its_id(webhook: WebhookTarget, server: WebhookServer) -> None:
    sent = [message(n, f"m{n % 3}") for n in range(20)]
    assert fates(webhook.deliver(sent)) == [Fate.DONE] * 20
    assert sorted(p.key for p in server.taken) == sorted(f"a{n}" for n in range(20))
    assert {p.key: p.body for p in server.taken} == {
        f"a{n}": orjson.loads(m.value) for n, m in enumerate(sent)
    }
    assert {p.headers["Authorization"] for p in server.taken} == {"Bearer t"}


def test_the_alerts_of_an_entity_keep_their_order(
    webhook: WebhookTarget, server: WebhookServer
) -> None:
    webhook.deliver([message(n, f"m{n % 4}") for n in range(40)])
    for key in range(4):
        mine = [n for n in (int(p.key[1:]) for p in server.taken) if n % 4 == key]
        assert mine == sorted(mine)


def test_what_is_refused_does_not_hold_up_the_others(
    webhook: WebhookTarget, server: WebhookServer
) -> None:
    server.status = lambda body: {"a1": 422, "a2": 503, "a3": 429}.get(body["alert_id"], 200)
    sent = [message(0), message(1), message(2, "m2"), message(3, "m3"), message(4, "m2")]
    outcomes = webhook.deliver(sent)
    again = Fate.RETRY
    assert fates(outcomes) == [Fate.DONE, Fate.REFUSED, again, again, again]
    assert outcomes[1].reason == "HTTP 422: as told"
    assert "a4" not in server.tries, "it would overtake its entity's alert before it"


def test_a_server_that_is_down_is_not_asked_for_each(
    webhook: WebhookTarget, server: WebhookServer
) -> None:
    server.status = lambda body: 500
    assert fates(webhook.deliver([message(n, f"m{n}") for n in range(200)])) == [Fate.RETRY] * 200
    assert len(server.tries) <= 16
    server.stop()
    assert fates(webhook.deliver([message(1)])) == [Fate.RETRY]
    server.start()
    server.status = lambda body: 200
    assert fates(webhook.deliver([message(1)])) == [Fate.DONE]


@pytest.mark.parametrize("webhook", [{"per_request": 10}], indirect=True)
def test_lists_of_alerts(webhook: WebhookTarget, server: WebhookServer) -> None:
    server.status = lambda body: 400 if any(a["alert_id"] == "a12" for a in body) else 200
    outcomes = webhook.deliver([message(n, f"m{n}") for n in range(25)])
    assert [n for n, o in enumerate(outcomes) if o.fate is not Fate.DONE] == [12]
    assert outcomes[12].fate is Fate.REFUSED
    assert [len(p.body) for p in server.taken] == [10, *[1] * 9, 5]
    assert len({p.key for p in server.taken}) == len(server.taken)


def test_what_is_no_alert_is_refused(webhook: WebhookTarget, server: WebhookServer) -> None:
    outcomes = webhook.deliver([Message(0, 1, b"", b"{"), Message(0, 2, b"", b"[]")])
    assert fates(outcomes) == [Fate.REFUSED] * 2
    assert server.tries == []


def test_an_id_of_any_text_fits_a_header(webhook: WebhookTarget, server: WebhookServer) -> None:
    assert fates(webhook.deliver([message(1, alert_id="Pümpe 1@5#1\r\nX: y")])) == [Fate.DONE]
    assert server.tries == ["P%C3%BCmpe%201@5#1%0D%0AX:%20y"]


def test_a_prediction_s_alert_has_its_id(webhook: WebhookTarget, server: WebhookServer) -> None:
    value = orjson.dumps({"prediction": {"prediction_id": "transactions-2-18834"}})
    silence = orjson.dumps({"kind": "silent", "event_id": "m1@silent@17"})
    webhook.deliver([Message(0, 1, b"c1", value), Message(0, 2, b"c1", silence)])
    assert server.tries == ["transactions-2-18834", "m1@silent@17"]


# -- SNS ----------------------------------------------------------------------------------------


@pytest.fixture(params=["alerts", "alerts.fifo"])
def sns(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sns]:
    made = Sns(request.param, monkeypatch)
    yield made
    made.stop()


@pytest.fixture
def publisher(sns: Sns) -> Iterator[SnsTarget]:
    settings = SnsSettings(topic_arn=sns.topic, endpoint=sns.endpoint, timeout=2_000)
    target = SnsTarget(settings)
    target.open()
    yield target
    target.close()


def test_alerts_reach_a_queue_behind_the_topic(publisher: SnsTarget, sns: Sns) -> None:
    sent = [message(n, f"m{n % 3}") for n in range(23)]
    too_long = message(99, text="x" * MAX_BYTES)
    outcomes = publisher.deliver([*sent, too_long])
    assert fates(outcomes) == [Fate.DONE] * 23 + [Fate.REFUSED]
    assert "262,144" in outcomes[-1].reason
    received = sns.received()
    assert sorted(r["Message"] for r in received) == sorted(m.value.decode() for m in sent)
    for r in received:
        attributes = {name: a["Value"] for name, a in r["MessageAttributes"].items()}
        document = orjson.loads(r["Message"])
        assert attributes == {k: document[k] for k in ("alert_id", "kind", "state")}


def test_sns_that_is_down_gets_them_later(publisher: SnsTarget, sns: Sns) -> None:
    sns.stop()
    sent = [message(n) for n in range(30)]
    assert fates(publisher.deliver(sent)) == [Fate.RETRY] * 30
    sns.start()
    assert fates(publisher.deliver(sent)) == [Fate.DONE] * 30
    assert len(sns.received()) == 30


def test_a_fifo_topic_drops_what_comes_twice(publisher: SnsTarget, sns: Sns) -> None:
    sent = [message(n) for n in range(5)]
    publisher.deliver(sent)
    publisher.deliver(sent)
    is_fifo = sns.topic.endswith(".fifo")
    assert len(sns.received()) == (5 if is_fifo else 10)
