"""`streamscore features bootstrap`: a savepoint with a history's state, for a job to begin with.

The histories are made here, by the job's own code; then a small Flink job that has the job's keyed
operators by id, and nothing else of it, puts them into its state and is stopped with a savepoint.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jobs import runner
from jobs.environment import NotReadyError
from jobs.features.history import Past
from jobs.flink_rest import JobError
from jobs.manifest import Manifest, local_folder
from jobs.running_job import RunningJob
from jobs.settings import Settings
from udfs.batches.buckets import even_labels, sql_buckets
from udfs.batches.events import IntArray
from udfs.offline.bootstrap import Bootstrap
from udfs.offline.history import Progress
from udfs.offline.state_files import write_block

_START_S = 300.0
_POLL_S = 0.2
_SILENCE_S = 120.0
"""How long no file may be loaded before the job is given up."""

_OPTIONS = {
    # Their state must not be taken for the job's own sources: ids of their own.
    "table.exec.uid.generation": "ALWAYS",
    "table.exec.uid.format": "bootstrap-<id>_<transformation>",
    "execution.checkpointing.interval": "365 d",
    "metrics.fetcher.update-interval": "500 ms",
    "restart-strategy.type": "disable",
}

_PATHS = """
SELECT bucket, path FROM (VALUES {rows}) AS files (bucket, path)
UNION ALL SELECT {bucket}, '' FROM idle
"""


@dataclass(frozen=True, slots=True)
class StateFile:
    """State of a stage's bucket, see ``state_files``."""

    stage: str
    bucket: int
    path: Path


@dataclass(frozen=True, slots=True)
class Bootstrapped:
    """A savepoint that was made.

    Attributes:
        savepoint: Its folder.
        events: Events of the history.
        repeats: Of which had an id seen before.
        refused: Records that the job would have refused.
        bytes: Size of the packed state.
        since_ms: Time of the oldest event.
        until_ms: Time of the newest event.
        seconds: What it took.
    """

    savepoint: Path
    events: int
    repeats: int
    refused: int
    bytes: int
    since_ms: int
    until_ms: int
    seconds: float


def bootstrap(settings: Settings, past: Past, out: Path, progress: Progress) -> Bootstrapped:
    """Write a savepoint that has a history in its state.

    Args:
        settings: The job's.
        past: The history.
        out: The folder the savepoint's own folder is made in.
        progress: Shown meanwhile.

    Raises:
        NotReadyError: no jars, or ``out`` cannot be written.
        JobError: the small job failed.
    """
    begun_s = time.monotonic()
    with ExitStack() as stack:
        try:
            out.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix=".streamscore-", dir=out))
        except OSError as exc:
            raise NotReadyError(f"{out} cannot be written: {exc}", "name another --out") from exc
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        made = _bootstrap_of(settings, past)
        files = _write(made, folder, progress)
        size = sum(file.path.stat().st_size for file in files)
        savepoint = local_folder(_savepoint(settings, files, out, progress))
    assert savepoint is not None, "a folder was asked for"
    times = past.events.times
    done = Bootstrapped(
        savepoint,
        len(times),
        made.made.repeats,
        past.refused,
        size,
        int(times.min()),
        int(times.max()),
        time.monotonic() - begun_s,
    )
    facts = {"since_ms": done.since_ms, "until_ms": done.until_ms, "events": made.made.events}
    manifest = Manifest.of(settings, positions=past.positions, made=True, facts=facts)
    manifest.write(savepoint)
    return done


def _bootstrap_of(settings: Settings, past: Past) -> Bootstrap:
    schema, labels = settings.schema_, even_labels(settings.batch.buckets)

    def bucket_of(stage: str, entities: Sequence[str]) -> IntArray:
        if stage == schema.key:
            return np.array(labels)[sql_buckets(entities, len(labels))]
        from udfs.batches.routing import Routing

        of = Routing(labels).of
        return np.fromiter(map(of, entities), np.int64, len(entities))

    return Bootstrap(schema, labels, bucket_of, past.events, past.labels)


