"""Streams of micro-batches for the Flink functions, of one small schema.

What the JVM makes of Kafka's records, drawn by seed.
"""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np

from udfs.alerting.scored import ScoredBatch
from udfs.definition.schema import Schema

BUCKETS = (3, 8)
KAFKA_MS = 1_700_000_000_000
DOCUMENT: dict[str, Any] = {
    "event": {
        "id": "id",
        "time": {"field": "t"},
        "dedupe_within": "1h",
        "fields": [
            *({"name": n, "type": "string"} for n in ("id", "card", "terminal", "kind")),
            {"name": "t", "type": "int"},
            {"name": "amount", "type": "float", "min": 0},
            {"name": "lat", "type": "float", "required": False},
        ],
    },
    "key": "card",
    "labels": {"id": "id", "time": "t", "key": "terminal", "value": "fraud"},
    "features": {
        "expressions": [
            {"name": "amount", "type": "value", "fields": ["amount"]},
            {"name": "lat", "type": "value", "fields": ["lat"]},
            {"name": "kind", "type": "one_hot", "fields": ["kind"], "categories": ["CP"]},
            {"name": "at", "type": "category", "fields": ["terminal"], "encoding": "one_hot"},
        ],
        "windows": [
            {
                "prefix": "card",
                "key": "card",
                "value": "amount",
                "windows": ["1m", "10m"],
                "aggregates": ["count", "sum", "ratio_to_mean"],
            },
            {
                "prefix": "terminal",
                "key": "terminal",
                "value": "amount",
                "windows": ["10m"],
                "aggregates": ["count", "mean"],
            },
            {
                "prefix": "rate",
                "key": "terminal",
                "stream": "labels",
                "value": "fraud",
                "windows": ["1h"],
                "delay": "1m",
                "aggregates": ["count", "mean"],
            },
        ],
    },
}
SCHEMA = Schema.model_validate(DOCUMENT)
ONE_KEY = Schema.model_validate(
    {k: v for k, v in DOCUMENT.items() if k != "labels"}
    | {"features": DOCUMENT["features"] | {"windows": DOCUMENT["features"]["windows"][:1]}}
)
"""The same with one stage, which is the last too."""


def micro_batch(bucket: int, records: list[bytes], first_offset: int) -> tuple[int, str]:
    """What the JVM makes of records; see ``split_batch``."""
    frames = [
        f"0 {first_offset + i} {KAFKA_MS} {len(r)} {r.decode('latin-1')}"
        for i, r in enumerate(records)
    ]
    return bucket, " ".join(frames)


def offsets_of(element: tuple[int, str]) -> list[int]:
    """The offsets of the records in a micro-batch."""
    rest, offsets = element[1], []
    while rest:
        _, offset, _, length, rest = rest.split(" ", 4)
        offsets.append(int(offset))
        rest = rest[int(length) + 1 :]
    return offsets


def a_record(rng: random.Random, number: int, card: str) -> bytes:
    document = {
        "id": f"e{number}",
        "t": KAFKA_MS - 600_000 + number * 1_000 - rng.choice([0, 0, 0, 30_000]),
        "card": card,
        "terminal": f"t{rng.randrange(6)}",
        "kind": rng.choice(["CP", "CNP"]),
        "amount": rng.choice([0.01, 5.0, 99.9, 1e9]),
    }
    if rng.random() < 0.5:
        document["lat"] = 48.5
    return json.dumps(document).encode()


def raw_batches(seed: int, *, batches: int = 14, rows: int = 9) -> list[tuple[int, list[bytes]]]:
    """Buckets and their records: bad ones, repeats and conflicts among the good ones."""
    rng = random.Random(seed)
    sent: dict[int, list[bytes]] = {bucket: [] for bucket in BUCKETS}
    result = []
    for step in range(batches):
        bucket = BUCKETS[step % 2]
        records = []
        for row in range(rows):
            card = f"c{bucket}-{rng.randrange(4)}"
            record = a_record(rng, step * rows + row, card)
            kind = rng.random()
            if kind < 0.1:
                record = rng.choice(
                    [b"", b"\xff\x1e\xfe", b" 0 9 1 2 {} ", record[:-3], b'{"id":"x"}']
                )
            elif kind < 0.25 and sent[bucket]:
                record = rng.choice(sent[bucket])
            elif kind < 0.3 and sent[bucket]:
                record = rng.choice(sent[bucket]).replace(b'"kind"', b'"extra": 1, "kind"')
            else:
                sent[bucket].append(record)
            records.append(record)
        result.append((bucket, records))
    return result


def events(seed: int = 1) -> list[Any]:
    """The first stage's input, with batches of which nothing is left to score."""
    batches = raw_batches(seed)
    bucket, records = batches[0]
    batches.insert(6, (bucket, [r for r in records if r.startswith(b'{"id": "e')][:3]))  # repeats
    batches.insert(9, (bucket, [b"", b"nonsense"]))
    batches.insert(11, (bucket, []))
    return [micro_batch(b, r, 100 * n) for n, (b, r) in enumerate(batches)]


def labels(seed: int = 1) -> list[Any]:
    rng = random.Random(seed)
    result = []
    for step in range(8):
        records = [
            json.dumps(
                {
                    "id": f"e{rng.randrange(40)}",
                    "t": KAFKA_MS - 600_000 + rng.randrange(40) * 1_000,
                    "terminal": f"t{rng.randrange(6)}",
                    "fraud": rng.randrange(2),
                }
            ).encode()
            for _ in range(5)
        ]
        if step % 3 == 1:
            records[rng.randrange(5)] = b'{"id": "late", "fraud": 2}'
        result.append(micro_batch(BUCKETS[0], [] if step == 5 else records, 100 * step))
    return result


def scored(seed: int = 1) -> list[Any]:
    """Scores of some cards, late ones and fallbacks among them."""
    rng = random.Random(seed)
    batches = []
    for step in range(24):
        n = rng.randrange(1, 9)
        times = [KAFKA_MS + 20_000 * step - rng.choice([0, 0, 30_000, 90_000]) for _ in range(n)]
        values = [rng.choice([0.1, 0.7, 0.9, float("nan")]) for _ in range(n)]
        batch = ScoredBatch(
            [f"c{rng.randrange(3)}" for _ in range(n)],
            np.array(times),
            np.array([(0, 100 * step + row) for row in range(n)]),
            np.array(values),
            np.full(n, 0.5),
            np.full(n, -1),
            np.zeros(n),
            {0: b'[{"feature":"amount","value":1.5,"contribution":0.5}]'},
        )
        batches.append((BUCKETS[step % 2], batch))
    return batches


def feedback(seed: int) -> list[Any]:
    """Impressions, what was shown of them and clicks, of the events and the impressions topic."""
    rng = random.Random(seed)
    elements, offset = [], 0
    for batch in range(12):
        records = []
        for _ in range(6):
            time_ms = KAFKA_MS + 300 * batch + rng.randrange(600)
            request_id = f"r{rng.randrange(2 * batch + 2)}"
            kind = rng.choice(["impression", "shown", "click", "purchase", "request"])
            document = {"kind": kind, "event_time_ms": time_ms, "request_id": request_id}
            document |= {"user": "u", "item": rng.choice("abc")}
            if kind == "impression":
                document["items"] = [{"item": item, "features": [0.5]} for item in "ab"]
            records.append(json.dumps(document).encode())
        records.append(b"{")
        elements.append(micro_batch(rng.choice(BUCKETS), records, offset))
        offset += len(records)
    return elements
