"""A job that stops at the end of its topic has scored all of it."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

import orjson
import pytest

from jobs import runner
from tests.support.checks import check_accounts
from tests.support.fixtures import MakeSettings
from tests.support.kafka import Record, Traffic
from tests.support.servers import ModelServerProcess
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.minicluster, pytest.mark.kafka, pytest.mark.timeout(300)]

EVENTS = 3_000


def records(partitions: int) -> list[Record]:
    """Of partitions, the last stays empty."""
    now_ms = time.time_ns() // 1_000_000
    rows = [
        {
            "transaction_id": f"t{n}",
            "event_time_ms": now_ms - EVENTS + n,
            "card_id": f"c{n % 7}",
            "terminal_id": f"m{n % 3}",
            "amount": 5.0,
            "type": "CP",
        }
        for n in range(EVENTS)
    ]
    return [
        Record(int(str(row["card_id"])[1:]) % (partitions - 1), b"c", orjson.dumps(row))
        for row in rows
    ]


@pytest.mark.parametrize("embedded", [True, False], ids=["embedded", "served"])
def test_nothing_is_lost_at_the_end(
    embedded: bool, make_settings: MakeSettings, models: Path, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        overrides = {
            "model.embedded": embedded,
            "model.deadline": "10s",
            "batch.buckets": 1,
            "kafka.stop_at_end": True,
            "kafka.keyed_by_record_key": False,
            "topics.partitions": 4,
        }
        if not embedded:
            server = stack.enter_context(ModelServerProcess(models, tmp_path / "server.log"))
            overrides["model.server"] = f"127.0.0.1:{server.port}"
        settings = make_settings(overrides)
        traffic = stack.enter_context(Traffic(settings))
        traffic.send(*records(settings.topics.partitions))
        job = runner.start(settings)
        stack.callback(job.cancel)
        wait_until(lambda: job.state() in ("FINISHED", "FAILED"), 120, "the job's end")
        assert job.state() == "FINISHED", job.failure()
        traffic.read_to_end()
    check_accounts(traffic)
    assert len(traffic.outputs["predictions"]) == EVENTS
    assert not traffic.outputs["dead_letters"]
