"""Our server as a process of its own, MLServer beside it, and how a stranger's script is run."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xgboost

from jobs.ports import free_port
from model_server.options import Ports
from tests.support.models import write_features

ROOT = Path(__file__).parents[2]
PEERS = ROOT / "build" / "peers"
CLIENTS = Path(__file__).parent / "clients"
COLUMNS = ("amount", "count_5m", "sum_5m", "max_5m", "age_s")
PATIENCE_S = 120.0
#: What a stranger gets of this process' environment: PyFlink puts our packages on PYTHONPATH.
CLEAN = {"PATH": os.environ["PATH"]}


@pytest.fixture(scope="session")
def rows() -> np.ndarray:
    return np.random.default_rng(7).normal(size=(200, len(COLUMNS))).astype(np.float32)


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory, rows: np.ndarray) -> Path:
    """Version 3 of the model ``fraud``."""
    folder = tmp_path_factory.mktemp("models")
    version_dir = folder / "fraud" / "3"
    version_dir.mkdir(parents=True)
    labels = (rows[:, 0] + rows[:, 1] * rows[:, 2] > 0).astype(int)
    matrix = xgboost.DMatrix(rows, labels, feature_names=list(COLUMNS))
    settings = {"objective": "binary:logistic", "max_depth": 4, "nthread": 1}
    xgboost.train(settings, matrix, num_boost_round=20).save_model(version_dir / "model.ubj")
    write_features(version_dir, COLUMNS, impute=0.0)
    return folder


@pytest.fixture(scope="session")
def expected(models_dir: Path, rows: np.ndarray) -> np.ndarray:
    """XGBoost's own scores."""
    booster = xgboost.Booster(model_file=models_dir / "fraud" / "3" / "model.ubj")
    return np.asarray(booster.predict(xgboost.DMatrix(rows, feature_names=list(COLUMNS))))


@pytest.fixture(scope="session")
def ours(models_dir: Path) -> Iterator[Ports]:
    command = [sys.executable, "-m", "model_server", "--models-dir", str(models_dir)]
    command += ["--model-name", "fraud", "--http-port", "0", "--admin-port", "0"]
    command += ["--admin-http-port", "0"]
    with _process(command) as child:
        assert child.stdout is not None
        assert select.select([child.stdout], [], [], PATIENCE_S)[0], "the server said nothing"
        said = dict(part.split("=") for part in child.stdout.readline().split()[1:])
        yield Ports(*(int(said[n]) for n in ("port", "http_port", "admin_port", "admin_http_port")))


@pytest.fixture(scope="session")
def mlserver(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ports]:
    """MLServer with the same file, no worker processes."""
    folder = tmp_path_factory.mktemp("mlserver")
    uri = str(models_dir / "fraud" / "3" / "model.ubj")
    settings = {
        "name": "fraud",
        "implementation": "mlserver_xgboost.XGBoostModel",
        "parameters": {"uri": uri, "version": "3"},
    }
    (folder / "model-settings.json").write_text(json.dumps(settings))
    ports = Ports(free_port(), free_port())
    environment = CLEAN | {
        "MLSERVER_HOST": "127.0.0.1",
        "MLSERVER_GRPC_PORT": str(ports.grpc),
        "MLSERVER_HTTP_PORT": str(ports.http),
        "MLSERVER_METRICS_PORT": str(free_port()),
        "MLSERVER_PARALLEL_WORKERS": "0",
    }
    command = [str(PEERS / "mlserver" / "bin" / "mlserver"), "start", str(folder)]
    log = folder.with_name("mlserver.log")
    with log.open("w") as output, _process(command, environment, output) as child:
        _wait_until_ready(child, f"http://127.0.0.1:{ports.http}/v2/models/fraud/ready", log)
        yield ports


@pytest.fixture(scope="module")
def mlflow_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """MLflow's tracking server and registry, empty."""
    program = PEERS / "mlflow" / "bin" / "mlflow"
    if not program.exists():
        pytest.skip("MLflow is not installed: make peers")
    folder = tmp_path_factory.mktemp("mlflow")
    port = free_port()
    command = [str(program), "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--workers", "1"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    environment = CLEAN | {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    log = folder / "mlflow.log"
    with log.open("w") as output, _process(command, environment, output) as child:
        _wait_until_ready(child, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}"


@contextmanager
def _process(
    command: list[str], environment: dict[str, str] | None = None, output: Any = None
) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=output or subprocess.PIPE,
        stderr=output or subprocess.DEVNULL,
        text=True,
    )
    try:
        yield child
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(20)
        except subprocess.TimeoutExpired:
            child.kill()
        child.communicate()


def _wait_until_ready(child: subprocess.Popen[str], url: str, log: Path) -> None:
    ends_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < ends_s:
        assert child.poll() is None, log.read_text()[-3_000:]
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.05)
    pytest.fail("the server was not ready in time")


@pytest.fixture
def stranger(tmp_path: Path, rows: np.ndarray) -> Callable[..., dict[str, Any]]:
    """Run a script of ``clients/`` in a peer's environment; returns the JSON that it prints."""

    def run(environment: str, script: str, **arguments: Any) -> dict[str, Any]:
        python = PEERS / environment / "bin" / "python"
        if not python.exists():
            pytest.skip("the peers are not installed: make peers")
        np.save(tmp_path / "rows.npy", rows)
        given = json.dumps({"rows": str(tmp_path / "rows.npy"), "columns": COLUMNS} | arguments)
        done = subprocess.run(
            [python, CLIENTS / script, given],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            cwd=tmp_path,  # so that nothing of this project can be imported
            env=CLEAN | {"TF_CPP_MIN_LOG_LEVEL": "3", "MLFLOW_DISABLE_TELEMETRY": "true"},
        )
        assert done.returncode == 0, done.stderr[-3_000:]
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return answer

    return run
