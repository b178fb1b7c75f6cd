"""Measure how long a ranked feed takes at the gateway, and what of it is the model's own work.

Callers ask over HTTP at random moments at a constant mean rate, whether or not they are answered;
time is from when a request was due to its answer at the caller. One job per way of scoring meets
one rate after the other, ascending. At the end of the served job's rates the model server is killed
under the highest one: every request must still be answered, by popular items.

Results: p50_<mode>_<rate> and p99_<mode>_<rate>, ms; p99_killed_<rate>, ms; cpu_<mode>, ms of CPU
for a request in job, gateway and server, at the highest rate; plain_loop, rankings/s of the same
candidates, features and model in one thread, without Kafka, Flink and HTTP: the limit of a core.
Answers that the model did not make, and requests that were not answered, are failures, but for
those while the server is killed. Written to build/bench/ranking.json.

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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bench.common import (
    BENCH,
    BenchError,
    Result,
    add_common_options,
    command_line,
    finish,
    guarded,
    machine,
    say,
    versions,
)
from bench.lab import Child, Place, place
from jobs import ranking_data, ranking_training, settings
from jobs.demo.feed.topics import write_history
from jobs.environment import ROOT
from jobs.settings import Settings
from model_server.backends import load_table
from model_server.repository import ModelVersion, find_version, list_versions
from udfs.ranking.arrays import keys_of
from udfs.ranking.candidates import candidates
from udfs.ranking.counters import ItemCounters
from udfs.ranking.features import pair_features
from udfs.ranking.index import ItemIndex
from udfs.ranking.users import UserState
from udfs.ranking.views import view_of

CONFIG = ROOT / "conf" / "feed.yaml"
MODELS = BENCH / "ranking-models"
MODES = ("served", "embedded")
TOPICS = ("events", "predictions", "impressions", "examples", "dead_letters", "duplicates")
SETTINGS = {"batch.buckets": 1, "topics.partitions": 1}
KILLED_AFTER = 0.5
_HISTORY = 20_000


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = command_line("ranking", __doc__)
    add = found.add_argument
    add_common_options(add)
    found.set_defaults(config=CONFIG)
    add("--modes", nargs="+", choices=MODES, default=list(MODES), help="ways of scoring")
    add("--rates", nargs="+", type=int, default=[50, 100, 200], help="requests/s, ascending")
    add("--seconds", type=float, default=30.0, help="measured at each rate (%(default)s)")
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

    def add(self, name: str, value: float, unit: str, note: str = "") -> None:
        self.results.append(Result(name, value, unit, note=note))


def _measure(options: argparse.Namespace) -> int:
    overrides = {**SETTINGS, **dict(options.overrides), "model.path": str(MODELS)}
    begun = machine()
    data = ranking_data.load(settings.load(options.config, overrides), None, False, _silent)
    version = _version(settings.load(options.config, overrides), data)
    found = _Found()
    found.add("plain_loop", _plain_loop(version, data), "1/s", "the limit of one core")
    with place("ranking", options.config, overrides, keep=options.keep) as at:
        (at.folder / "users").write_text("\n".join(data.log.user_ids.tolist()))
        for mode in options.modes:
            _measure_mode(options, at, mode, data, found)
        at.failures.extend(found.failures)
    document = {
        "machine": begun,
        "versions": versions(),
        "settings": {"changed": {**SETTINGS, **dict(options.overrides)}, "data": data.source},
        "runs": found.runs,
        "failures": found.failures,
    }
    return finish("ranking", "A ranked feed at the gateway", document, found.results,
                  quick=options.quick, baseline="-")  # fmt: skip


def _silent(_step: str, _done: float) -> None:
    return


def _version(chosen: Settings, data: ranking_data.TrainingData) -> ModelVersion:
    if not list_versions(MODELS, "feed"):
        say("training a version")
        ranking_training.train(chosen, data, _silent)
    return find_version(MODELS, "feed")


def _plain_loop(version: ModelVersion, data: ranking_data.TrainingData) -> float:
    """Rankings/s of one thread."""
    index, model = ItemIndex.load(version.path), load_table(version.path)
    chosen = settings.load(CONFIG).ranking
    assert chosen is not None
    counters, log = ItemCounters.of_index(index), data.log.before(index.as_of_ms)
    states = []
    for user in np.unique(log.users[-_HISTORY:])[:200].tolist():
        state = UserState()
        state.add(keys_of(log.item_ids[log.items[log.users == user]].tolist()), index.as_of_ms - 1)
        states.append(state)
    begun_s, n = time.perf_counter(), 0
    while time.perf_counter() < begun_s + 3.0:
        view = view_of(index, states[n % len(states)], index.as_of_ms)
        some = candidates(index, counters, view, chosen.candidate_options)
        model.predict(pair_features(index, counters, view, some))
        n += 1
    return n / (time.perf_counter() - begun_s)


@dataclass
class _Stage:
    """What runs for one mode."""

    url: str
    children: dict[str, Child]
    time_ms: int

    def cpu_s(self) -> float:
        return sum(child.cpu_s() for child in self.children.values())


@contextmanager
def _stage(at: Place, mode: str, data: ranking_data.TrainingData) -> Iterator[_Stage]:
    overrides = {
        **at.overrides,
        "kafka.bootstrap_servers": at.bootstrap,
        "kafka.group_id": f"{mode}-{at.tag}",
        "flink.checkpoint_dir": str(at.folder / "checkpoints" / mode),
        "flink.restart_attempts": 0,
        "model.embedded": mode == "embedded",
        "gateway.port": 0,
        **{f"topics.{name}": at.topic(f"{mode}_{name}") for name in (*TOPICS, "popularity")},
    }
    at.create(*(f"{mode}_{name}" for name in TOPICS), partitions=1)
    at.create(f"{mode}_popularity", partitions=1, **{"cleanup.policy": "compact"})
    children: dict[str, Child] = {}
    arguments = ["--models-dir", str(MODELS), "--model-name", "feed", "--port", "0"]
    try:
        if mode == "served":
            server = children["server"] = Child("server", "model_server", arguments, at.folder)
            overrides["model.server"] = f"127.0.0.1:{server.line('ready port=').partition('=')[2]}"
        path = at.folder / f"{mode}.yaml"
        chosen = settings.load(at.config, overrides)
        path.write_text(settings.as_yaml(chosen), encoding="utf-8")
        job = children["job"] = Child(
            f"{mode}-job", "bench.ours_job", ["--config", str(path)], at.folder, ends_at_eof=True
        )
        job.line("started")
        gateway = children["gateway"] = Child(
            f"{mode}-gateway", "jobs.cli", ["gateway", str(path)], at.folder
        )
        port = gateway.line("ready port=").partition("=")[2]
        last = data.log.part(slice(max(0, len(data.log) - _HISTORY), None))
        write_history(chosen, last)
        yield _Stage(f"http://127.0.0.1:{port}", children, int(data.log.times_ms[-1]))
    finally:
        for child in reversed(children.values()):
            child.stop()


def _measure_mode(
    options: argparse.Namespace,
    at: Place,
    mode: str,
    data: ranking_data.TrainingData,
    found: _Found,
) -> None:
    say(f"{mode}: starting the job")
    with _stage(at, mode, data) as stage:
        for rate in options.rates:
            used_s = stage.cpu_s()
            run = _load(options, at, stage, rate)
            run |= {"name": f"{mode}_{rate}", "cpu_s": stage.cpu_s() - used_s}
            found.runs.append(run)
            found.add(f"p50_{mode}_{rate}", run["p50"], "ms")
            found.add(f"p99_{mode}_{rate}", run["p99"], "ms")
            if run["answered_by"].keys() != {"model"}:
                found.failures.append(f"{mode} at {rate}/s: answered by {run['answered_by']}")
        found.add(f"cpu_{mode}", 1_000 * run["cpu_s"] / run["all"], "ms", "a request, warm-up in")
        if mode == "served":
            _measure_kill(options, at, stage, found)


def _measure_kill(options: argparse.Namespace, at: Place, stage: _Stage, found: _Found) -> None:
    """The server ends in the middle: nobody may be left without an answer."""
    rate = max(options.rates)
    delay_s = _warm_s(options) + KILLED_AFTER * options.seconds
    killer = threading.Timer(delay_s, stage.children["server"].stop)
    killer.start()
    run = _load(options, at, stage, rate) | {"name": f"killed_{rate}"}
    killer.join()
    found.runs.append(run)
    found.add(f"p99_killed_{rate}", run["p99"], "ms")
    if any(by.startswith("HTTP") or by == "too few items" for by in run["answered_by"]):
        found.failures.append(f"server killed: answered by {run['answered_by']}")


def _warm_s(options: argparse.Namespace) -> float:
    return 3.0 if options.quick else 15.0


def _load(options: argparse.Namespace, at: Place, stage: _Stage, rate: int) -> dict[str, Any]:
    say(f"{rate} requests/s")
    warm_s = _warm_s(options)
    command = [sys.executable, "-m", "bench.ranking_load", "--url", stage.url]
    command += ["--users", str(at.folder / "users"), "--rate", str(rate)]
    command += ["--time-ms", str(stage.time_ms)]
    command += ["--seconds", str(options.seconds), "--warm-s", str(warm_s)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise BenchError(f"the callers ended with an error: {done.stderr.strip()[-500:]}")
    run: dict[str, Any] = json.loads(done.stdout)
    return run | {"all": rate * (options.seconds + warm_s)}


if __name__ == "__main__":
    sys.exit(main())
