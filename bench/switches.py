"""Change a served model's version twenty times under load, every fourth time to a broken one.

Eight clients send 500 calls/s together to a server that looks for versions four times a second. No
call may fail, nor be answered by a broken version or by an older one than before. Compares the time
of calls while a version is loaded and switched to with that of the others. Written to
build/bench/switches.json.

Example:
  python -m bench.switches
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import grpc
import numpy as np

from bench import common
from bench.common import BENCH, BenchError, command_line, compared, percentiles, say
from bench.lab import Child
from bench.serving import COLUMNS, MODEL, write_model
from model_server.protos import PredictionServiceStub, PredictRequest
from model_server.tensors import to_proto

_CLIENTS = 8
_CALLS_PER_S = 500
_POLL_S = 0.25
_QUIET_S = 2.0
_PATIENCE_S = 60.0


@dataclass(frozen=True)
class Call:
    """One call.

    Attributes:
        due_s: When it was to be sent, monotonic.
        took_ms: From then to its answer.
        version: Who answered.
    """

    due_s: float
    took_ms: float
    version: int


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = command_line("switches", __doc__)
    found.add_argument("--switches", type=int, default=20, help="how many (%(default)s)")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print.

    Returns:
        Exit code: 0 if no call failed and none was answered by a wrong version.
    """
    options = parser().parse_args(argv)
    return common.guarded(lambda: _bench(options.switches))


def _bench(switches: int) -> int:
    machine = common.machine()
    folder = BENCH / "switches"
    shutil.rmtree(folder, ignore_errors=True)
    staged = folder / "staged"
    write_model(staged)
    shutil.copytree(staged, folder / "models" / MODEL / "1")
    arguments = ["--models-dir", str(folder / "models"), "--model-name", MODEL]
    with Child("server", "model_server", [*arguments, "--poll-s", str(_POLL_S)], folder) as server:
        port = int(server.line("ready ").split()[1].partition("=")[2])
        calls, spans, failures = asyncio.run(_run(port, folder, staged, switches))
    return _report(machine, calls, spans, failures, switches)


def _is_broken(version: int) -> bool:
    return version % 4 == 0


async def _run(
    port: int, folder: Path, staged: Path, switches: int
) -> tuple[list[list[Call]], list[tuple[float, float]], list[str]]:
    stop = asyncio.Event()
    failures: list[str] = []
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = PredictionServiceStub(channel)
        clients = [
            asyncio.create_task(_client(stub, n / _CALLS_PER_S, stop, failures))
            for n in range(_CLIENTS)
        ]
        await asyncio.sleep(2 * _QUIET_S)
        spans = []
        for version in range(2, switches + 2):
            begun_s = time.perf_counter()
            await _put(folder, staged, version)
            await _until_seen(stub, folder, version)
            spans.append((begun_s, time.perf_counter()))
            say(f"version {version}: {spans[-1][1] - begun_s:.1f} s")
            await asyncio.sleep(_QUIET_S)
        stop.set()
        return await asyncio.gather(*clients), spans, failures


async def _put(folder: Path, staged: Path, version: int) -> None:
    draft = folder / "draft"
    await asyncio.to_thread(shutil.copytree, staged, draft)
    if _is_broken(version):
        (draft / "model.ubj").write_bytes(b"broken")
    draft.rename(folder / "models" / MODEL / str(version))


async def _until_seen(stub: PredictionServiceStub, folder: Path, version: int) -> None:
    """Wait until a version answers or, a broken one, until the log says that it is refused."""
    ends_s = time.perf_counter() + _PATIENCE_S
    refused = f"event=load_failed model={MODEL} version={version} "
    while time.perf_counter() < ends_s:
        if _is_broken(version):
            if refused in (folder / "server.log").read_text():
                return
        elif (await stub.Predict(_request())).model_spec.version.value == version:
            return
        await asyncio.sleep(0.05)
    raise BenchError(f"version {version} was not seen in time")


def _request() -> PredictRequest:
    request = PredictRequest()
    request.model_spec.name = MODEL
    request.inputs["inputs"].CopyFrom(to_proto(np.zeros((4, COLUMNS), np.float32)))
    return request


async def _client(
    stub: PredictionServiceStub, begins_s: float, stop: asyncio.Event, failures: list[str]
) -> list[Call]:
    """Send at fixed times, whatever the answers do: a late answer counts from when it was due."""
    request, calls = _request(), []
    due_s = time.perf_counter() + begins_s
    while not stop.is_set():
        await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
        try:
            response = await stub.Predict(request, timeout=_PATIENCE_S)
            took_ms = (time.perf_counter() - due_s) * 1e3
            calls.append(Call(due_s, took_ms, response.model_spec.version.value))
        except grpc.aio.AioRpcError as exc:
            failures.append(f"{exc.code().name} {exc.details()}")
        due_s += _CLIENTS / _CALLS_PER_S
    return calls


def _report(
    machine: dict[str, object],
    clients: list[list[Call]],
    spans: list[tuple[float, float]],
    failures: list[str],
    switches: int,
) -> int:
    wrong = 0
    for calls in clients:
        versions = [call.version for call in calls]
        wrong += sum(map(_is_broken, versions))
        wrong += sum(b < a for a, b in pairwise(versions))
    if wrong:
        failures.append(f"{wrong} answers by a wrong version")
    every = [call for calls in clients for call in calls]
    during = [c.took_ms for c in every if any(a <= c.due_s <= b for a, b in spans)]
    quiet = [c.took_ms for c in every if not any(a <= c.due_s <= b + 0.2 for a, b in spans)]
    busy, calm = percentiles(during), percentiles(quiet)
    results = [
        compared("calls", float(len(every)), "calls", None),
        compared("failed", float(len(failures)), "calls", None),
        compared("wrong_version", float(wrong), "answers", None),
        *(compared(f"{name}_during_a_switch", busy[name], "ms", calm[name], "baseline: else")
          for name in ("p50", "p99", "max")),
    ]  # fmt: skip
    document = {
        "machine": machine,
        "versions": common.versions(),
        "settings": {"changed": {}, "switches": switches, "calls_per_s": _CALLS_PER_S},
        "runs": [{"name": "during", **busy}, {"name": "else", **calm}],
        "failures": failures[:20],
    }
    return common.finish("switches", "Version switches under load", document, results,
                         quick=switches < 20)  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
