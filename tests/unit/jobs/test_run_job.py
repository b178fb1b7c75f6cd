"""`streamscore run` around a job that is only played."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from jobs import cli, options, run_job, runner
from jobs.environment import ROOT, NotReadyError
from jobs.exit_codes import ExitCode
from jobs.flink_rest import JobError

CONF = ROOT / "conf" / "fraud.yaml"


class PlayedJob:
    """A job that goes through given states; an exception among them is raised."""

    def __init__(self, *states: str | BaseException) -> None:
        self.job_id = "ab" * 16
        self.rest = SimpleNamespace(url="http://127.0.0.1:8081")
        self.cancelled = False
        self._states: Iterator[str | BaseException] = iter(states)

    def state(self) -> str:
        state = next(self._states)
        if isinstance(state, BaseException):
            raise state
        return state

    def cause(self) -> str:
        return "ConnectException: refused"

    def counts(self, names: Sequence[str]) -> dict[str, int]:
        return dict.fromkeys(names, 1_234)

    def checkpoints_completed(self) -> int:
        return 2

    def restarts(self) -> int:
        return 1

    def wait_running(self, timeout_s: float = 0.0) -> None:
        """It always does."""

    def cancel(self) -> None:
        self.cancelled = True


Play = Callable[..., Any]


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Play:
    """Runs the command with a played job; returns what came of it."""

    def run(job: PlayedJob | BaseException, *options: str, missing: str = "") -> Any:
        def start(settings: Any, target: str | None = None, begin: Any = None) -> Any:
            if isinstance(job, BaseException):
                raise job
            return job

        def check(settings: Any, conf: Path) -> list[str]:
            if missing:
                raise NotReadyError(missing, "put it there")
            return ["no model server answers"]

        monkeypatch.setattr(runner, "start", start)
        monkeypatch.setattr(run_job.preflight, "check", check)
        monkeypatch.setattr(run_job, "SHOW_EVERY_S", 0.0)
        monkeypatch.setattr(run_job, "TRIES_AFTER_S", -1.0)
        for name in ("console", "errors"):
            console = getattr(run_job, name)
            monkeypatch.setattr(console, "_file", None)
        return CliRunner(env={"COLUMNS": "200"}).invoke(cli.app, ["run", str(CONF), *options])

    return run


def test_progress_until_the_jobs_own_end(play: Play) -> None:
    done = play(PlayedJob("RUNNING", "FINISHED"))
    assert done.exit_code == ExitCode.OK
    assert "runs; web page http://127.0.0.1:8081" in done.stdout
    assert "RUNNING | events 1,234 | duplicates 1,234" in done.stdout
    assert "checkpoints 2 | restarts 1" in done.stdout
    assert "warning: no model server answers" in done.stderr


def test_a_failed_job_tells_its_cause(play: Play) -> None:
    done = play(PlayedJob("RUNNING", "FAILED"))
    assert done.exit_code == ExitCode.FAILED
    assert "failed: ConnectException: refused" in done.stderr


def test_a_job_that_flink_refuses(play: Play) -> None:
    done = play(JobError("Flink refused the job: ValidationException: [brackets]"))
    assert done.exit_code == ExitCode.FAILED
    assert "ValidationException: [brackets]" in done.stderr


def test_a_cluster_that_does_not_answer_any_more(play: Play) -> None:
    done = play(PlayedJob("RUNNING", *[JobError("refused")] * 3))
    assert done.exit_code == ExitCode.FAILED
    assert "failed: refused" in done.stderr


def test_one_time_out_does_not_end_the_watching(play: Play) -> None:
    late = JobError("timed out")
    done = play(PlayedJob("RUNNING", late, late, "RUNNING", late, late, "FINISHED"))
    assert done.exit_code == ExitCode.OK


def test_ctrl_c_cancels_a_job_of_the_mini_cluster(play: Play) -> None:
    job = PlayedJob("RUNNING", KeyboardInterrupt())
    done = play(job)
    assert done.exit_code == ExitCode.OK
    assert job.cancelled


def test_ctrl_c_leaves_a_job_of_a_cluster(play: Play) -> None:
    job = PlayedJob("RUNNING", KeyboardInterrupt())
    done = play(job, "--target", "127.0.0.1:8081")
    assert done.exit_code == ExitCode.OK
    assert not job.cancelled
    assert f"curl -X PATCH 'http://127.0.0.1:8081/jobs/{job.job_id}?mode=cancel'" in done.stdout


def test_what_is_missing_here_stops_a_run_here_and_warns_for_a_cluster(play: Play) -> None:
    done = play(PlayedJob("FINISHED"), missing="no broker answers")
    assert isinstance(done.exception, NotReadyError)
    done = play(PlayedJob("FINISHED"), "--target", "127.0.0.1:8081", missing="no broker answers")
    assert done.exit_code == ExitCode.OK
    assert "warning: seen from here: no broker answers" in done.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("batch.buckets=4", ("batch.buckets", 4)),
        ("model.embedded=true", ("model.embedded", True)),
        ("topics.events=a=b", ("topics.events", "a=b")),
        ("kafka.properties={x: y}", ("kafka.properties", {"x": "y"})),
    ],
)
def test_a_setting_on_the_command_line(text: str, expected: tuple[str, Any]) -> None:
    assert options.change(text) == expected


@pytest.mark.parametrize("text", ["batch.buckets", "=4", "batch.buckets={"])
def test_a_wrong_one_is_a_wrong_command_line(text: str, play: Play) -> None:
    assert play(PlayedJob(), "--set", text).exit_code == ExitCode.USAGE


def test_a_refused_one(play: Play) -> None:
    assert play(PlayedJob(), "--set", "batch.bukets=4").exit_code == ExitCode.CONFIG_REFUSED
