"""Our model server beside MLServer: the same XGBoost model, machine, load tool and protocol.

Both are started as their users would, one after the other, and asked by ``bench/serving_load.py``
over gRPC with the Open Inference Protocol: 1, 32 and 512 rows, 1 to 64 clients. The limit is
XGBoost called in a loop, with no server at all.

MLServer lives in an environment of its own, from `make peers`. Both are measured with one process
and with a worker process per core; each counts as it is better at the size. Start and memory are
those of one process.
Written to build/bench/serving.json.

Examples:
  python -m bench.serving --quick
  python -m bench.serving --rows 1 --clients 1 8
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import xgboost

from bench import common
from bench.common import BENCH, BenchError, Result, command_line, compared, say
from bench.lab import installed_environment
from jobs.environment import BUILD, ROOT, NotReadyError
from jobs.ports import free_port
from model_server.backends.xgboost import XGBoostModel

COLUMNS = 30
_TREES = 200
_DEPTH = 6
MODEL = "bench"
_PEER_PYTHON = BUILD / "peers" / "mlserver" / "bin" / "python"
_READY_S = 120.0
_LOOP_S = 2.0


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        name: Which one.
        target: host:port, gRPC.
        ready_s: Seconds from its start until it answered ready.
        process: It, and its children.
    """

    name: str
    target: str
    ready_s: float
    process: psutil.Process

    def resident_bytes(self) -> int:
        """Memory of the process and its children, shared pages counted once a process."""
        family = [self.process, *self.process.children(recursive=True)]
        return sum(int(member.memory_info().rss) for member in family)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = command_line("serving", __doc__)
    add = found.add_argument
    add("--quick", action="store_true",
        help="a smoke test; its figures mean nothing and go to a file of their own")  # fmt: skip
    add("--rows", type=int, nargs="+", default=[1, 32, 512], help="rows of a request")
    add("--clients", type=int, nargs="+", default=[1, 8, 64], help="clients at once")
    add("--seconds", type=float, default=5.0, help="measured seconds of each (%(default)s)")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print.

    Returns:
        Exit code: 0 if everything was measured.
    """
    options = parser().parse_args(argv)
    if options.quick:
        options.rows, options.clients, options.seconds = [1, 512], [4], 1.0
    return common.guarded(lambda: _bench(options))


def _bench(options: argparse.Namespace) -> int:
    machine = common.machine()
    folder = BENCH / "serving"
    write_model(folder / "models" / MODEL / "1")
    if not _PEER_PYTHON.exists():
        raise NotReadyError("MLServer is not installed", "make peers")
    runs: list[dict[str, Any]] = []
    starts: dict[str, Server] = {}
    memory: dict[str, int] = {}
    for name, start in (
        ("ours", _ours(folder, workers=1)),
        ("ours_workers", _ours(folder, workers=psutil.cpu_count() or 1)),
        ("mlserver", _mlserver(folder, workers=0)),
        ("mlserver_workers", _mlserver(folder, workers=psutil.cpu_count() or 1)),
    ):
        say(f"{name}: starting")
        with start as server:
            starts[name] = server
            for rows in options.rows:
                for clients in options.clients:
                    run = _load(server, rows, clients, options.seconds)
                    runs.append({"name": f"{name}_{rows}rows_{clients}clients"} | run)
                    say(f"{runs[-1]['name']}: {run['calls_per_s']:,.0f} calls/s, "
                        f"p50 {run['p50']:.2f} ms, p99 {run['p99']:.2f} ms")  # fmt: skip
            memory[name] = server.resident_bytes()
    results = _results(options, runs, starts, memory, _loop(folder, options.rows))
    document = {
        "machine": machine,
        "versions": common.versions() | _peer_versions(),
        "settings": {"changed": {}, "columns": COLUMNS, "trees": _TREES, "depth": _DEPTH},
        "runs": runs,
        "failures": [],
    }
    return common.finish("serving", "A model server", document, results, quick=options.quick)


def write_model(version_dir: Path) -> None:
    """Train a model of the fraud model's size on made-up rows."""
    version_dir.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(20_000, COLUMNS)).astype(np.float32)
    labels = (rows[:, :5].sum(axis=1) + rng.normal(size=len(rows)) > 2).astype(int)
    names = [f"f{column}" for column in range(COLUMNS)]
    matrix = xgboost.DMatrix(rows, labels, feature_names=names)
    settings = {"objective": "binary:logistic", "max_depth": _DEPTH}
    xgboost.train(settings, matrix, num_boost_round=_TREES).save_model(version_dir / "model.ubj")
    features = [{"name": name, "type": "float", "impute": None} for name in names]
    document = {"format": 1, "features": features}
    (version_dir / "features.json").write_text(json.dumps(document))


def _peer_versions() -> dict[str, str]:
    code = "import mlserver, xgboost; print(mlserver.__version__, xgboost.__version__)"
    found = subprocess.run(
        [_PEER_PYTHON, "-c", code], capture_output=True, text=True
    ).stdout.split()
    return dict(zip(("mlserver", "mlserver_xgboost"), found, strict=True))


@contextmanager
def _ours(folder: Path, *, workers: int) -> Iterator[Server]:
    port, http_port = free_port(), free_port()
    command = [sys.executable, "-m", "model_server", "--models-dir", str(folder / "models")]
    command += ["--model-name", MODEL, "--port", str(port), "--http-port", str(http_port)]
    command += ["--workers", str(workers)]
    with _running(f"ours_{workers}", command, folder, {}, port, http_port) as server:
        yield server


