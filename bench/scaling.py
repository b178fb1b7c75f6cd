"""What an event costs on a cluster, by CPU time: the unit costs of ``streamscore plan``.

A job with an embedded model runs on one TaskManager at steady rates. In thread mode Python runs in
its task's thread, so the threads' CPU times tell it from the JVM's; unlike a throughput they hardly
depend on what else the machine does. Two rates give the cost of an event and of a batch; at two
others the model is compared with what is measured. Further: the same with more keys, and a
savepoint's size and time by the state. `--write` writes conf/costs.yaml.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from bench.cluster_lab import Writer, events
from bench.common import BENCH, BenchError, machine, say, write_document
from jobs import settings as job_settings
from jobs.cluster import savepoints, submission
from jobs.cluster.plan import COSTS, Costs, python_load
from jobs.cluster.standalone import StandaloneCluster
from jobs.environment import ROOT
from jobs.kafka_topics import create_topics, partitions_of
from jobs.runner import RunningJob
from jobs.stack import KafkaBroker

CONF = ROOT / "conf" / "fraud.yaml"
FITTED = (500, 4_000)
CHECKED = (1_500, 2_500)
_PYTHON = ("features by", "labels")
_TICKS = os.sysconf("SC_CLK_TCK")
_SETTLE_S = 5.0


def thread_seconds(pid: int) -> Counter[str]:
    """CPU seconds of a process so far: ``python``, of the tasks that run it, and ``jvm``."""
    found: Counter[str] = Counter()
    for folder in Path(f"/proc/{pid}/task").iterdir():
        try:
            name = (folder / "comm").read_text()
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        kind = "python" if name.startswith(_PYTHON) else "jvm"
        if name.startswith(("C1 ", "C2 ")):
            kind = "compiler"  # it ends
        found[kind] += (int(fields[11]) + int(fields[12])) / _TICKS
    return found


def at_rate(writer: Writer, job: RunningJob, pid: int, rate: float, seconds: float) -> Counter[str]:
    """CPU seconds a second at a rate, and the events counted meanwhile (``events``)."""
    with writer.at(rate):
        time.sleep(_SETTLE_S)
        before, count, start_s = thread_seconds(pid), _counted(job), time.monotonic()
        time.sleep(seconds)
        took_s = time.monotonic() - start_s
        spent = thread_seconds(pid) - before
        spent["events"] = _counted(job) - count
    return Counter({name: value / took_s for name, value in spent.items()})


def _counted(job: RunningJob) -> int:
    return job.counts(["events"])["events"]


def measure(folder: Path, keys: int, seconds: float) -> dict[str, Any]:
    """All points with so many keys."""
    with KafkaBroker(folder / "kafka") as broker:
        overrides = {
            "kafka.bootstrap_servers": broker.bootstrap,
            "model.embedded": True,
            "batch.buckets": 1,
            "topics.partitions": 1,
            "flink.checkpoint_interval": "1h",
            "flink.checkpoint_dir": str(folder / "checkpoints"),
        }
        settings = job_settings.load(CONF, overrides)
        create_topics(broker.bootstrap, partitions_of(settings.topics))
        cluster = StandaloneCluster(folder / "cluster")
        try:
            cluster.up(1, 1)
            package = submission.make_package(cluster, CONF, overrides)
            job = submission.submit_session(settings, package, cluster, progress=say)
            pid = cluster.running().processes["tm-0"].pid
            writer = Writer(settings, events(keys, seed=1))
            writer.write(keys)
            writer.flush()
            while _counted(job) < keys:
                time.sleep(0.5)
            points = {
                rate: dict(at_rate(writer, job, pid, rate, seconds)) for rate in FITTED + CHECKED
            }
            _check_kept_up(points)
            start_s = time.monotonic()
            taken = savepoints.take(job, savepoints.folder_of(settings))
            took_s = time.monotonic() - start_s
            size = sum(f.stat().st_size for f in savepoints.local(taken).rglob("*") if f.is_file())
            return {
                "keys": keys,
                "events": _counted(job),
                "points": points,
                "savepoint_bytes": size,
                "savepoint_s": took_s,
                "batches_s": _batches(settings),
            }
        finally:
            cluster.down()


def _check_kept_up(points: Mapping[float, Mapping[str, float]]) -> None:
    """A job that is starved has a backlog: its events are then not those of the rate."""
    for rate, point in points.items():
        if not 0.9 * rate < point["events"] < 1.1 * rate:
            raise BenchError(
                f"{point['events']:,.0f} events/s were processed, {rate:,} written: the machine is "
                "too busy to tell a cost"
            )


def _batches(settings: job_settings.Settings) -> float:
    """Micro-batches a second of all stages, of one bucket that always has events."""
    return len(settings.schema_.stages) * 1_000 / settings.batch.window


def fitted(found: Mapping[str, Any], bytes_of: Mapping[str, float]) -> Costs:
    """The unit costs by the two rates that are fitted to."""
    low, high = (found["points"][rate] for rate in FITTED)
    python = (high["python"] - low["python"]) / (high["events"] - low["events"])
    jvm = (high["jvm"] - low["jvm"]) / (high["events"] - low["events"])
    batch = (low["python"] - python * low["events"]) / found["batches_s"]
    return Costs(
        python_us=round(1e6 * python, 2),
        jvm_us=round(1e6 * jvm, 2),
        batch_us=round(1e6 * max(0.0, batch), 1),
        state_bytes=round(found["savepoint_bytes"] / found["events"] / 2, 1),
        checkpoint_bytes_s=round(found["savepoint_bytes"] / found["savepoint_s"]),
        columns=len(job_settings.load(CONF).schema_.columns),
        utilization=0.6,
        measured={
            **machine(),
            "load": [round(x, 1) for x in os.getloadavg()],
            "command": "python -m bench.scaling --write",
        },
        **bytes_of,
    )


def checked(found: Mapping[str, Any], costs: Costs) -> list[dict[str, float]]:
    """Cores of Python by the model and as measured, at the rates that were not fitted to."""
    rows = []
    for rate in CHECKED:
        point = found["points"][rate]
        modelled = python_load(costs, costs.columns, point["events"], found["batches_s"])
        rows.append({"rate": point["events"], "measured": point["python"], "modelled": modelled})
    return rows


def main() -> None:
    """Measure, compare, and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, nargs="+", default=[10_000])
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--write", action="store_true", help="write conf/costs.yaml")
    chosen = parser.parse_args()
    BENCH.mkdir(parents=True, exist_ok=True)
    found = []
    for keys in chosen.keys:
        with tempfile.TemporaryDirectory(dir=BENCH) as folder:
            found.append(measure(Path(folder).absolute(), keys, chosen.seconds))
        say(f"{keys:,} keys: {found[-1]}")
    costs = fitted(found[0], {"event_bytes": 150.0, "prediction_bytes": 1_250.0})
    rows = checked(found[0], costs)
    for row in rows:
        say(f"not fitted to: {row}")
    write_document(BENCH / "scaling.json", {"measured": found, "checked": rows})
    text = yaml.safe_dump(costs.__dict__, sort_keys=False)
    say(text)
    if chosen.write:
        COSTS.write_text(f"# Written by: python -m bench.scaling --write\n{text}")


if __name__ == "__main__":
    main()
