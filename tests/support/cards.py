"""Card transactions of the demo as records: in disorder, repeated, contradicted, spoilt."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import orjson
import pandas as pd

from jobs.demo.data import event_json, label_json
from tests.support.kafka import Record

MINUTE_MS = 60_000
DAY_MS = 24 * 60 * MINUTE_MS


def _with(document: dict[str, Any], **changes: Any) -> bytes:
    return orjson.dumps(document | changes)


def _without(document: dict[str, Any], name: str) -> bytes:
    return orjson.dumps({k: v for k, v in document.items() if k != name})


SPOIL: dict[str, list[Callable[[bytes], bytes]]] = {
    "not_json": [lambda raw: raw[:-7], lambda raw: b"hello " + raw],
    "not_utf8": [lambda raw: raw.replace(b'"c', b'"\xff\xfe', 1)],
    "missing_field": [
        lambda raw: _without(json.loads(raw), "amount"),
        lambda raw: _with(json.loads(raw), card_id=None),
    ],
    "wrong_type": [
        lambda raw: _with(json.loads(raw), amount="12.50"),
        lambda raw: _with(json.loads(raw), event_time_ms=True),
    ],
    "out_of_range": [
        lambda raw: _with(json.loads(raw), amount=-0.01),
        lambda raw: _with(json.loads(raw), amount=1e7),
        lambda raw: _with(json.loads(raw), billing_lat=90.5),
    ],
    "bad_time": [
        lambda raw: _with(json.loads(raw), event_time_ms=946_684_799_999),
        lambda raw: _with(json.loads(raw), event_time_ms=32_503_680_000_000),
    ],
    "bad_key": [lambda raw: _with(json.loads(raw), terminal_id="")],
    "not_an_object": [lambda raw: b"[" + raw + b"]"],
    "empty": [lambda raw: b"", lambda raw: b"  "],
}
"""Ways to spoil an event's JSON, by the code that its dead letter must have."""


class Mixture:
    """The transactions of a frame in event-time order, disturbed.

    Attributes:
        records: In the order in which they are to be written.
        clock_ms: When each of them comes, as event time plus its own delay; it never goes back.
        spoilt: The code that each spoilt record must get, by its bytes and key.
        repeats: How many records repeat another one exactly.
        conflicts: How many records contradict another one of the same id.
    """

    def __init__(
        self, frame: pd.DataFrame, *, seed: int, partitions: int, disorder_ms: int, each: int
    ) -> None:
        chance = random.Random(seed)
        self.spoilt: dict[tuple[bytes | None, bytes | None], str] = {}
        self.repeats = self.conflicts = each
        pairs = list(event_json(frame))
        times = frame["event_time_ms"].tolist()
        entries = [(time_ms, *pair) for time_ms, pair in zip(times, pairs, strict=True)]
        chosen = chance.sample(range(len(entries)), 3 * each)
        extra = [entries[row] for row in chosen[:each]]
        for row in chosen[each : 2 * each]:
            time_ms, key, raw = entries[row]
            document = json.loads(raw)
            extra.append((time_ms, key, _with(document, amount=document["amount"] + 1)))
        for number, row in enumerate(chosen[2 * each :]):
            extra.append(self._spoil(entries[row], number, chance))
        placed = sorted(
            (entry[0] + chance.uniform(0, disorder_ms), n, entry)
            for n, entry in enumerate(entries + extra)
        )
        self.clock_ms = np.array([clock_ms for clock_ms, *_ in placed])
        self.records = [
            Record(chance.randrange(partitions), key, raw) for _, _, (_, key, raw) in placed
        ]

    def needed(self, behind_ms: int) -> Callable[[int], int]:
        """For ``Traffic.pump``: a record waits for those that come that much before it."""
        first = np.searchsorted(self.clock_ms, self.clock_ms - behind_ms)
        return lambda number: int(first[number])

    def _spoil(
        self, entry: tuple[int, bytes, bytes], number: int, chance: random.Random
    ) -> tuple[int, bytes, bytes]:
        code = list(SPOIL)[number % len(SPOIL)]
        time_ms, _, raw = entry
        bad = chance.choice(SPOIL[code])(raw)
        key = f"spoilt-{number}".encode()
        self.spoilt[key, bad] = code
        return time_ms, key, bad


def partition_of(key: bytes, partitions: int) -> int:
    """A partition that depends on the key alone."""
    return sum(key) % partitions


def event_records(frame: pd.DataFrame, partitions: int) -> list[Record]:
    """The events of a frame; those of a card all in one partition, hence in order."""
    return [Record(partition_of(key, partitions), key, raw) for key, raw in event_json(frame)]


def label_records(frame: pd.DataFrame, partitions: int) -> list[Record]:
    """The labels of a frame; those of a terminal all in one partition, hence in order."""
    return [Record(partition_of(key, partitions), key, raw) for key, raw in label_json(frame)]


def corrections(frame: pd.DataFrame, seed: int, count: int) -> pd.DataFrame:
    """Some of a frame's rows with the other label."""
    rows = np.sort(np.random.default_rng(seed).choice(len(frame), count, replace=False))
    chosen = frame.iloc[rows]
    return chosen.assign(is_fraud=1 - chosen["is_fraud"])


def documents(records: Iterable[Record]) -> list[dict[str, Any]]:
    """The JSON of records."""
    return [json.loads(record.value or b"") for record in records]
