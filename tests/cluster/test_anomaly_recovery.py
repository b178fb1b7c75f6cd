"""A TaskManager of the machines' job is killed: no window is lost, wrong, or told as two alerts."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from jobs.settings import load
from tests.support.episode_oracle import counted
from tests.support.fixtures import own_overrides
from tests.support.flink_cluster import FlinkCluster
from tests.support.job_process import JobProcess
from tests.support.kafka import Out, Traffic
from tests.support.machines import IOT, arrivals, record_of, trained
from tests.support.running import restarts, wait_checkpoint
from tests.support.waiting import wait_until
from tests.support.windows import Recomputed
from udfs.alerting.hysteresis import Rules, Score

pytestmark = [pytest.mark.cluster, pytest.mark.kafka, pytest.mark.timeout(300)]

MACHINES, SECONDS = 8, 300
PARTITIONS = 4
RULES = Rules(2, 3, 1)
THRESHOLD = 0.5  # of the windows of this random input, about half are above


def overrides_of(bootstrap: str, folder: Path) -> dict[str, Any]:
    """Windows close by their machines' own readings alone, so that a recount can know them."""
    return own_overrides(bootstrap, trained(folder / "models"), folder) | {
        "topics.partitions": PARTITIONS,
        "rollup.idle": "10m",
        "rollup.overdue": None,
        "rollup.silent_after": "20m",
        "alerts.threshold": THRESHOLD,
        "batch.buckets": 2,
        "flink.parallelism": 2,
        "flink.checkpoint_interval": "1s",
        "flink.restart_attempts": 100,
        "flink.restart_delay": "500ms",
    }


def input_of(begin_ms: int) -> list[dict[str, Any]]:
    """Readings, and a last one of each machine that closes all windows before it."""
    sent = [*arrivals(MACHINES, SECONDS, begin_ms)]
    at_ms = begin_ms + 1_000 * (SECONDS + 60)
    lasts = {one["machine"]: one for one in sent}.values()
    return sent + [one | {"reading": f"last-{one['machine']}", "at_ms": at_ms} for one in lasts]


def test_a_killed_task_manager(bootstrap: str, tmp_path: Path) -> None:
    overrides = overrides_of(bootstrap, tmp_path)
    settings = load(IOT, overrides)
    sent = input_of(time.time_ns() // 1_000_000 - 1_000 * (SECONDS + 61))
    records = [record_of(one, PARTITIONS) for one in sent]
    expected = Recomputed(settings, pd.DataFrame(sent))
    closed = {w for w, of in expected.windows.items() if of["closed_by"] == "time"}
    assert len(expected.windows) - len(closed) == MACHINES, "those of the last readings are open"
    with (
        FlinkCluster(tmp_path / "flink", task_managers=2, slots=2) as cluster,
        Traffic(settings) as traffic,
        JobProcess(
            overrides, tmp_path / "job.log", tmp_path, cluster.rest.address, "iot.yaml"
        ) as process,
    ):
        job = process.job
        assert cluster.task_managers_of(job.job_id) == {"tm-0", "tm-1"}
        third = len(records) // 3
        traffic.send(*records[:third])
        traffic.poll_until(lambda: len(ids(traffic)) > len(closed) // 5, 120)
        wait_checkpoint(job)
        traffic.send(*records[third : 2 * third])
        before = len(ids(traffic))
        traffic.poll_until(lambda: len(ids(traffic)) > before, 60)
        cluster.kill("tm-0")
        traffic.send(*records[2 * third :])
        wait_until(lambda: restarts(job) > 0, 120, "a restart")
        traffic.poll_until(lambda: ids(traffic) >= closed, 120)
        assert cluster.task_managers_of(job.job_id) == {"tm-1"}
        wait_checkpoint(job)  # the alerts of the last windows are written by then
        process.stop()
        traffic.read_to_end()
    outs = traffic.outputs["predictions"]
    assert ids(traffic) == closed, "every window, and no other"
    expected.check(outs)
    check_accounts(traffic, expected, len(sent))
    check_alerts(outs, traffic.outputs["alerts"])


def ids(traffic: Traffic) -> set[str]:
    return {out.document["event_id"] for out in traffic.outputs["predictions"]}


def check_accounts(traffic: Traffic, expected: Recomputed, sent: int) -> None:
    """Every reading is in one window, a duplicate or a dead letter; repeats count once."""
    readings = {
        out.document["event_id"]: out.document["window"]["readings"]
        for out in traffic.outputs["predictions"]
    }
    refused = {out.place: out.document["code"] for out in traffic.outputs["dead_letters"]}
    repeats = {out.place for out in traffic.outputs["duplicates"]}
    assert Counter(refused.values()) == expected.codes
    assert len(repeats) == expected.duplicates
    open_ones = MACHINES  # the last reading of each
    assert sum(readings.values()) + len(refused) + len(repeats) + open_ones == sent


def check_alerts(outs: Iterable[Out], alerts: Iterable[Out]) -> None:
    """Each episode is told under one id, and its last revision is what its scores give."""
    scores: dict[str, dict[int, Score]] = defaultdict(dict)
    for out in outs:
        at_ms, value = out.document["event_time_ms"], out.document["score"]
        partition, offset = out.place
        known = scores[out.document["key"]]
        score = Score(at_ms, partition, offset, value, THRESHOLD)
        assert known.setdefault(at_ms, score) == score, "a window is scored the same again"
    wanted = {
        (f"{machine}@{episode.start_ms}", episode.closed_ms, episode.events)
        for machine, known in scores.items()
        for episode in counted([*known.values()], RULES)
        if episode.closed_ms is not None
    }
    told: dict[str, dict[str, Any]] = {}
    for out in alerts:
        document = {k: v for k, v in out.document.items() if k != "told_time_ms"}
        known_as = told.setdefault(document["alert_id"], document)
        assert known_as == document, "what is told again is the same"
    opened = Counter(d["episode_id"] for d in told.values() if d["state"] == "open")
    assert opened and set(opened.values()) == {1}, "one opening of each episode"
    found = {
        (d["episode_id"], d["closed_ms"], d["events"])
        for d in told.values()
        if d["state"] == "closed"
    }
    assert found == wanted and wanted
