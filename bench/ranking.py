"""Measure how long a ranked feed takes at the gateway, and what of it is the model's own work.

Callers ask over HTTP at random moments at a constant mean rate, whether or not they are answered;
time is from when a request was due to its answer at the caller. Each way of ranking meets one rate
after the other, ascending:
  served     our job with the model server; under the highest rate that it holds the server is
             killed at last: every request must still be answered, by popular items
  embedded   our job with the model in the operator
  bytewax    Bytewax with the same library calls behind the same gateway, without popularity,
             feedback, impressions, checks and checkpoints; from `make bench-peers`

Results: p50_<mode>_<rate> and p99_<mode>_<rate>, ms; model_<mode>_<rate>, % of the requests that
the model answered, the others got popular items in time; held_<mode>, the highest rate at which
the model answered 99 % and the 99th percentile was within 200 ms, with its ratio to the plain loop;
cpu_<mode>, ms of CPU for a request in job, gateway and server, at the highest rate held;
p99_killed_<rate>, ms; plain_loop, rankings/s of the same candidates, features and model in one
thread, without Kafka, Flink and HTTP: the limit of a core. A request of our job that was not
answered or got too few items is a failure. Written to build/bench/ranking.json.

Examples:
  python -m bench.ranking --quick
  python -m bench.ranking --modes served --rates 200 --seconds 60
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bench.common import (
    BenchError,
    Result,
    add_common_options,
    command_line,
    compared,
    finish,
    guarded,
    machine,
    say,
    versions,
)
from bench.feature_runs import PEER_PYTHONS
from bench.lab import Place, place
from bench.ranking_core import Ranker
from bench.ranking_stages import HISTORY, JOBS, MODELS, PEERS, Stage, stage
from jobs import ranking_data, ranking_training, settings
from jobs.environment import ROOT
from jobs.settings import Settings
from model_server.repository import ModelVersion, find_version, list_versions
from udfs.ranking.users import UserState

CONFIG = ROOT / "conf" / "feed.yaml"
SETTINGS = {"batch.buckets": 1, "topics.partitions": 1}
KILLED_AFTER = 0.5
_HELD_MS, _HELD_PERCENT = 200.0, 99.0
_ITEMS = 20


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = command_line("ranking", __doc__)
    add = found.add_argument
    add_common_options(add)
    found.set_defaults(config=CONFIG)
    modes = (*JOBS, *PEERS)
    add("--modes", nargs="+", choices=modes, default=list(modes), help="ways of ranking")
    add("--rates", nargs="+", type=int, default=[50, 100, 200, 400], help="requests/s, ascending")
    add("--seconds", type=float, default=20.0, help="measured at each rate (%(default)s)")
    add("--warm-s", type=float, default=10.0, help="before the first rate; 5 before the others")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; returns the exit code."""
    options = parser().parse_args(argv)
    if options.quick:
        options.rates, options.seconds, options.modes = [20], 5.0, ["served"]
    return guarded(lambda: _measure(options))


@dataclass
class _Found:
    """What was measured so far."""

    results: list[Result] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def add(self, name: str, value: float | None, unit: str, note: str = "") -> None:
        self.results.append(Result(name, value, unit, note=note))


def _measure(options: argparse.Namespace) -> int:
    overrides = {**SETTINGS, **dict(options.overrides), "model.path": str(MODELS)}
    begun = machine()
    data = ranking_data.load(settings.load(options.config, overrides), None, False, _silent)
    chosen = settings.load(options.config, overrides)
    version = _version(chosen, data)
    found = _Found()
    plain = _plain_loop(chosen, version, data)
    found.add("plain_loop", plain, "1/s", "the limit of one core")
    with place("ranking", options.config, overrides, keep=options.keep) as at:
        (at.folder / "users").write_text("\n".join(data.log.user_ids.tolist()))
        for mode in options.modes:
            if mode in PEERS and not PEER_PYTHONS[mode].exists():
                found.add(f"held_{mode}", None, "1/s", "missing: make bench-peers")
                continue
            _measure_mode(options, at, mode, data, plain, found)
        at.failures.extend(found.failures)
    document = {
        "machine": begun,
        "versions": versions(),
        "settings": {"changed": {**SETTINGS, **dict(options.overrides)}, "data": data.source},
        "runs": found.runs,
        "failures": found.failures,
    }
    return finish("ranking", "A ranked feed at the gateway", document, found.results,
                  quick=options.quick, baseline="plain loop")  # fmt: skip


def _silent(_step: str, _done: float) -> None:
    return


