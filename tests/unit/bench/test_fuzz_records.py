"""Mutations are repeatable, and reach the decoder in every way it can refuse."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

fuzz_records = pytest.importorskip("bench.fuzz_records")

from jobs import settings  # noqa: E402
from jobs.environment import ROOT  # noqa: E402
from udfs.batches.events import Decoder  # noqa: E402

EVENT = {
    "transaction_id": "t1",
    "event_time_ms": 1_735_689_600_000,
    "card_id": "c1",
    "terminal_id": "m1",
    "amount": 12.5,
    "type": "CNP",
}


def pairs(count: int) -> list[tuple[bytes | None, bytes]]:
    raw = json.dumps(EVENT).encode()
    return list(fuzz_records.mutated(iter([(b"c1", raw)] * count), 5))


def test_a_seed_gives_the_same_records() -> None:
    assert pairs(300) == pairs(300)


def test_each_record_is_accepted_or_refused() -> None:
    schema = settings.load(ROOT / "conf" / "fraud.yaml").schema_
    decoder = Decoder.for_events(schema.event, schema.key_fields)
    records = [raw for _, raw in pairs(20_000)]
    positions = np.zeros((len(records), 3), np.int64)
    positions[:, 1], positions[:, 2] = np.arange(len(records)), 1_735_689_700_000
    decoded = decoder.decode(records, positions)
    out = [int(n) for part in decoded.parts for n in part.positions[:, 1]]
    out += [reject.offset for reject in decoded.rejects]
    assert sorted(out) == list(range(len(records)))
    codes = Counter(reject.code for reject in decoded.rejects)
    assert {"not_json", "not_utf8", "missing_field", "wrong_type", "bad_key", "bad_time"} <= {
        *codes
    }
    assert 0.1 < len(decoded.rejects) / len(records) < 0.9
