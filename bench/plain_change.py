"""A job changed by hand: what a user does with Flink's own commands and nothing else."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.common import BenchError
from jobs import settings as job_settings
from jobs.cluster import client, savepoints, submission
from jobs.cluster.standalone import StandaloneCluster
from jobs.cluster.submission import JobRecord
from jobs.running_job import RunningJob

_STOP_S = 120.0
_RUN_S = 180.0


def plain_change(
    cluster: StandaloneCluster,
    conf: Path,
    overrides: Mapping[str, Any],
    code: Path,
    *,
    new_processes: bool,
) -> dict[str, float]:
    """Stop the job by ``flink stop`` and start it again by ``flink run``; the seconds of each step.

    Args:
        cluster: Where it runs.
        conf: Its settings file.
        overrides: Over it.
        code: The folder with the code to run.
        new_processes: Whether the TaskManagers are replaced meanwhile, as other code needs.
    """
    settings, seconds = job_settings.load(conf, overrides), {}
    record = JobRecord.read(cluster, settings.name)
    package = submission.make_package(cluster, conf, overrides, code)
    start_s = time.monotonic()
    place = savepoints.folder_of(settings)
    said = _flink(cluster, code, ["stop", "--savepointPath", place, record.job_id], _STOP_S)
    (savepoint,) = re.findall(r"Path: (\S+)", said)
    seconds["flink stop"] = time.monotonic() - start_s
    if new_processes:
        start_s, names = time.monotonic(), cluster.running().task_managers
        cluster.stop_task_managers(names)
        cluster.add_task_managers(len(names), package.code)
        cluster.wait_complete(cluster.running())
        seconds["other TaskManagers"] = time.monotonic() - start_s
    start_s = time.monotonic()
    words = ["run", "-d", "-s", savepoint, *client.entry_words(package)]
    (job_id,) = re.findall(r"JobID (\w{32})", _flink(cluster, package.code, words, _RUN_S))
    seconds["flink run"] = time.monotonic() - start_s
    RunningJob(job_id, cluster.rest).wait_running()
    replace(record, job_id=job_id, package=package, savepoint=savepoint).write(cluster)
    return {name: round(value, 2) for name, value in seconds.items()}


def _flink(cluster: StandaloneCluster, code: Path, words: list[str], timeout_s: float) -> str:
    done = subprocess.run(
        [client.flink_command(), *words],
        env=client.environment(cluster, code),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    if done.returncode:
        raise BenchError(f"flink {words[0]} failed: {(done.stdout + done.stderr)[-500:]}")
    return done.stdout
