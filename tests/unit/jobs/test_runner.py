"""A job watched through a REST API like Flink's: a real HTTP server with canned answers."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from jobs import runner, running_job
from jobs.environment import NotReadyError
from jobs.flink_rest import FlinkRest, JobError, Patience
from jobs.ports import free_port
from jobs.running_job import TERMINAL_STATES, RunningJob

JOB = "0123456789abcdef0123456789abcdef"
TRACE = (
    "org.apache.flink.runtime.JobException: Recovery is suppressed by FixedDelayRestart\n"
    "\tat org.apache.flink.runtime.Handler.handle(Handler.java:219)\n"
    "Caused by: org.apache.flink.util.FlinkException: no\n"
    "\tat java.base/java.lang.Thread.run(Thread.java:840)\n"
    "Caused by: pemja.core.PythonException: <class 'ValueError'>: malformed batch\n"
)


class FakeFlink:
    """Answers by method and path; of several answers each is given once, the last for ever."""

    def __init__(self) -> None:
        self.answers: dict[str, list[tuple[int, Any]]] = {}
        self.asked: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._server.server_port}"

    def on(self, request: str, *answers: Any, status: int = 200) -> None:
        self.answers[request] = [(status, answer) for answer in answers]

    def states(self, *states: str, tasks: tuple[str, ...] = ()) -> None:
        vertices = [{"status": task} for task in tasks]
        self.on(f"GET /jobs/{JOB}", *({"state": s, "vertices": vertices} for s in states))

    def failed_with(self, *stacktraces: str) -> None:
        entries = [{"stacktrace": text} for text in stacktraces]
        history = {"exceptionHistory": {"entries": entries}}
        self.on(f"GET /jobs/{JOB}/exceptions?maxExceptions=1", history)

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, request: str) -> tuple[int, Any]:
        self.asked.append(request)
        answers = self.answers.get(request, [(404, {"errors": ["Not found."]})])
        return answers.pop(0) if len(answers) > 1 else answers[0]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                status, body = fake._answer(f"{self.command} {self.path}")
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_PATCH = answer

            def log_message(self, *_: Any) -> None:
                pass

        return Handler


@pytest.fixture
def flink() -> Iterator[FakeFlink]:
    fake = FakeFlink()
    yield fake
    fake.stop()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running_job, "_POLL_S", 0.005)
    monkeypatch.setattr(running_job, "_GONE_S", 0.05)


def job(flink: FakeFlink, client: Any = None) -> RunningJob:
    return RunningJob(JOB, FlinkRest(flink.address), client)


class Client:
    """PyFlink's client of a job: all there is to ask for is the job's result."""

    def __init__(self, result: Callable[[Future[None]], None] = lambda _: None) -> None:
        self._future: Future[None] = Future()
        result(self._future)

    def get_job_execution_result(self) -> Future[None]:
        return self._future


def gone(client: Client | None) -> RunningJob:
    """A job whose cluster is not there any more."""
    return RunningJob(JOB, FlinkRest(f"127.0.0.1:{free_port()}"), client)


# -- the REST API -------------------------------------------------------------------------------


def test_get_gives_the_json_of_a_path(flink: FakeFlink) -> None:
    flink.on("GET /jobs/overview", {"jobs": [1, None]})
    rest = FlinkRest(flink.address)
    assert rest.get("/jobs/overview") == {"jobs": [1, None]}
    assert rest.url == f"http://{flink.address}"


def test_an_answer_without_a_body_is_none(flink: FakeFlink) -> None:
    flink.on(f"PATCH /jobs/{JOB}?mode=cancel", b"", status=202)
    FlinkRest(flink.address).cancel(JOB)
    assert flink.asked == [f"PATCH /jobs/{JOB}?mode=cancel"]


def test_a_job_that_ends_while_it_is_cancelled(flink: FakeFlink) -> None:
    flink.states("RUNNING", "RUNNING", "FINISHED")  # the JobManager's cache
    flink.on(f"PATCH /jobs/{JOB}?mode=cancel", {"errors": ["it is FINISHED"]}, status=409)
    RunningJob(JOB, FlinkRest(flink.address)).cancel()


def test_a_job_that_cannot_be_cancelled(flink: FakeFlink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running_job, "_STALE_S", 0.2)
    flink.states("RUNNING")
    flink.on(f"PATCH /jobs/{JOB}?mode=cancel", {"errors": ["no"]}, status=409)
    with pytest.raises(JobError, match="no"):
        RunningJob(JOB, FlinkRest(flink.address)).cancel()


@pytest.mark.parametrize("status", [400, 404, 500, 503])
def test_an_error_names_the_address_and_the_status(flink: FakeFlink, status: int) -> None:
    flink.on("GET /overview", {"errors": ["no"]}, status=status)
    with pytest.raises(JobError, match=rf"http://{flink.address}/overview: .*{status}"):
        FlinkRest(flink.address).get("/overview")


def test_an_answer_that_is_no_json_is_an_error(flink: FakeFlink) -> None:
    flink.on("GET /overview", b"<html>")
    with pytest.raises(JobError, match=flink.address):
        FlinkRest(flink.address).get("/overview")


def test_nobody_answering_is_an_error() -> None:
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(JobError, match=address):
        FlinkRest(address).get("/overview")


def test_a_connection_cut_before_the_answer_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        cutting = threading.Thread(target=lambda: listener.accept()[0].close())
        cutting.start()
        port = listener.getsockname()[1]
        with pytest.raises(JobError):
            FlinkRest(f"127.0.0.1:{port}").get("/overview")
        cutting.join()


# -- what a job is asked ------------------------------------------------------------------------


def test_counters_of_a_job(flink: FakeFlink) -> None:
    flink.states("RESTARTING")
    flink.on(f"GET /jobs/{JOB}/checkpoints", {"counts": {"completed": 7, "failed": 1}})
    flink.on(f"GET /jobs/{JOB}/metrics?get=numRestarts", [{"id": "numRestarts", "value": "3"}])
    running = job(flink)
    assert running.state() == "RESTARTING"
    assert running.checkpoints_completed() == 7
    assert running.restarts() == 3


def test_a_job_without_the_metric_yet_was_not_restarted(flink: FakeFlink) -> None:
    flink.on(f"GET /jobs/{JOB}/metrics?get=numRestarts", [])
    assert job(flink).restarts() == 0


def test_the_last_failure_and_its_root_cause(flink: FakeFlink) -> None:
    flink.failed_with(TRACE)
    assert job(flink).failure() == TRACE
    assert job(flink).cause() == "PythonException: <class 'ValueError'>: malformed batch"


@pytest.mark.parametrize("history", [{}, {"exceptionHistory": {}}, None])
def test_a_job_that_never_failed(flink: FakeFlink, history: dict[str, Any] | None) -> None:
    flink.failed_with()
    if history is not None:
        flink.on(f"GET /jobs/{JOB}/exceptions?maxExceptions=1", history)
    assert job(flink).failure() == ""
    assert job(flink).cause() == "no cause was reported"


@pytest.mark.parametrize(
    ("trace", "cause"),
    [
        ("", "no cause was reported"),
        ("\n \n", "no cause was reported"),
        ("java.lang.OutOfMemoryError: Java heap space", "OutOfMemoryError: Java heap space"),
        ("no class: at all", "no class: at all"),
        (
            "a.B: x\n\tat c.D.e(F.java)\n  Caused by: g.h.I$J: see k.l.M: n\n\tat o",
            "I$J: see k.l.M: n",
        ),
    ],
)
def test_the_cause_is_one_line(flink: FakeFlink, trace: str, cause: str) -> None:
    flink.failed_with(trace)
    assert job(flink).cause() == cause


# -- waiting ------------------------------------------------------------------------------------


def test_wait_returns_the_state_it_was_waiting_for(flink: FakeFlink) -> None:
    flink.states("CREATED", "CREATED", "RUNNING", "FINISHED")
    assert job(flink).wait(lambda state: state in ("RUNNING", "FAILED"), 10) == "RUNNING"
    assert job(flink).wait(lambda state: state in TERMINAL_STATES, 10) == "FINISHED"


@pytest.mark.parametrize("ended", sorted(TERMINAL_STATES))
def test_a_job_that_ended_is_waited_for_no_longer(flink: FakeFlink, ended: str) -> None:
    flink.states("RUNNING", ended)
    flink.failed_with(TRACE)
    started_s = time.monotonic()
    with pytest.raises(JobError, match=f"ended as {ended}: PythonException: .*malformed batch"):
        job(flink).wait(lambda state: state == "NEVER", 60)
    assert time.monotonic() - started_s < 10


def test_a_jobmanager_that_starts_again_is_waited_for(flink: FakeFlink) -> None:
    flink.answers[f"GET /jobs/{JOB}"] = [
        *[(503, {"errors": ["no leader"]})] * 5,
        (200, {"state": "RUNNING", "vertices": []}),
    ]
    assert job(flink).wait(lambda state: state == "RUNNING", 30) == "RUNNING"


def test_a_cluster_that_is_gone_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    patience = partial(Patience, 0.0)
    monkeypatch.setattr(running_job, "Patience", patience)
    with pytest.raises(JobError, match="refused"):
        gone(None).wait(lambda state: False, 600)


def test_a_state_of_the_end_may_be_what_is_waited_for(flink: FakeFlink) -> None:
    flink.states("RUNNING", "FAILED")
    assert job(flink).wait(lambda state: state == "FAILED", 10) == "FAILED"


def test_waiting_ends_in_time(flink: FakeFlink) -> None:
    flink.states("CREATED")
    with pytest.raises(JobError, match="still CREATED after 0 s"):
        job(flink).wait(lambda state: state == "RUNNING", 0.05)
    assert len(flink.asked) > 1


def test_even_without_time_it_looks_once(flink: FakeFlink) -> None:
    flink.states("RUNNING")
    assert job(flink).wait(lambda state: state == "RUNNING", 0) == "RUNNING"


def test_a_job_runs_when_all_its_tasks_run(flink: FakeFlink) -> None:
    vertices = [
        [{"status": a}, {"status": b}]
        for a, b in (
            ("SCHEDULED", "SCHEDULED"),
            ("RUNNING", "INITIALIZING"),
            ("RUNNING", "RUNNING"),
        )
    ]
    answers = [{"state": "RUNNING", "vertices": v} for v in vertices for _ in range(2)]
    flink.on(f"GET /jobs/{JOB}", {"state": "CREATED", "vertices": []}, *answers)
    job(flink).wait_running(10)
    assert len(flink.asked) == 1 + 6


def test_a_task_that_is_done_does_not_keep_a_job_from_running(flink: FakeFlink) -> None:
    flink.states("RUNNING", tasks=("FINISHED", "RUNNING"))
    job(flink).wait_running(10)


def test_a_task_that_never_starts(flink: FakeFlink) -> None:
    flink.states("RUNNING", tasks=("RUNNING", "SCHEDULED"))
    with pytest.raises(JobError, match="still RUNNING after 0 s"):
        job(flink).wait_running(0.05)


# -- cancelling ---------------------------------------------------------------------------------


def test_cancel_waits_for_the_end(flink: FakeFlink) -> None:
    flink.states("RUNNING", "RUNNING", "CANCELLING", "CANCELED")
    flink.on(f"PATCH /jobs/{JOB}?mode=cancel", {}, status=202)
    job(flink).cancel(10)
    assert [request.split()[0] for request in flink.asked] == ["GET", "PATCH", "GET", "GET", "GET"]


@pytest.mark.parametrize("ended", sorted(TERMINAL_STATES))
def test_a_job_that_ended_is_not_cancelled(flink: FakeFlink, ended: str) -> None:
    flink.states(ended)
    job(flink).cancel(10)
    assert flink.asked == [f"GET /jobs/{JOB}"]


def test_a_job_that_does_not_end(flink: FakeFlink) -> None:
    flink.states("RUNNING", "CANCELLING")
    flink.on(f"PATCH /jobs/{JOB}?mode=cancel", {}, status=202)
    with pytest.raises(JobError, match="still CANCELLING"):
        job(flink).cancel(0.05)


# -- a mini-cluster that is gone with its job ---------------------------------------------------


def test_the_client_knows_that_a_job_finished() -> None:
    ended = gone(Client(lambda future: future.set_result(None)))
    assert (ended.state(), ended.failure()) == ("FINISHED", "")
    assert ended.wait(lambda state: state in TERMINAL_STATES, 1) == "FINISHED"
    ended.cancel(1)


def java_error(text: str) -> Exception:
    """What py4j raises, without a JVM."""
    from py4j.protocol import Py4JJavaError

    class Error(Py4JJavaError):
        def __init__(self) -> None:
            Exception.__init__(self, text)

        def __str__(self) -> str:
            return text

    return Error()


def test_the_client_knows_why_a_job_failed() -> None:
    ended = gone(Client(lambda future: future.set_exception(java_error(TRACE))))
    assert (ended.state(), ended.failure()) == ("FAILED", TRACE)
    with pytest.raises(JobError, match="ended as FAILED: PythonException"):
        ended.wait_running(1)


def test_the_client_knows_that_a_job_was_cancelled() -> None:
    text = "o: org.apache.flink.runtime.client.JobCancellationException: Job was cancelled."
    ended = gone(Client(lambda future: future.set_exception(java_error(text))))
    assert ended.state() == "CANCELED"


@pytest.mark.parametrize("client", [None, Client()], ids=["no client", "a client that waits"])
def test_nobody_knows(client: Client | None) -> None:
    with pytest.raises(JobError):
        gone(client).state()
    with pytest.raises(JobError):
        gone(client).failure()


# -- where a job goes ---------------------------------------------------------------------------


@pytest.fixture
def jars(tmp_path: Path) -> list[Path]:
    return [tmp_path / "a b.jar", tmp_path / "c.jar"]


def test_a_mini_cluster_listens_where_it_is_asked(jars: list[Path]) -> None:
    options = runner._target_options("127.0.0.1:8081", jars, remote=False)
    assert options == {
        "pipeline.jars": ";".join(path.as_uri() for path in jars),
        "rest.address": "127.0.0.1",
        "rest.port": "8081",
        "rest.bind-address": "127.0.0.1",
        "rest.bind-port": "8081",
        "jobmanager.bind-host": "127.0.0.1",
        "taskmanager.bind-host": "127.0.0.1",
        "python.executable": sys.executable,
    }


def test_a_cluster_is_submitted_to(jars: list[Path]) -> None:
    options = runner._target_options("flink.example:80", jars, remote=True)
    assert (options["rest.address"], options["rest.port"]) == ("flink.example", "80")
    assert options["execution.target"] == "remote"
    assert options["execution.attached"] == "false"
    assert "rest.bind-port" not in options


def test_a_cluster_that_is_not_there_is_not_submitted_to(flink: FakeFlink) -> None:
    flink.on("GET /overview", {"taskmanagers": 1})
    runner._check_reachable(flink.address)
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(NotReadyError, match=f"no Flink cluster answers at {address}"):
        runner._check_reachable(address)


def test_what_the_jvm_inherits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "environ", {"PATH": os.environ["PATH"]})
    monkeypatch.setattr(runner, "BUILD", tmp_path)
    runner.prepare()
    assert os.environ["FLINK_LOG_DIR"] == str(tmp_path / "logs")
    assert (tmp_path / "logs").is_dir()
    assert "site-packages" in os.environ["PYTHONPATH"]
    os.environ["FLINK_LOG_DIR"] = "elsewhere"
    runner.prepare()
    assert os.environ["FLINK_LOG_DIR"] == "elsewhere"
