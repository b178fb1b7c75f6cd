"""One job and every kind of record that can be wrong: each ends where it should."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pytest

from jobs.running_job import RunningJob
from jobs.settings import load
from tests.support.checks import check_accounts, check_schemas
from tests.support.fixtures import CONFIG, own_overrides
from tests.support.kafka import Out, Place, Record, Traffic
from tests.support.running import restarts, running

pytestmark = [pytest.mark.minicluster, pytest.mark.kafka, pytest.mark.timeout(600)]

MIB = 1024 * 1024
DAY_MS = 24 * 60 * 60 * 1000
_ids = count()


def event(**changes: Any) -> dict[str, Any]:
    """A right event of now; each has an id and a card of its own."""
    number = next(_ids)
    return {
        "transaction_id": f"e{number}",
        "event_time_ms": time.time_ns() // 1_000_000 - 1_000,
        "card_id": f"card{number}",
        "terminal_id": "m1",
        "amount": 12.5,
        "type": "CNP",
        "billing_lat": 48.85,
        "billing_lon": 2.35,
        "shipping_lat": 45.76,
        "shipping_lon": 4.83,
        "terminal_lat": None,
        "terminal_lon": None,
    } | changes


def raw(**changes: Any) -> bytes:
    return orjson.dumps(event(**changes))


def keyed(document: dict[str, Any], partition: int = 0) -> Record:
    """A record as a good producer writes it."""
    return Record(partition, document["card_id"].encode(), orjson.dumps(document))


def without(name: str) -> bytes:
    return orjson.dumps({k: v for k, v in event().items() if k != name})


def with_text(name: str, text: str) -> bytes:
    """A field replaced by what Python's json would not write."""
    return json.dumps(event(**{name: "@"})).replace('"@"', text).encode()


