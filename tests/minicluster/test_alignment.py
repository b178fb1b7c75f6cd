"""With a backlog, partitions are read in step: events do not come late to each other."""

from __future__ import annotations

import time
from typing import Any

import orjson
import pytest

from tests.support.fixtures import MakeSettings
from tests.support.kafka import Record, Traffic
from tests.support.running import running

pytestmark = [pytest.mark.minicluster, pytest.mark.kafka, pytest.mark.timeout(300)]

PARTITIONS = 4
EVENTS = 40_000
STEP_MS = 100


def backlog(start_ms: int) -> list[Record]:
    """An hour of events, spread unevenly over the partitions."""
    records = []
    for n in range(EVENTS):
        row: dict[str, Any] = {
            "transaction_id": f"t{n}",
            "event_time_ms": start_ms + n * STEP_MS,
            "card_id": f"c{n % 200}",
            "terminal_id": f"m{n % 90}",
            "amount": 5.0,
            "type": "CP",
        }
        partition = n * 2654435761 % 7 % PARTITIONS
        records.append(Record(partition, f"c{n % 200}".encode(), orjson.dumps(row)))
    return records


def late_share(settings: Any, traffic: Traffic) -> float:
    with running(settings):
        traffic.wait_accounted(240)
    found = traffic.outputs["predictions"]
    assert len(found) == EVENTS
    return sum("late" in out.document for out in found) / EVENTS


def test_a_backlog_is_read_in_step(make_settings: MakeSettings) -> None:
    """Not to the last event: a partition that stands still for long enough is not waited for."""
    shares = {}
    for align in ("off", "event_time"):
        start_ms = time.time_ns() // 1_000_000 - EVENTS * STEP_MS - 3_600_000
        settings = make_settings(
            {
                "model.embedded": True,
                "topics.partitions": PARTITIONS,
                "event.time.allowed_lateness": "20m",
                "kafka.align": align,
                "kafka.align_drift": "1m",
            }
        )
        with Traffic(settings) as traffic:
            traffic.send(*backlog(start_ms))
            shares[align] = late_share(settings, traffic)
    assert shares["event_time"] < shares["off"], shares
