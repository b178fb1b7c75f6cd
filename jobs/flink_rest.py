"""Flink's REST API, as far as it is needed here."""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

_PACKAGE = re.compile(r"^(?:[a-z_][\w$]*\.)+(?=[A-Z])")
_ANSWER_S = 60.0
"""Longest wait for an answer of the REST API: on a machine with more to do than cores, seconds."""
_TRIES = 3
_PATIENCE_S = 30.0
_BUSY = 503


class JobError(RuntimeError):
    """The job failed, or did not do in time what it should; the text says why."""


class NoAnswerError(JobError):
    """The JobManager does not answer: it hangs, is busy, starts again, or is gone."""


class Patience:
    """How long a JobManager may not answer: one that was killed or hung comes back.

    Args:
        seconds: Since the last answer; at least three tries are made however long each takes.
    """

    def __init__(self, seconds: float = _PATIENCE_S) -> None:
        self._seconds = seconds
        self.answered()

    def answered(self) -> None:
        """It has answered."""
        self._since_s, self._tries = time.monotonic(), 0

    def missed(self, error: JobError) -> None:
        """It has not; raises the error when that is enough."""
        self._tries += 1
        if self._tries >= _TRIES and time.monotonic() - self._since_s > self._seconds:
            raise error


class FlinkRest:
    """The part of Flink's REST API that is needed here.

    Args:
        address: host:port of the JobManager.
        answer_s: Longest wait for an answer.
    """

    def __init__(self, address: str, answer_s: float = _ANSWER_S) -> None:
        self.address = address
        self._answer_s = answer_s

    @property
    def url(self) -> str:
        """Flink's web page."""
        return f"http://{self.address}"

    def get(self, path: str) -> Any:
        """The JSON behind a path, e.g. ``/jobs/overview``.

        Raises:
            JobError: nobody answers there, or with an error.
        """
        return self._call("GET", path)

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Ask for something, e.g. ``/savepoint-disposal``; the answer's JSON.

        Raises:
            JobError: nobody answers there, or with an error.
        """
        return self._call("POST", path, json.dumps(body).encode())

    def cancel(self, job_id: str) -> None:
        """Ask for the job's end; it keeps its last checkpoint."""
        self._call("PATCH", f"/jobs/{job_id}?mode=cancel")

    def _call(self, method: str, path: str, body: bytes | None = None) -> Any:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        url = f"{self.url}{path}"
        request = urllib.request.Request(url, body, headers, method=method)  # noqa: S310 (http)
        try:
            with urllib.request.urlopen(request, timeout=self._answer_s) as response:  # noqa: S310
                return json.loads(response.read() or b"null")
        except urllib.error.HTTPError as exc:
            said = exc.read().decode(errors="replace").strip()
            kind = NoAnswerError if exc.code == _BUSY else JobError  # no leader is elected yet
            raise kind(f"{self.url}{path}: {exc}: {cause_of(said)[:500]}") from exc
        except (OSError, ValueError) as exc:
            raise NoAnswerError(f"{self.url}{path}: {exc}") from exc


def cause_of(stacktrace: str) -> str:
    """The line of a Java stack trace that names the root cause, without its class' package."""
    lines = [line.strip() for line in stacktrace.splitlines()]
    causes = [line.removeprefix("Caused by: ") for line in lines if line.startswith("Caused by:")]
    line = (causes[-1:] or [line for line in lines if line][:1] or ["no cause was reported"])[0]
    return _PACKAGE.sub("", line)