def padded(size: int) -> bytes:
    """A right event with a field that makes it so many bytes; random, so it does not compress."""
    return raw(padding=os.urandom((size - 300) // 2).hex())


def bucket_of(key: bytes) -> int:
    """Which of two: Java's String.hashCode is odd if the sum of the bytes is, as 31 is odd."""
    return sum(key) % 2


def raw_for(key: bytes, *, same_bucket: bool) -> bytes:
    """A right event whose card belongs, or does not, to the bucket that a Kafka key leads to."""
    while True:
        found = event()
        if (bucket_of(found["card_id"].encode()) == bucket_of(key)) is same_bucket:
            return orjson.dumps(found)


ODD_KEY = b"\x00\xff\xfe \n'\"\\"
BAD: dict[str, tuple[str, bytes | None]] = {
    "no JSON": ("not_json", b"amount=12.50"),
    "truncated": ("not_json", raw()[:-20]),
    "two documents": ("not_json", raw() + raw()),
    "not UTF-8": ("not_utf8", raw().replace(b"CNP", b"CN\xff")),
    "all bytes": ("not_utf8", bytes(range(256))),
    "a list": ("not_an_object", b"[1, 2]"),
    "JSON null": ("not_an_object", b"null"),
    "field missing": ("missing_field", without("amount")),
    "field null": ("missing_field", raw(terminal_id=None)),
    "text for a number": ("wrong_type", raw(amount="12.50")),
    "number for a text": ("wrong_type", raw(card_id=7)),
    "truth for a number": ("wrong_type", raw(amount=True)),
    "fraction for a whole": ("wrong_type", raw(event_time_ms=1.5)),
    "NaN": ("not_json", with_text("amount", "NaN")),
    "Infinity": ("not_json", with_text("amount", "Infinity")),
    "infinite exponent": ("not_json", with_text("amount", "1e999")),
    "negative amount": ("out_of_range", raw(amount=-1)),
    "absurd amount": ("out_of_range", raw(amount=1e300)),
    "absurd latitude": ("out_of_range", raw(billing_lat=123.0)),
    "far future": ("bad_time", raw(event_time_ms=time.time_ns() // 1_000_000 + 2 * DAY_MS)),
    "far past": ("bad_time", raw(event_time_ms=0)),
    "before all time": ("bad_time", raw(event_time_ms=-(2**63))),
    "beyond all time": ("bad_time", raw(event_time_ms=2**63)),
    "empty key": ("bad_key", raw(card_id="")),
    "control character": ("bad_key", raw(card_id="a\nb")),
    "long id": ("bad_key", raw(transaction_id="x" * 2_000)),
    "empty": ("empty", b""),
    "blank": ("empty", b" \n\t "),
    "tombstone": ("empty", None),
    "spaces and digits": ("not_json", b"0 17 1700000000000 4 abcd 0 18 "),
    "deep nesting": ("not_json", b"[" * 100_000),
    "5 MB": ("too_large", padded(5 * MIB)),
}
STRAY: dict[str, tuple[bytes | None, bytes]] = {
    "no key": (None, raw_for(b"", same_bucket=False)),
    "empty key": (b"", raw_for(b"", same_bucket=False)),
    "odd key": (ODD_KEY, raw_for(ODD_KEY, same_bucket=False)),
    "another card's key": (b"c1", raw_for(b"c1", same_bucket=False)),
}
"""Right events, but their Kafka key leads them to a bucket that is not their card's."""

GOOD: dict[str, tuple[bytes | None, bytes]] = {
    "no key": (None, raw_for(b"", same_bucket=True)),
    "empty key": (b"", raw_for(b"", same_bucket=True)),
    "odd key": (ODD_KEY, raw_for(ODD_KEY, same_bucket=True)),
}
GOOD |= {
    name: (json.loads(value)["card_id"].encode(), value)
    for name, value in {
        "plain": raw(),
        "unknown type": raw(type="WIRE"),
        "optional fields absent": without("billing_lat"),
        "quotes in the id": raw(transaction_id="q\"'\\ \u00e9 \U0001f4b3 {}"),
        "quotes in the card": raw(card_id="q\"'\\ \u00e9 \U0001f4b3 {}"),
        "spaces around": b"  \n" + raw() + b"\n ",
        "just small enough": padded(MIB - 4_096),
    }.items()
}
EXTRA = {"note": 'é"\\', "nested": {"deep": [1, 2.50, None, {"x": "y"}]}, "long": 2**60}


class Seen(NamedTuple):
    """What became of everything, the job having ended."""

    traffic: Traffic
    places: dict[str, Place]
    restarts: int

    def of(self, name: str, output: str) -> list[Out]:
        found = self.traffic.outputs[output]
        return [out for out in found if out.place == self.places[name]]


@pytest.fixture(scope="module")
def seen(bootstrap: str, models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    folder = tmp_path_factory.mktemp("bad-input")
    overrides = {
        "model.embedded": True,
        "alerts.threshold": 0.0,  # everything that is scored is an alert too
    }
    settings = load(CONFIG, own_overrides(bootstrap, models, folder) | overrides)
    with Traffic(settings) as traffic:
        with running(settings) as job:
            places = send_everything(traffic, job)
            restarted = restarts(job)
        traffic.read_to_end()
        yield Seen(traffic, places, restarted)


def send_everything(traffic: Traffic, job: RunningJob) -> dict[str, Place]:
    """Bad and good ones together, so that they share batches; then one after the other."""
    repeated, contradicted = event(), event()
    records = {
        "repeated": keyed(repeated),
        "contradicted": keyed(contradicted),
        "extra fields": keyed(event(**EXTRA)),
    }
    records |= {f"bad: {n}": Record(k % 4, b"k", v) for k, (n, (_, v)) in enumerate(BAD.items())}
    records |= {f"good: {n}": Record(0, k, v) for n, (k, v) in GOOD.items()}
    records |= {f"stray: {n}": Record(1, k, v) for n, (k, v) in STRAY.items()}
    places = {}
    for name, record in records.items():
        (places[name],) = traffic.send(record)
    traffic.wait_accounted()
    later = {
        "repeat": keyed(repeated, partition=3),
        "contradiction": keyed(contradicted | {"amount": 99}, partition=3),
        "good at the end": keyed(event()),
    }
    for name, record in later.items():
        (places[name],) = traffic.send(record)
        traffic.wait_accounted()
    assert job.state() == "RUNNING"
    return places


@pytest.mark.parametrize("name", BAD)
def test_a_bad_record_is_a_dead_letter_with_its_bytes(seen: Seen, name: str) -> None:
    code, value = BAD[name]
    (letter,) = seen.of(f"bad: {name}", "dead_letters")
    assert letter.document["code"] == code
    assert letter.raw == (value or b"")
    assert letter.document["source"]["topic"] == seen.traffic.settings.topics.events
    assert letter.key == "{}-{}".format(*letter.place).encode()


@pytest.mark.parametrize("name", STRAY)
def test_a_record_in_another_cards_bucket_is_a_dead_letter(seen: Seen, name: str) -> None:
    (letter,) = seen.of(f"stray: {name}", "dead_letters")
    assert letter.document["code"] == "key_mismatch"
    assert letter.raw == STRAY[name][1]


@pytest.mark.parametrize("name", GOOD)
def test_an_unusual_record_is_scored(seen: Seen, name: str) -> None:
    value = json.loads(GOOD[name][1])
    (prediction,) = seen.of(f"good: {name}", "predictions")
    assert prediction.document["event_id"] == value["transaction_id"]
    assert prediction.document["fallback_reason"] is None
    assert prediction.key == value["card_id"].encode()
    (alert,) = seen.of(f"good: {name}", "alerts")
    assert alert.document["event"] == value


def test_an_unknown_type_is_none_of_the_known(seen: Seen) -> None:
    (prediction,) = seen.of("good: unknown type", "predictions")
    features = prediction.document["features"]
    assert (features["type_CNP"], features["type_CP"]) == (0, 0)


def test_an_absent_optional_field_is_a_missing_feature(seen: Seen) -> None:
    (prediction,) = seen.of("good: optional fields absent", "predictions")
    assert prediction.document["features"]["billing_shipping_km"] is None
    (prediction,) = seen.of("good: plain", "predictions")
    assert prediction.document["features"]["billing_shipping_km"] == pytest.approx(391, abs=3)
    assert prediction.document["features"]["billing_terminal_km"] is None


def test_extra_fields_are_in_the_alert(seen: Seen) -> None:
    (alert,) = seen.of("extra fields", "alerts")
    assert {name: alert.document["event"][name] for name in EXTRA} == EXTRA


def test_a_repeated_id_is_a_duplicate(seen: Seen) -> None:
    (first,) = seen.of("repeated", "predictions")
    (repeat,) = seen.of("repeat", "duplicates")
    assert repeat.document["event_id"] == first.document["event_id"]
    assert not seen.of("repeat", "predictions")


def test_an_id_with_another_content_is_a_dead_letter(seen: Seen) -> None:
    assert len(seen.of("contradicted", "predictions")) == 1
    (letter,) = seen.of("contradiction", "dead_letters")
    assert letter.document["code"] == "id_conflict"
    assert letter.raw == seen.traffic.sent[letter.place].value


def test_a_good_record_after_them_all_is_scored(seen: Seen) -> None:
    assert len(seen.of("good at the end", "predictions")) == 1


def test_every_record_is_accounted_for_once(seen: Seen) -> None:
    check_accounts(seen.traffic)


def test_all_outputs_fit_their_schemas(seen: Seen) -> None:
    check_schemas(seen.traffic.outputs)


def test_the_job_was_never_restarted(seen: Seen) -> None:
    assert seen.restarts == 0
