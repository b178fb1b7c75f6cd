"""Something fails in the middle of the stream; the outputs must show that nothing was lost.

What the job wrote after it was restored is compared with a recomputation over the whole input, so a
history that had lost an event, or counted one twice, would show. The input's order is fixed per key
(see each test), so an output that is repeated must be the same in every value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from jobs.running_job import RunningJob
from jobs.settings import load
from tests.support import cards
from tests.support.checks import Model, check_features, check_schemas, check_scores
from tests.support.fixtures import CONFIG, own_overrides
from tests.support.flink_cluster import FlinkCluster
from tests.support.held import Switch
from tests.support.job_process import JobProcess
from tests.support.kafka import Out, Place, Record, Traffic
from tests.support.monitoring import flinks_metrics, reported
from tests.support.running import learn, restarts, wait_checkpoint
from tests.support.servers import ModelServerProcess
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.kafka, pytest.mark.timeout(600)]

EVENTS = 6_000
BEFORE_THE_FAULT = 2_000
IN_FLIGHT = 100
AFTER_A_CHECKPOINT = 200
AHEAD = 400  # of what is written, this many may have no output yet
BACKLOG = 2_500  # written while the job is down


def strike(
    traffic: Traffic,
    job: RunningJob,
    switch: Switch,
    records: Sequence[Record],
    hit: Callable[[], None],
) -> None:
    """Write the events; hit after enough predictions, and more of them since the last checkpoint.

    That checkpoint holds batches whose calls were open: the restored job must ask for them again,
    and for those that came after it.
    """
    done = BEFORE_THE_FAULT
    pump(traffic, records[:done], AHEAD)
    while True:
        traffic.wait_accounted()
        switch.hold()
        pump(traffic, records[done : done + IN_FLIGHT], IN_FLIGHT)
        done += IN_FLIGHT
        wait_until(lambda: events(job) == done, 60, "all are on their way")  # noqa: B023
        wait_checkpoint(job)
        seen = job.checkpoints_completed()
        assert len(traffic.accounted) == done - IN_FLIGHT
        switch.let_go()
        pump(traffic, records[done : done + AFTER_A_CHECKPOINT], AFTER_A_CHECKPOINT // 4)
        done += AFTER_A_CHECKPOINT
        enough = len(traffic.accounted) >= done - AFTER_A_CHECKPOINT // 2
        if enough and job.checkpoints_completed() == seen:
            break
        assert done < len(records) - BACKLOG, "no moment between two checkpoints was found"
    hit()
    pump(traffic, records[done:], BACKLOG)
    wait_until(lambda: restarts(job) > 0, 120, "a restart")
    traffic.wait_accounted()


def events(job: RunningJob) -> int:
    return job.counts(["events"])["events"]


def pump(traffic: Traffic, records: Sequence[Record], ahead: int) -> None:
    traffic.pump(records, lambda number: max(0, number + 1 - ahead))


def check(traffic: Traffic, records: Sequence[Record], labels: pd.DataFrame, model: Model) -> None:
    """Nothing is missing or wrong, and what came more than once is the same each time."""
    outs = traffic.outputs["predictions"]
    final = traffic.predictions()
    assert final.keys() == traffic.sent.keys()
    assert len(final) == len(records)
    for out in outs:
        assert unchanging(out) == unchanging(final[out.place])
    check_schemas(traffic.outputs, every=20)
    predictions = list(final.values())
    order = written_order(traffic.sent, predictions, records)
    known = cards.documents(cards.label_records(labels, 1))
    check_features(traffic.sent, predictions, order, known)
    check_scores(model, predictions, version=1)


def unchanging(out: Out) -> tuple[bytes, dict[str, Any]]:
    """An output without what may differ when it is made again."""
    return out.key, {k: v for k, v in out.document.items() if k not in ("scored_time_ms", "order")}


def written_order(
    sent: dict[Place, Record], predictions: Sequence[Out], records: Sequence[Record]
) -> pd.DataFrame:
    """Each prediction's event by its place in what was written; the same for both keys."""
    number = {record.value: n for n, record in enumerate(records)}
    places = [number[sent[out.place].value] for out in predictions]
    return pd.DataFrame({"card_id": places, "terminal_id": places})


