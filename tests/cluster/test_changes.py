"""A job on a standalone cluster of two TaskManagers is hurt and changed while events come.

Afterwards every event must have its prediction, and every feature of it must be what a replay of
the topics gives. Prints how long no prediction came.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bench.cluster_lab import Writer, accounts, changed_code, events, with_a_feature
from jobs import training
from jobs.cluster import savepoints, submission, upgrade
from jobs.cluster.inspection import inspect
from jobs.cluster.standalone import StandaloneCluster
from jobs.cluster.submission import JobRecord
from jobs.cluster.verification import Limits
from jobs.cluster.watching import PredictionWatch, gap_of, now_ms
from jobs.flink_rest import JobError
from jobs.kafka_topics import create_topics, partitions_of
from jobs.running_job import RunningJob
from jobs.settings import Settings, load
from tests.support.fixtures import CONFIG, own_overrides
from tests.support.flink_cluster import FlinkCluster
from tests.support.kafka import Traffic
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.kafka, pytest.mark.timeout(900)]

CARDS = 100_000
RATE = 300


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandaloneCluster]:
    with FlinkCluster(tmp_path_factory.mktemp("flink"), task_managers=2, slots=2) as running:
        yield running


@dataclass
class Live:
    """A job that runs while events are written."""

    overrides: dict[str, Any]
    settings: Settings
    cluster: StandaloneCluster
    writer: Writer
    watch: PredictionWatch

    @property
    def job(self) -> RunningJob:
        record = JobRecord.read(self.cluster, self.settings.name)
        return RunningJob(record.job_id, self.cluster.rest)

    def wait_scored(self, count: int) -> None:
        wait_until(lambda: self.watch.events >= count, 240, f"{count} predictions")


@contextmanager
def live(cluster: StandaloneCluster, overrides: dict[str, Any]) -> Iterator[Live]:
    """Submit a job, and stop it at the end when all events have their predictions."""
    settings = load(CONFIG, overrides)
    create_topics(settings.kafka.bootstrap_servers, partitions_of(settings.topics))
    package = submission.make_package(cluster, CONFIG, overrides)
    writer = Writer(settings, events(CARDS, seed=1))
    job = submission.submit_session(settings, package, cluster)
    with PredictionWatch(settings) as watch:
        found = Live(overrides, settings, cluster, writer, watch)
        try:
            yield found
            found.wait_scored(writer.written)
            savepoints.stop(found.job, savepoints.folder_of(settings))
        except BaseException as exc:
            exc.add_note(f"the job's last failure: {job.failure() or 'none'}")
            raise
        finally:
            found.job.cancel()


@pytest.mark.parametrize(
    "delivery", [pytest.param("at_least_once", marks=pytest.mark.long), "exactly_once"]
)
def test_a_killed_task_manager_with_100_000_keys(
    delivery: str,
    cluster: StandaloneCluster,
    bootstrap: str,
    models: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cluster.up(2, 2)
    overrides = own_overrides(bootstrap, models, tmp_path) | {
        "model.embedded": True,
        "flink.delivery": delivery,
        "flink.parallelism": 2,
        "flink.checkpoint_interval": "2s",
        "flink.restart_attempts": 100,
        "batch.buckets": 4,
    }
    with live(cluster, overrides) as running:
        running.writer.write(CARDS)
        running.writer.flush()
        running.wait_scored(CARDS)
        with running.writer.at(RATE):
            running.wait_scored(CARDS + 3 * RATE)
            hosts = cluster.task_managers_of(running.job.job_id)
            assert len(hosts) == 2
            at_ms = now_ms()
            cluster.kill(sorted(hosts)[0])
            wait_until(lambda: running.job.restarts() > 0, 120, "a restart")
            ahead = running.watch.events + 3 * RATE
            running.wait_scored(ahead)
    gap = gap_of(running.watch.seen(), at_ms)
    assert gap is not None
    recovery_s = (gap.first_after_ms - at_ms) / 1_000
    found = accounts(running.settings)
    with capsys.disabled():
        print(f"\n{delivery}: {CARDS:,} keys, first prediction after {recovery_s:.1f} s; {found}")
    assert (found.lost, found.wrong) == (0, 0)
    assert found.predictions == running.writer.written
    assert delivery == "at_least_once" or found.repeats == 0


def versions_of(settings: Settings) -> list[int]:
    """The schema version that each prediction has, in the order in which they were made."""
    with Traffic(settings) as traffic:
        traffic.read_to_end()
        documents = [out.document for out in traffic.outputs["predictions"]]
    documents.sort(key=lambda document: document["scored_time_ms"])
    return [document["schema_version"] for document in documents]


@pytest.mark.long
def test_changes_under_load(
    cluster: StandaloneCluster,
    bootstrap: str,
    models: Path,
    demo: pd.DataFrame,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A feature with other Python, a parallelism, one that goes back, one that never begins."""
    cluster.up(2, 2)
    overrides = own_overrides(bootstrap, models, tmp_path) | {
        "model.embedded": True,
        "flink.checkpoint_interval": "2s",
        "batch.buckets": 4,
    }
    new_models = tmp_path / "models"
    conf = with_a_feature(CONFIG, tmp_path / "new.yaml")
    trees = {"training.trees": 20, "model.path": str(new_models)}
    training.train(load(conf, trees), demo.head(20_000))
    new = overrides | {"model.path": str(new_models)}
    records = "udfs/batches/records.py"
    version = ("SCHEMA_VERSION = 1", "SCHEMA_VERSION = 2")
    code = changed_code(tmp_path / "new", records, *version)
    calls = ("split_batch(value)", "split_batch(value, value)")
    broken = changed_code(tmp_path / "broken", "udfs/stages/first.py", *calls)
    limits = Limits(max_psi=10)  # the models differ on purpose
    outcomes = {}
    with live(cluster, overrides) as running, running.writer.at(RATE):
        name = running.settings.name
        outcomes["feature"] = upgrade.upgrade(conf, new, cluster, limits=limits, root=code)
        outcomes["rescale"] = upgrade.rescale(name, 2, cluster, limits=limits)
        taken = savepoints.take(running.job, savepoints.folder_of(running.settings))
        refused = Limits(max_fallbacks=-1.0)
        outcomes["back"] = upgrade.rescale(name, 1, cluster, limits=refused)
        with pytest.raises(JobError, match="rehearsal"):
            upgrade.upgrade(conf, new, cluster, limits=limits, root=broken)
        assert running.job.state() == "RUNNING"
    with capsys.disabled():
        for name, outcome in outcomes.items():
            print(f"\n{name}: {outcome.gap_s} s without a prediction; {outcome.seconds}")
    found, with_new = accounts(running.settings), accounts(load(conf, new), RATE)
    assert (found.lost, found.wrong) == (0, 0), found
    assert found.predictions == running.writer.written
    assert with_new.wrong == 0, with_new
    assert not outcomes["feature"].rolled_back
    assert not outcomes["rescale"].rolled_back
    assert "fallbacks" in outcomes["back"].rolled_back
    assert versions_of(running.settings)[-1] == 2
    inspected = {operator.name: operator for operator in inspect(taken)}
    assert inspected["features by card_id"].keys["segments of the journal"] > 0