def _version(chosen: Settings, data: ranking_data.TrainingData) -> ModelVersion:
    if not list_versions(MODELS, "feed"):
        say("training a version")
        ranking_training.train(chosen, data, _silent)
    return find_version(MODELS, "feed")


def _plain_loop(chosen: Settings, version: ModelVersion, data: ranking_data.TrainingData) -> float:
    """Rankings/s of one thread, from the user's state to the reply's JSON."""
    assert chosen.ranking is not None
    ranker = Ranker(version.path, chosen.ranking.candidate_options)
    time_ms, states = int(data.log.times_ms[-1]), dict[int, UserState]()
    last = data.log.part(slice(max(0, len(data.log) - HISTORY), None))
    for n in range(len(last)):
        event = {"item": str(last.item_ids[last.items[n]]), "event_time_ms": int(last.times_ms[n])}
        state = states.setdefault(int(last.users[n]), UserState())
        ranker.buy(state, event | {"price": float(last.prices[n])})
    users = np.random.default_rng(1).permutation(list(states)).tolist()
    request = {"event_id": "r", "user": "u", "gateway": "g", "items": _ITEMS}
    begun_s, n = time.perf_counter(), 0
    while time.perf_counter() < begun_s + 3.0:
        state = states[users[n % len(users)]]
        ranker.rank([(request, ranker.view(state, time_ms))])
        n += 1
    return n / (time.perf_counter() - begun_s)


def _measure_mode(
    options: argparse.Namespace,
    at: Place,
    mode: str,
    data: ranking_data.TrainingData,
    plain: float,
    found: _Found,
) -> None:
    say(f"{mode}: starting the job")
    held, cpu_ms = 0, None
    with stage(at, mode, data) as running:
        for number, rate in enumerate(options.rates):
            run = _run(options, at, running, rate, options.warm_s if number == 0 else 5.0)
            found.runs.append(run | {"name": f"{mode}_{rate}"})
            for name, unit in (("p50", "ms"), ("p99", "ms"), ("model", "%")):
                found.add(f"{name}_{mode}_{rate}", run[name], unit)
            if run["p99"] <= _HELD_MS and run["model"] >= _HELD_PERCENT:
                held, cpu_ms = rate, run["cpu_ms"]
            if mode in JOBS:
                _check(f"{mode} at {rate}/s", run, found)
        note = "the model answered 99 %, p99 within 200 ms"
        found.results.append(compared(f"held_{mode}", float(held), "1/s", plain, note))
        found.add(f"cpu_{mode}", cpu_ms, "ms", "CPU of a request, at that rate")
        if mode == "served":
            _measure_kill(options, at, running, held or min(options.rates), found)


def _measure_kill(
    options: argparse.Namespace, at: Place, running: Stage, rate: int, found: _Found
) -> None:
    """The server ends in the middle: nobody may be left without an answer."""
    delay_s = 5.0 + KILLED_AFTER * options.seconds
    killer = threading.Timer(delay_s, running.children["server"].stop)
    killer.start()
    run = _run(options, at, running, rate, 5.0)
    killer.join()
    found.runs.append(run | {"name": f"killed_{rate}"})
    found.add(f"p99_killed_{rate}", run["p99"], "ms", f"answered by {run['answered_by']}")
    _check("server killed", run, found)


def _check(what: str, run: dict[str, Any], found: _Found) -> None:
    """Every request must have its answer with as many items as it asked for."""
    if any(by.startswith("HTTP") or by == "too few items" for by in run["answered_by"]):
        found.failures.append(f"{what}: answered by {run['answered_by']}")


def _run(
    options: argparse.Namespace, at: Place, running: Stage, rate: int, warm_s: float
) -> dict[str, Any]:
    say(f"{rate} requests/s")
    command = [sys.executable, "-m", "bench.ranking_load", "--url", running.url]
    command += ["--users", str(at.folder / "users"), "--rate", str(rate)]
    command += ["--time-ms", str(running.time_ms), "--items", str(_ITEMS)]
    command += ["--seconds", str(options.seconds), "--warm-s", str(warm_s)]
    used_s = running.cpu_s()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise BenchError(f"the callers ended with an error: {done.stderr.strip()[-500:]}")
    run: dict[str, Any] = json.loads(done.stdout)
    cpu_s = running.cpu_s() - used_s
    return run | {
        "cpu_ms": 1_000 * cpu_s / (rate * (options.seconds + warm_s)),
        "model": 100.0 * run["answered_by"].get("model", 0) / max(1, run["asked"]),
    }


if __name__ == "__main__":
    sys.exit(main())