def settings_of(bootstrap: str, models: Path, folder: Path, **more: Any) -> dict[str, Any]:
    return own_overrides(bootstrap, models, folder) | {
        "model.deadline": "10s",
        "model.calls_in_flight": 10_000,  # while answers are held back, checkpoints go on
        "flink.options": {"metrics.fetcher.update-interval": "500 ms"},
        "flink.checkpoint_interval": "5s",
        "flink.restart_attempts": 100,
        **{name.replace("__", "."): value for name, value in more.items()},
    }


def test_a_failed_task(bootstrap: str, models: Path, demo: pd.DataFrame, tmp_path: Path) -> None:
    """With calls in flight; the process lives on.

    One partition, one subtask: every key's events come in the same order after a replay.
    """
    frame = demo[demo["terminal_id"] < "m00120"].head(EVENTS)
    records = cards.event_records(frame, 1)
    with ModelServerProcess(models, tmp_path / "server.log") as server:
        overrides = settings_of(
            bootstrap,
            models,
            tmp_path,
            model__server=f"127.0.0.1:{server.port}",
            model__rollout=str(tmp_path / "rollout.json"),
            batch__buckets=1,
            topics__partitions=1,
        )
        with (
            Traffic(load(CONFIG, overrides)) as traffic,
            JobProcess(overrides, tmp_path / "job.log", tmp_path) as process,
        ):
            learn(process.job, traffic, cards.label_records(frame, 1))
            switch = Switch(tmp_path)
            strike(traffic, process.job, switch, records, switch.fail)
            # The JobManager shows what it looked at some seconds ago.
            wait_until(lambda: "told to fail" in process.job.failure(), 60, "why it failed")
            asked = partial(process.connections, server.port)
            wait_until(lambda: asked() == 1, 30, "the failed attempt's connection is closed")
            process.stop()
            traffic.read_to_end()
            check(traffic, records, frame, Model(models / "fraud" / "1"))
            orders = {
                (o.place, *o.document["order"].values()) for o in traffic.outputs["predictions"]
            }
            assert len(orders) == len(records)  # even the order of arrival is the same


def test_a_killed_task_manager(
    bootstrap: str, models: Path, demo: pd.DataFrame, tmp_path: Path
) -> None:
    """Two subtasks on two TaskManagers, and one of them is gone.

    A card's events are in one partition and each terminal is used by one card, so their order does
    not depend on which subtask is faster.
    """
    chosen = demo[demo["terminal_id"] < "m00120"].head(EVENTS)
    terminals = chosen["card_id"] + "-" + chosen["terminal_id"].str[-1]
    frame = chosen.assign(terminal_id=terminals)
    records = cards.event_records(frame, 4)
    with (
        ModelServerProcess(models, tmp_path / "server.log") as server,
        FlinkCluster(tmp_path / "flink", task_managers=2, slots=2) as cluster,
    ):
        overrides = settings_of(
            bootstrap,
            models,
            tmp_path,
            model__server=f"127.0.0.1:{server.port}",
            batch__buckets=2,
            flink__parallelism=2,
        )
        with (
            Traffic(load(CONFIG, overrides)) as traffic,
            JobProcess(overrides, tmp_path / "job.log", tmp_path, cluster.rest.address) as process,
        ):
            learn(process.job, traffic, cards.label_records(frame, 4))
            hosts = cluster.task_managers_of(process.job.job_id)
            assert hosts == {"tm-0", "tm-1"}
            ports = cluster.metrics_ports
            wait_until(lambda: flinks_metrics() <= reported(ports), 30, "what alerts look at")
            switch = Switch(tmp_path)
            strike(traffic, process.job, switch, records, lambda: cluster.kill("tm-0"))
            assert cluster.task_managers_of(process.job.job_id) == {"tm-1"}
            process.stop()
            traffic.read_to_end()
            check(traffic, records, frame, Model(models / "fraud" / "1"))
