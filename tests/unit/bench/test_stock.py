"""The baseline's per-record features are those of our micro-batches."""

from __future__ import annotations

import json
import random
from collections import defaultdict

import numpy as np
import orjson
import pytest

from bench.stock import features, job
from bench.stock.scoring import model_input
from jobs.environment import ROOT
from jobs.settings import load
from udfs.batches.events import Decoder, Events
from udfs.features.expressions import evaluate
from udfs.features.identities import Identities
from udfs.features.keyed import KeyedStage

SCHEMA = load(ROOT / "conf" / "fraud.yaml").schema_
CARD, TERMINAL = SCHEMA.stages
DAY_MS = 86_400_000
START_MS = 1_750_000_000_000
N_EVENTS = 400
CHUNK = 25
EVENT = {
    "transaction_id": "t1",
    "event_time_ms": START_MS,
    "card_id": "c1",
    "terminal_id": "m1",
    "amount": 12.5,
    "type": "CP",
    "billing_lat": 48.1,
    "billing_lon": 11.5,
}


def make_events(rng: random.Random) -> list[dict[str, object]]:
    """Sixty days of few cards and terminals, up to an hour out of order, a tenth repeated."""
    times = sorted(rng.uniform(0, 60 * DAY_MS) for _ in range(N_EVENTS))
    events: list[dict[str, object]] = []
    for n, time_ms in enumerate(times):
        if events and rng.random() < 0.1:
            events.append(events[-rng.randint(1, min(3, len(events)))])
            continue
        place = {
            f"{what}_{part}": rng.choice([None, round(rng.uniform(-80, 80), 5)])
            for what in ("billing", "shipping", "terminal")
            for part in ("lat", "lon")
        }
        events.append(
            {
                "transaction_id": f"t{n}",
                "event_time_ms": START_MS + int(time_ms) - rng.randint(0, 3_600_000),
                "card_id": f"c{rng.randint(0, 3)}",
                "terminal_id": f"m{rng.randint(0, 2)}",
                "amount": rng.choice([0.0, round(rng.uniform(0, 500), 2)]),
                "type": rng.choice(["CP", "CNP", "other"]),
                **place,
            }
        )
    return events


def make_labels(rng: random.Random, events: list[dict[str, object]]) -> list[dict[str, object]]:
    """A label per event, some twice and with another value."""
    return [
        {
            "transaction_id": event["transaction_id"],
            "event_time_ms": event["event_time_ms"],
            "terminal_id": event["terminal_id"],
            "is_fraud": rng.randint(0, 1),
        }
        for event in events
        for _ in range(rng.choice([1, 1, 2]))
    ]


def stock_features(chunks: list[tuple[list[dict], list[dict]]]) -> dict[str, list[float]]:
    """What the stock job's functions make of events and labels, record by record."""
    cards, terminals = (features.EventHistory(SCHEMA, key) for key in (CARD, TERMINAL))
    late = features.LabelHistory(SCHEMA, TERMINAL)
    states: dict[tuple[str, str], list[features.Entry]] = defaultdict(list)
    expressions = [
        (spec.columns, features.expression(spec, SCHEMA.event.time.field))
        for spec in SCHEMA.features.expressions
    ]
    result = {}
    for labels, events in chunks:
        for label in labels:
            key = ("labels", label[TERMINAL])
            states[key] = late.learn(states[key], label)
        for document in events:
            event = features.parse_event(json.dumps(document), SCHEMA.event.fields)
            assert event is not None
            card, terminal = ("cards", event[CARD]), ("terminals", event[TERMINAL])
            if cards.is_duplicate(states[card], event):
                continue
            event["features"] = {}
            for columns, compute in expressions:
                event["features"] |= dict(zip(columns, compute(event), strict=True))
            states[card] = cards.add(states[card], event)
            states[terminal] = terminals.add(states[terminal], event)
            key = ("labels", event[TERMINAL])
            states[key] = late.add_features(states[key], event)
            assert tuple(event["features"]) == SCHEMA.columns
            row = [np.nan if v is None else v for v in event["features"].values()]
            result[event["transaction_id"]] = row
    return result