def _write(made: Bootstrap, folder: Path, progress: Progress) -> list[StateFile]:
    """One file per stage and bucket."""
    files: dict[tuple[str, int], StateFile] = {}
    total, done = len(made.events.times) * len(made.schema.stages), 0
    for block in made.blocks():
        place = block.stage, block.bucket
        if place not in files:
            files[place] = StateFile(*place, folder / f"{len(files)}.state")
        with files[place].path.open("ab") as file:
            write_block(file, block.entries)
        done += block.events
        progress("Making histories", done / total)
    progress("Making histories", 1.0)
    return list(files.values())


def _savepoint(
    settings: Settings, files: Sequence[StateFile], out: Path, progress: Progress
) -> str:
    progress("Writing the savepoint", 0.0)
    named = settings.model_copy(update={"name": f"{settings.name} bootstrap"})
    job = runner.submit(named, lambda env: _wire(env, settings, files), options=_OPTIONS)
    try:
        job.wait_running(_START_S)
        _wait_loaded(job, len(files), progress)
        return job.stop_with_savepoint(str(out))
    finally:
        job.cancel()


def _wait_loaded(job: RunningJob, files: int, progress: Progress) -> None:
    from udfs.state_loader import LOADED

    seen, deadline_s = 0, time.monotonic() + _SILENCE_S
    while seen < files:
        loaded = job.counts([LOADED])[LOADED]
        if loaded > seen:
            seen, deadline_s = loaded, time.monotonic() + _SILENCE_S
            progress("Writing the savepoint", 0.9 * seen / files)
        elif (state := job.state()) != "RUNNING":
            raise JobError(f"the bootstrap ended as {state}: {job.cause()}")
        elif time.monotonic() > deadline_s:
            raise JobError(f"{seen} of {files} files were loaded in {_SILENCE_S:.0f} s")
        time.sleep(_POLL_S)


def _wire(env: Any, settings: Settings, files: Sequence[StateFile]) -> None:
    """A loader for each stage; a source that goes on keeps the job alive for its savepoint."""
    from pyflink.common import Types
    from pyflink.table import StreamTableEnvironment

    from jobs import keyed
    from jobs.pipeline import idle_ms, uid_of
    from jobs.sources import quoted
    from udfs.state_loader import StateLoader

    tables = StreamTableEnvironment.create(env)
    tables.execute_sql(
        "CREATE TEMPORARY TABLE idle (n INT) WITH ('connector' = 'datagen', "
        "'rows-per-second' = '1')"
    )
    for stage in settings.schema_.stages:
        own = [file for file in files if file.stage == stage]
        rows = ", ".join(f"({file.bucket}, {quoted(str(file.path))})" for file in own)
        paths = tables.sql_query(_PATHS.format(rows=rows, bucket=own[0].bucket))
        stream = tables.to_append_stream(paths, Types.ROW([Types.INT(), Types.STRING()]))
        loader = StateLoader(stage, idle_ms(settings))
        keyed.by_first_field(stream, Types.STRING()).process(loader, Types.STRING()).name(
            f"state of {stage}"
        ).uid(uid_of(stage))


def summary(done: Bootstrapped) -> dict[str, str]:
    """What ``streamscore features bootstrap`` shows."""
    since, until = (
        np.datetime_as_string(np.datetime64(ms, "ms"), "s") + "Z"
        for ms in (done.since_ms, done.until_ms)
    )
    return {
        "history": f"{since} to {until}",
        "events": f"{done.events:,}",
        "repeats": f"{done.repeats:,}",
        "refused": f"{done.refused:,}",
        "state": f"{done.bytes:,} bytes",
        "seconds": f"{done.seconds:.1f}",
        "savepoint": str(done.savepoint),
    }
