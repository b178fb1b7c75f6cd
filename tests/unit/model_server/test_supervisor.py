"""A server of two worker processes, as a user starts it: one answer for both of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from model_server.protos import ModelServiceStub, ReloadConfigRequest
from tests.support.waiting import wait_until

PATIENCE_S = 60.0
ROWS = json.dumps({"instances": [[0.0] * 5]}).encode()


class Server:
    """Two workers and their supervisor."""

    def __init__(self, models_dir: Path, log: Path) -> None:
        command = [sys.executable, "-m", "model_server", "--models-dir", str(models_dir)]
        command += ["--model-name", "fraud", "--workers", "2", "--poll-s", "0.2"]
        for port in ("--port", "--http-port", "--admin-port", "--admin-http-port"):
            command += [port, "0"]
        with log.open("w") as written:
            self.process = subprocess.Popen(
                [*command, "--metrics-port", "0"], stdout=subprocess.PIPE, stderr=written, text=True
            )
        assert self.process.stdout is not None
        words = self.process.stdout.readline().split()
        assert words, log.read_text()
        self.ports = dict(word.split("=") for word in words[1:])

    def workers(self) -> list[psutil.Process]:
        children = psutil.Process(self.process.pid).children()
        return [child for child in children if "model_server.worker" in child.cmdline()]

    def http(self, port: str, path: str, body: bytes | None = None) -> Any:
        url = f"http://127.0.0.1:{self.ports[port]}{path}"
        with urllib.request.urlopen(url, body, timeout=PATIENCE_S) as answer:
            return answer.read().decode()

    def predict(self) -> Any:
        return json.loads(self.http("http_port", "/v1/models/fraud:predict", ROWS))

    def states(self, port: str) -> dict[str, str]:
        answer = json.loads(self.http(port, "/v1/models/fraud"))
        return {status["version"]: status["state"] for status in answer["model_version_status"]}

    def counts(self, name: str) -> dict[str, float]:
        families = text_string_to_metric_families(self.http("metrics_port", "/metrics"))
        samples = (sample for family in families for sample in family.samples)
        return {str(sample.labels): sample.value for sample in samples if sample.name == name}

    @contextmanager
    def health(self) -> Iterator[Iterator[str]]:
        """Its state, and each further one however short it is."""
        name_of = health_pb2.HealthCheckResponse.ServingStatus.Name
        with grpc.insecure_channel(f"127.0.0.1:{self.ports['admin_port']}") as channel:
            watched = health_pb2_grpc.HealthStub(channel).Watch(
                health_pb2.HealthCheckRequest(), timeout=PATIENCE_S
            )
            yield (name_of(answer.status) for answer in watched)
            watched.cancel()


@pytest.fixture
def server(models_dir: Path, tmp_path: Path) -> Iterator[Server]:
    running = Server(models_dir, tmp_path / "server.log")
    workers = running.workers()
    yield running
    workers += running.workers() if running.process.poll() is None else []
    running.process.terminate()
    try:
        assert running.process.wait(PATIENCE_S) == 0
    finally:
        for process in [running.process, *(w for w in workers if w.is_running())]:
            process.kill()
    assert not [worker for worker in workers if worker.is_running()]


def test_both_workers_answer_and_their_counts_are_one_sum(server: Server) -> None:
    calls = 0

    def both_asked() -> bool:
        nonlocal calls
        server.predict()
        calls += 1
        return all(server.counts("streamscore_server_worker_calls_total").values())

    wait_until(both_asked, PATIENCE_S, "a call of each worker")
    assert len(server.counts("streamscore_server_worker_calls_total")) == 2
    assert sum(server.counts(":tensorflow:serving:request_count").values()) == calls
    with pytest.raises(urllib.error.HTTPError, match="404"):
        server.http("http_port", "/metrics")


def test_a_killed_worker_is_started_anew_and_its_counts_stay(server: Server) -> None:
    for _ in range(8):
        server.predict()
    assert sum(server.counts(":tensorflow:serving:request_count").values()) == 8
    with server.health() as states:
        assert next(states) == "SERVING"
        os.kill(server.workers()[0].pid, signal.SIGKILL)
        assert next(states) == "NOT_SERVING"
        server.predict()  # by the other one
        assert next(states) == "SERVING"
    assert len(server.workers()) == 2
    assert sum(server.counts("streamscore_server_worker_restarts_total").values()) == 1
    assert sum(server.counts(":tensorflow:serving:request_count").values()) == 9


def test_changes_reach_both_workers(
    server: Server, models_dir: Path, write_version: Callable[..., Path]
) -> None:
    assert server.states("admin_http_port") == {"10": "AVAILABLE"}
    write_version(models_dir / "new").rename(models_dir / "fraud" / "11")
    wait_until(
        lambda: server.states("admin_http_port") == {"11": "AVAILABLE", "10": "END"},
        PATIENCE_S,
        "a switch in both workers",
    )
    for _ in range(16):  # whichever worker has the connection
        assert server.states("http_port") == {"11": "AVAILABLE", "10": "END"}
    server.http("admin_http_port", "/v2/repository/models/fraud/unload", b"")
    for _ in range(16):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            server.predict()
    server.http("admin_http_port", "/v2/repository/models/fraud/load", b"")
    for _ in range(16):
        server.predict()
    reload = ReloadConfigRequest()
    config = reload.config.model_config_list.config.add()
    config.name, config.base_path = "renamed", str(models_dir / "fraud")
    config.model_platform = "xgboost"
    with grpc.insecure_channel(f"127.0.0.1:{server.ports['admin_port']}") as channel:
        ModelServiceStub(channel).HandleReloadConfigRequest(reload, timeout=PATIENCE_S)
    for _ in range(16):
        server.http("http_port", "/v1/models/renamed:predict", ROWS)


def test_a_model_is_not_run_on_the_admin_port(server: Server) -> None:
    with pytest.raises(urllib.error.HTTPError, match="400"):
        server.http("admin_http_port", "/v1/models/fraud:predict", ROWS)