def decode(events: list[dict]) -> Events:
    raw = [orjson.dumps(event) for event in events]
    positions = np.array([[0, n, 1 << 42] for n in range(len(raw))])
    decoded = Decoder.for_events(SCHEMA.event, SCHEMA.stages).decode(raw, positions)
    merged = decoded.merged()
    assert merged is not None and not decoded.rejects
    return merged


def our_features(chunks: list[tuple[list[dict], list[dict]]]) -> dict[str, list[float]]:
    """What our micro-batches make of them."""
    stages = [KeyedStage(SCHEMA, key) for key in (CARD, TERMINAL)]
    states = [stage.new_state() for stage in stages]
    result = {}
    for labels, documents in chunks:
        values = np.array([label["is_fraud"] for label in labels], np.float64)
        stages[1].learn(
            states[1],
            [label[TERMINAL] for label in labels],
            np.array([label["event_time_ms"] for label in labels]),
            values,
            Identities.of_labels([label["transaction_id"] for label in labels], values),
        )
        events = decode(documents)
        columns, kept = [evaluate(SCHEMA.features.expressions, events)], None
        for stage, state in zip(stages, states, strict=True):
            rows = np.arange(len(events)) if kept is None else kept
            ids = [events.texts["transaction_id"][n] for n in rows]
            observed = stage.observe(
                state,
                [events.texts[stage.name][n] for n in rows],
                events.times[rows],
                {"amount": events.numbers["amount"][rows]},
                Identities.of_events(ids, [events.raw[n] for n in rows]),
            )
            kept = observed.kept if kept is None else kept
            columns.append(observed.features)
        columns[0] = columns[0][kept]
        ids = [events.texts["transaction_id"][n] for n in kept]
        result |= dict(zip(ids, np.concatenate(columns, axis=1).tolist(), strict=True))
    return result


@pytest.mark.parametrize("seed", [1, 2])
def test_features_equal_ours(seed: int) -> None:
    rng = random.Random(seed)
    events = make_events(rng)
    labels = make_labels(rng, events)
    size = -(-len(labels) * CHUNK // len(events))
    chunks = [
        (labels[n * size : (n + 1) * size], events[n * CHUNK : (n + 1) * CHUNK])
        for n in range(len(events) // CHUNK)
    ]
    stock, ours = stock_features(chunks), our_features(chunks)
    assert list(stock) == list(ours)
    assert len(stock) < N_EVENTS  # some were repeats
    names = SCHEMA.columns
    for event_id, row in stock.items():
        want = dict(zip(names, ours[event_id], strict=True))
        assert dict(zip(names, row, strict=True)) == pytest.approx(want, rel=1e-9, nan_ok=True)
    filled = np.isfinite(np.array(list(stock.values()))).mean(axis=0)
    assert (filled > 0).all()  # no column is empty throughout


@pytest.mark.parametrize(
    "change",
    [
        {"amount": "12"},
        {"amount": None},
        {"amount": True},
        {"amount": -1},
        {"amount": float("nan")},
        {"billing_lat": 91},
        {"card_id": None},
    ],
)
def test_invalid_event_is_none(change: dict[str, object]) -> None:
    assert features.parse_event(json.dumps(EVENT), SCHEMA.event.fields) is not None
    assert features.parse_event(json.dumps(EVENT | change), SCHEMA.event.fields) is None


@pytest.mark.parametrize("text", ["", "{", "[1]", "null"])
def test_no_object_is_none(text: str) -> None:
    assert features.parse_event(text, SCHEMA.event.fields) is None


def test_model_input_imputes() -> None:
    row = model_input({"a": None, "b": 2}, [7.0, 0.0])
    assert row.dtype == np.float32
    assert row.tolist() == [[7.0, 2.0]]


def test_served_in_thread_mode_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        job.main(["--mode", "thread", "--scoring", "served"])
    assert "process mode" in capsys.readouterr().err
