"""Savepoints of a job by Flink's REST API: take, stop with, dispose, list."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from jobs.flink_rest import FlinkRest, JobError
from jobs.running_job import RunningJob
from jobs.settings import Settings

_POLL_S = 0.05
_FORMATS = ("CANONICAL", "NATIVE")


@dataclass(frozen=True)
class Savepoint:
    """One of a local folder.

    Attributes:
        path: As Flink takes it.
        made_s: When it was complete, seconds since the epoch.
        size_bytes: Of all its files.
    """

    path: str
    made_s: float
    size_bytes: int


def folder_of(settings: Settings) -> str:
    """Where a job's savepoints go: ``savepoints/<name>`` below the checkpoints, as path or URL."""
    place = settings.flink.checkpoint_dir
    root = place.rstrip("/") if "://" in place else str(Path(place).absolute())
    return f"{root}/savepoints/{settings.name}"


def take(job: RunningJob, folder: str, timeout_s: float = 600.0, *, native: bool = False) -> str:
    """Take a savepoint of a job that goes on; returns its path.

    Args:
        job: A running one.
        folder: Where the savepoint goes.
        timeout_s: Longest wait.
        native: In the format of its state backend: quicker, and no other backend reads it.

    Raises:
        JobError: it failed or took too long.
    """
    body = {"target-directory": folder, "cancel-job": False, "formatType": _FORMATS[native]}
    return _completed(job, "savepoints", body, timeout_s)


def stop(
    job: RunningJob,
    folder: str,
    timeout_s: float = 600.0,
    *,
    drain: bool = False,
    native: bool = False,
) -> str:
    """Stop a job with a savepoint; returns its path when the job has ended.

    Args:
        job: A running one.
        folder: Where the savepoint goes.
        timeout_s: Longest wait; the job then goes on, or stops later.
        drain: End every window and timer first; the job cannot go on as if nothing were.
        native: See ``take``.

    Raises:
        JobError: it failed, and the job goes on; or it took too long.
    """
    body = {"targetDirectory": folder, "drain": drain, "formatType": _FORMATS[native]}
    return _completed(job, "stop", body, timeout_s)


def _completed(job: RunningJob, action: str, body: dict[str, Any], timeout_s: float) -> str:
    trigger = job.rest.post(f"/jobs/{job.job_id}/{action}", body)["request-id"]
    path = f"/jobs/{job.job_id}/savepoints/{trigger}"
    return str(_result(job.rest, path, "savepoint", timeout_s)["location"])


def dispose(rest: FlinkRest, path: str, timeout_s: float = 120.0) -> None:
    """Remove a savepoint by Flink, which knows all its files.

    Raises:
        JobError: it is none, or cannot be removed.
    """
    trigger = rest.post("/savepoint-disposal", {"savepoint-path": path})["request-id"]
    _result(rest, f"/savepoint-disposal/{trigger}", "disposal", timeout_s)


def _result(rest: FlinkRest, path: str, what: str, timeout_s: float) -> dict[str, Any]:
    deadline_s = time.monotonic() + timeout_s
    while (found := rest.get(path))["status"]["id"] != "COMPLETED":
        if time.monotonic() > deadline_s:
            raise JobError(f"the {what} is not complete after {timeout_s:.0f} s")
        time.sleep(_POLL_S)
    operation: dict[str, Any] = found.get("operation") or {}
    if failure := operation.get("failure-cause"):
        text = str(failure.get("stack-trace", failure.get("class")))
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        causes = [line for line in lines if line.startswith("Caused by:")]
        raise JobError(f"the {what} failed: {(causes or lines or ['no reason'])[-1]}")
    return operation


def listed(folder: str) -> list[Savepoint]:
    """The complete savepoints of a local folder, oldest first.

    Raises:
        JobError: the folder is not of this machine.
    """
    found = [_savepoint(metadata.parent) for metadata in local(folder).glob("*/_metadata")]
    return sorted(found, key=lambda savepoint: savepoint.made_s)


def _savepoint(folder: Path) -> Savepoint:
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return Savepoint(folder.as_uri(), (folder / "_metadata").stat().st_mtime, size)


def local(place: str) -> Path:
    """A path or ``file:`` URL as a path of this machine.

    Raises:
        JobError: it is neither.
    """
    url = urlparse(place)
    if url.scheme not in ("", "file"):
        raise JobError(f"{place} is not on this machine: use that store's own tools")
    return Path(unquote(url.path))