@contextmanager
def _mlserver(folder: Path, *, workers: int) -> Iterator[Server]:
    """MLServer with so many worker processes, each call by one thread of XGBoost as with ours."""
    port, http_port = free_port(), free_port()
    model = folder / "mlserver"
    model.mkdir(parents=True, exist_ok=True)
    uri = str(folder / "models" / MODEL / "1" / "model.ubj")
    (model / "model-settings.json").write_text(
        json.dumps(
            {
                "name": MODEL,
                "implementation": "mlserver_xgboost.XGBoostModel",
                "parameters": {"uri": uri, "version": "1"},
            }
        )
    )
    environment = {
        "MLSERVER_GRPC_PORT": str(port),
        "MLSERVER_HTTP_PORT": str(http_port),
        "MLSERVER_METRICS_PORT": str(free_port()),
        "MLSERVER_PARALLEL_WORKERS": str(workers),
        "MLSERVER_DEBUG": "false",
        "OMP_NUM_THREADS": "1",
    }
    command = [str(_PEER_PYTHON.parent / "mlserver"), "start", str(model)]
    with _running(f"mlserver_{workers}", command, folder, environment, port, http_port) as server:
        yield server


@contextmanager
def _running(
    name: str,
    command: list[str],
    folder: Path,
    environment: dict[str, str],
    port: int,
    http_port: int,
) -> Iterator[Server]:
    log_path = folder / f"{name}.log"
    with log_path.open("w") as log:
        begun_s = time.perf_counter()
        child = subprocess.Popen(
            command, cwd=ROOT, env=installed_environment() | environment, stdout=log, stderr=log
        )
        try:
            _wait_until_ready(child, http_port, log_path)
            ready_s = time.perf_counter() - begun_s
            yield Server(name, f"127.0.0.1:{port}", ready_s, psutil.Process(child.pid))
        finally:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(30)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _wait_until_ready(child: subprocess.Popen[bytes], http_port: int, log: Path) -> None:
    url = f"http://127.0.0.1:{http_port}/v2/models/{MODEL}/ready"
    ends_s = time.perf_counter() + _READY_S
    while time.perf_counter() < ends_s:
        if child.poll() is not None:
            raise BenchError(f"the server ended with {child.returncode}: see {log}")
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.01)
    raise BenchError(f"not ready after {_READY_S:g} s: see {log}")


def _load(server: Server, rows: int, clients: int, seconds: float) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.serving_load", "--target", server.target]
    command += ["--model", MODEL, "--columns", str(COLUMNS), "--rows", str(rows)]
    command += ["--clients", str(clients), "--seconds", str(seconds)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise BenchError(f"{server.name}, {rows} rows: {done.stderr.strip().splitlines()[-1]}")
    run: dict[str, Any] = json.loads(done.stdout)
    return run | {"calls_per_s": run["calls"] / run["seconds"]}


def _loop(folder: Path, sizes: Sequence[int]) -> dict[str, float]:
    """Calls/s of the model in a loop: XGBoost's own quickest call, and our compiled forest."""
    version_dir = folder / "models" / MODEL / "1"
    booster = xgboost.Booster(model_file=version_dir / "model.ubj")
    booster.set_param({"nthread": 1})
    ours = XGBoostModel.load(version_dir)
    found = {}
    for rows in sizes:
        batch = np.random.default_rng(0).normal(size=(rows, COLUMNS)).astype(np.float32)
        for name, call in (
            ("xgboost", lambda: booster.inplace_predict(batch, validate_features=False)),  # noqa: B023
            ("forest", lambda: ours.predict(batch)),  # noqa: B023
        ):
            calls, ends_s = 0, time.perf_counter() + _LOOP_S
            while time.perf_counter() < ends_s:
                call()
                calls += 1
            found[f"{name}_{rows}"] = calls / _LOOP_S
    return found


def _results(
    options: argparse.Namespace,
    runs: Sequence[dict[str, Any]],
    starts: dict[str, Server],
    memory: dict[str, int],
    loop: dict[str, float],
) -> list[Result]:
    by_name = {run["name"]: run for run in runs}
    results: list[Result] = []

    def add(name: str, value: float, unit: str, baseline: float, note: str) -> None:
        results.append(compared(name, value, unit, baseline, note))

    own, peers = ("ours", "ours_workers"), ("mlserver", "mlserver_workers")
    for rows in options.rows:
        best = {
            name: max(
                by_name[f"{name}_{rows}rows_{c}clients"]["calls_per_s"] for c in options.clients
            )
            for name in (*own, *peers)
        }
        ours, peer = (max(best[name] for name in names) for names in (own, peers))
        plural, limit = "s" * (rows > 1), loop[f"xgboost_{rows}"]
        add(f"ratio_mlserver_{rows}row{plural}", ours / peer, "x", 1.0, "of the best calls/s")
        add(f"calls_{rows}rows", ours, "calls/s", peer, "baseline: MLServer's best")
        add(f"loop_{rows}rows", ours, "calls/s", limit, "baseline: XGBoost in a loop")
        forest = loop[f"forest_{rows}"]
        add(f"forest_loop_{rows}rows", forest, "calls/s", limit, "our trees in a loop; the same")
        for clients in options.clients:
            at = f"{rows}rows_{clients}clients"
            for figure in ("p50", "p99"):
                value, other = (
                    min(by_name[f"{name}_{at}"][figure] for name in names) for names in (own, peers)
                )
                add(f"{figure}_{at}", value, "ms", other, "the same")
    ready_s = [starts[name].ready_s for name in ("ours", "mlserver")]
    add("start_to_ready", ready_s[0], "s", ready_s[1], "baseline: MLServer")
    mebibytes = [memory[name] / 2**20 for name in ("ours", "mlserver")]
    add("resident", mebibytes[0], "MiB", mebibytes[1], "baseline: MLServer")
    return results


if __name__ == "__main__":
    sys.exit(main())
