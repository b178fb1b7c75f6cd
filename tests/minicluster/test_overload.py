"""Too much for a slow model server: low-priority events are shed, each record is accounted for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import orjson
import pytest

from jobs.running_job import RunningJob
from tests.support.checks import check_accounts, check_schemas
from tests.support.fixtures import MakeSettings
from tests.support.kafka import Record, Traffic
from tests.support.running import restarts, running
from tests.support.servers import FaultyServerProcess
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.minicluster, pytest.mark.kafka, pytest.mark.timeout(300)]

PER_S = 1_500
"""Three times what the busy server answers."""

SHED = 400
_TICK_S = 0.02


def records() -> Iterator[Record]:
    """A tenth is of high priority; some are repeated, some are no JSON."""
    for n in count():
        row = {
            "transaction_id": f"t{n}",
            "event_time_ms": time.time_ns() // 1_000_000,
            "card_id": f"c{n % 50}",
            "terminal_id": f"m{n % 20}",
            "amount": 100.0 if n % 10 == 0 else 5.0,
            "type": "CP",
        }
        record = Record(n % 4, str(row["card_id"]).encode(), orjson.dumps(row))
        yield record
        if n % 100 == 0:
            yield record
        if n % 100 == 50:
            yield record._replace(value=b"no json")


def test_high_priority_is_scored_and_the_rest_is_accounted_for(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    with FaultyServerProcess(tmp_path / "server.log") as server:
        settings = make_settings(
            {
                "model.server": f"127.0.0.1:{server.port}",
                "model.deadline": "10s",
                "alerts.explain": False,
                "topics.shed": "test-overload-shed",
                "overload.low_priority": "amount < 50 and type == 'CP'",
                "overload.calm": "300ms",
                "overload.warm_up": "5s",
                "overload.lag": {"enter": "500ms", "leave": "250ms"},
                "batch.buckets": 1,
                "batch.max_rows": 64,
            }
        )
        with Traffic(settings) as traffic, running(settings) as job:
            source = records()
            traffic.send(*(next(source) for _ in range(10)))
            traffic.wait_accounted()
            assert not traffic.outputs["shed"]
            server.behave("busy")
            _overload(traffic, source)
            traffic.wait_accounted()
            # Flink's metrics are some seconds old: an end is one only after a beginning was seen.
            wait_until(lambda: job.counts(["shedding"]) == {"shedding": 1}, 30, "the shedding")
            server.behave("well")
            shed = traffic.outputs["shed"][0]
            again = traffic.sent[shed.place]
            wait_until(lambda: _is_calm(traffic, source, job), 60, "the end of the shedding")
            (place,) = traffic.send(again)
            traffic.wait_accounted()
            told = {"shed": len(traffic.outputs["shed"])}
            wait_until(lambda: job.counts(["shed"]) == told, 30, "the counter of shed events")
            assert restarts(job) == 0
        check_accounts(traffic)
        check_schemas(traffic.outputs)
        predicted = {out.document["event_id"] for out in traffic.outputs["predictions"]}
        assert {f"t{n}" for n in range(0, 2 * SHED, 10)} <= predicted
        assert not [o for o in traffic.outputs["shed"] if int(o.document["event_id"][1:]) % 10 == 0]
        assert not [o for o in traffic.outputs["predictions"] if o.document["fallback_reason"]]
        # It left no trace in the features: sent again, it is an event like any other.
        assert place in traffic.predictions()
        assert shed.document["event_id"] in predicted


def _overload(traffic: Traffic, source: Iterator[Record]) -> None:
    """Send at a steady rate, whatever becomes of it, until so many are shed."""
    began_s, sent = time.monotonic(), 0
    while len(traffic.outputs["shed"]) < SHED:
        due = int((time.monotonic() - began_s) * PER_S)
        assert due < 60 * PER_S, "nothing was shed"
        traffic.send(*(next(source) for _ in range(due - sent)))
        sent = due
        traffic.poll(_TICK_S)


def _is_calm(traffic: Traffic, source: Iterator[Record], job: RunningJob) -> bool:
    """Whether shedding has ended; it takes notice of events only."""
    traffic.send(next(source))
    traffic.poll()
    return job.counts(["shedding"]) == {"shedding": 0}
