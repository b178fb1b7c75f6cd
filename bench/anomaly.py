"""Measure the machine anomalies: alert latency, the highest rate held, and a plain loop beside it.

Every machine sends a reading a second, SKAB's runs or synthetic ones with an offset and a gain of
its own, on the same cores as the broker and the job. The job is that of conf/iot.yaml; its alert
threshold is lowered so that there are enough alerts to tell a p99 by.

Results, by part:

  live      alert_p99_ms, window_p99_ms   from a window's end, which is event time, to its alert and
                                          its score in Kafka; by the broker's clock. Windows close
                                          at the first reading 500 ms after their end
            memory_growth                 of the job's processes, last quarter over second
            windows_wrong                 fields of sampled windows that differ from pandas' by more
                                          than 1e-9 of their size
  rates     rate_held                     the highest of --rates with alert_p99_ms below 2 s
  backlog   backlog                       readings/s of a backlog without faults, beside:
            plain_loop, bytewax           the same library calls without Flink; Bytewax needs
                                          `make bench-peers`

Written to build/bench/anomaly.json.

Examples:
  python -m bench.anomaly --quick
  python -m bench.anomaly --seconds 600 --machines 10000
"""

from __future__ import annotations

import argparse
import json
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import psutil

from bench import common
from bench.anomaly_load import fleet_of
from bench.anomaly_windows import differences
from bench.common import (
    BENCH,
    BenchError,
    Result,
    command_line,
    compared,
    growth_rate,
    guarded,
    override,
    percentiles,
    say,
)
from bench.feature_runs import PEER_PYTHONS
from bench.lab import Child, Place, place
from bench.watching import watch
from jobs import settings, training
from jobs.demo.iot import evaluation, runs
from jobs.environment import ROOT
from jobs.settings import Settings

PARTS = ("live", "rates", "backlog")
SETTINGS = {"alerts.threshold": 0.45, "batch.buckets": 1, "batch.window": "50ms"}
"""What differs from conf/iot.yaml."""

P99_MOST_MS = 2_000
LEAD_S = 10
"""From the start of the load generator to its first reading."""

_MEMORY_EVERY_S = 5.0
_WARM, _WARM_READINGS, _WARM_S = "warm", 60, 240.0
_DONE_S = 60.0
_CHECKED_MACHINES = 50


@dataclass(slots=True)
class Phase:
    """One rate.

    Attributes:
        machines: Machines, and readings a second.
        start_ms: Event time of the first.
        alert_ms: Of each alert that such a window opened, from its end to Kafka.
        window_ms: The same of each window closed by a reading.
        memory: Bytes of the job's processes, over time.
        windows: Those of the machines that are checked.
        sent: Readings, repeats and bad records.
        accounted: Those whose end was seen.
    """

    machines: int
    start_ms: int = 0
    alert_ms: list[float] = field(default_factory=list)
    window_ms: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    windows: list[dict[str, Any]] = field(default_factory=list)
    sent: int = 0
    accounted: int = 0

    @property
    def is_held(self) -> bool:
        """Whether all is accounted for and alerts came in time."""
        return bool(
            self.sent == self.accounted
            and self.alert_ms
            and percentiles(self.alert_ms)["p99"] <= P99_MOST_MS
        )

    def about(self) -> dict[str, Any]:
        """For the document."""
        return {
            "name": f"{self.machines}_machines",
            "sent": self.sent,
            "accounted": self.accounted,
            "alerts": len(self.alert_ms),
            "windows": len(self.window_ms),
            "alert_ms": percentiles(self.alert_ms) if self.alert_ms else {},
            "window_ms": percentiles(self.window_ms) if self.window_ms else {},
            "memory_bytes": self.memory,
        }


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = command_line("anomaly", __doc__)
    add = result.add_argument
    add("--quick", action="store_true", help="a smoke test; its figures mean nothing")
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure (all)")
    add("--config", type=Path, default=ROOT / "conf" / "iot.yaml", help="the job's settings file")
    add("--set", dest="overrides", metavar="KEY=VALUE", action="append", type=override,
        default=[], help="override one of our job's settings; may be repeated")  # fmt: skip
    add("--machines", type=int, help="and readings a second (default: 10,000)")
    add("--seconds", type=int, help="of the live part (default: 600)")
    add("--rates", nargs="+", type=int, help="readings a second to try (default: 15,000 to 40,000)")
    add("--rate-seconds", type=int, help="of each (default: 60)")
    add("--backlog-seconds", type=int, help="of the backlog's readings (default: 100)")
    add("--keep", action="store_true", help="keep the logs below build/bench in any case")
    return result


def complete(options: argparse.Namespace) -> argparse.Namespace:
    """Fill in the defaults, which --quick changes."""
    defaults: dict[str, tuple[Any, Any]] = {
        "machines": (300, 10_000),
        "seconds": (40, 600),
        "rates": ([400], [15_000, 20_000, 30_000, 40_000]),
        "rate_seconds": (30, 60),
        "backlog_seconds": (60, 100),
    }
    for name, (short, long) in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, short if options.quick else long)
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, store and print; returns the exit code."""
    options = complete(parser().parse_args(argv))
    return guarded(lambda: _bench(options))


def _bench(options: argparse.Namespace) -> int:
    about = common.machine()
    overrides = {**SETTINGS, "model.path": str(BENCH / "anomaly-models"), **dict(options.overrides)}
    chosen = settings.load(options.config, overrides)
    model_dir = _model(chosen)
    results: list[Result] = []
    details: list[dict[str, Any]] = []
    with place("anomaly", options.config, overrides, keep=options.keep) as at:
        parts: dict[str, Callable[[], list[Result]]] = {
            "live": lambda: _live(at, chosen, options, details),
            "rates": lambda: _rates(at, options, details),
            "backlog": lambda: _backlog(at, options, model_dir),
        }
        for part in options.parts:
            results += _attempted(at, parts[part])
        failures = at.failures
    document = {
        "machine": about,
        "versions": common.versions() | {"data": runs.load().source},
        "settings": {
            "config": options.config.name,
            "changed": {**SETTINGS, **dict(options.overrides)},
            "machines": options.machines,
            "seconds": options.seconds,
        },
        "runs": details,
        "failures": failures,
    }
    return common.finish(
        "anomaly",
        "Machine anomalies",
        document,
        results,
        quick=options.quick,
        baseline="plain loop",
    )


def _attempted(at: Place, part: Callable[[], list[Result]]) -> list[Result]:
    """A part's results; a failure is kept, so that the other parts take place."""
    try:
        return part()
    except BenchError as exc:
        at.failures.append(str(exc))
        return []


def _model(chosen: Settings) -> Path:
    say("training a model")
    return training.train(chosen, evaluation.training_frame(runs.load())).version.path


# -- live ---------------------------------------------------------------------------------------


def _live(
    at: Place, chosen: Settings, options: argparse.Namespace, details: list[dict[str, Any]]
) -> list[Result]:
    phase = _measured(at, options, options.machines, options.seconds)
    details.append(phase.about())
    return _live_results(chosen, options, phase, at.failures)


def _measured(at: Place, options: argparse.Namespace, machines: int, seconds: int) -> Phase:
    """One rate with a job of its own."""
    name = f"live-{machines}"
    say(f"[bold]{name}[/]: {machines:,} machines for {seconds} s")
    topics = {**at.create_outputs(name, 1), "events": at.create(f"{name}-events", partitions=1)[0]}
    phase = Phase(machines)
    with at.start_ours(name, at.job_overrides(name, topics)) as job:
        _warm(at, job, topics)
        phase.start_ms = (int(time.time()) + LEAD_S) * 1_000
        _send(at, job, phase, topics["events"], seconds)
        _wait(at, job, phase, topics)
    _read(at, phase, topics)
    return phase


def _warm(at: Place, job: Child, topics: dict[str, str]) -> None:
    """A job runs before its Python does, and compiles loops: wait until it has scored windows."""
    begin_ms = time.time_ns() // 1_000_000 - 120_000
    readings = [
        {"reading": f"{n}", "at_ms": begin_ms + 1_000 * n, "machine": _WARM, "machine_type": "P100"}
        for n in range(_WARM_READINGS)
    ]
    pairs = [(_WARM.encode(), orjson.dumps(reading)) for reading in readings]
    at.topics.write(topics["events"], pairs, "warming up", len(pairs))
    deadline_s = time.monotonic() + _WARM_S
    while at.topics.size(topics["predictions"]) < _WARM_READINGS // 10:
        job.check()
        if time.monotonic() > deadline_s:
            raise BenchError(f"the job scored no window within {_WARM_S:.0f} s")
        time.sleep(0.2)


def _send(at: Place, job: Child, phase: Phase, topic: str, seconds: int) -> None:
    arguments = [
        *("--bootstrap", at.bootstrap, "--topic", topic, "--machines", str(phase.machines)),
        *("--seconds", str(seconds), "--start-ms", str(phase.start_ms), "--disturbed", "0.3"),
    ]
    with Child(f"load-{phase.machines}", "bench.anomaly_load", arguments, at.folder) as load:
        load.line("ready")
        load.tell("go")
        deadline_s = time.monotonic() + LEAD_S + 3 * seconds + 60
        while True:
            job.check()
            phase.memory.append(_memory(job))
            try:
                report = json.loads(load.line("{", _MEMORY_EVERY_S))
                break
            except BenchError:
                load.check()
                if time.monotonic() > deadline_s:
                    raise
    phase.sent = report["sent"]
    say(f"{report['sent']:,} records in {report['seconds']:.1f} s")


def _memory(job: Child) -> int:
    main = psutil.Process(job.pid)
    family = [main, *main.children(recursive=True)]
    return sum(process.memory_info().rss for process in family)


def _wait(at: Place, job: Child, phase: Phase, topics: dict[str, str]) -> None:
    """Until the last windows are closed, by idleness, and nothing more comes."""
    outputs = ("predictions", "alerts", "dead_letters", "duplicates")
    seen, moved_s = -1, time.monotonic()
    while time.monotonic() - moved_s < 20.0:
        job.check()
        size = sum(at.topics.size(topics[name]) for name in outputs)
        if size != seen:
            seen, moved_s = size, time.monotonic()
        time.sleep(0.5)


def _read(at: Place, phase: Phase, topics: dict[str, str]) -> None:
    by_time: set[tuple[str, int]] = set()
    checked = {f"m{n:05d}" for n in range(min(_CHECKED_MACHINES, phase.machines))}
    for message in at.topics.read(topics["predictions"]):
        value = orjson.loads(message.value() or b"{}")
        if value["key"] == _WARM:
            continue
        window = value["window"]
        phase.accounted += window["readings"]
        if window["closed_by"] == "time":
            by_time.add((value["key"], window["window_end_ms"]))
            phase.window_ms.append(message.timestamp()[1] - window["window_end_ms"])
        if value["key"] in checked:
            phase.windows.append(window)
    for message in at.topics.read(topics["alerts"]):
        value = orjson.loads(message.value() or b"{}")
        if value.get("kind") == "scores" and value["state"] == "open":
            # One of a silent machine waits for rollup.idle.
            if (value["entity"]["value"], value["opened_ms"]) not in by_time:
                continue
            phase.alert_ms.append(message.timestamp()[1] - value["opened_ms"])
    for name in ("dead_letters", "duplicates"):
        phase.accounted += at.topics.size(topics[name])


def _live_results(
    chosen: Settings, options: argparse.Namespace, phase: Phase, failures: list[str]
) -> list[Result]:
    if phase.accounted != phase.sent:
        failures.append(f"{phase.sent - phase.accounted:,} records are unaccounted for")
    fleet = fleet_of(phase.machines, options.seconds, phase.start_ms, True, 0.3)
    compared_fields, wrong = differences(chosen, fleet, phase.windows)
    failures += wrong[:3]
    quarter = max(1, len(phase.memory) // 4)
    growth = np.mean(phase.memory[-quarter:]) / np.mean(phase.memory[quarter : 2 * quarter])
    rate = f"at {phase.machines:,} readings/s for {options.seconds} s"
    results = [
        Result("window_p99_ms", percentiles(phase.window_ms)["p99"], "ms", note=rate),
        Result("memory_growth", float(growth), "times", note="last quarter over second"),
        Result("memory_max", max(phase.memory) / 2**20, "MiB"),
        Result("windows_wrong", float(len(wrong)), "fields", note=f"of {compared_fields:,}"),
    ]
    if phase.alert_ms:
        p99 = percentiles(phase.alert_ms)["p99"]
        note = f"{len(phase.alert_ms):,} alerts"
        results.insert(0, Result("alert_p99_ms", p99, "ms", note=note))
    else:
        failures.append("there were no alerts")
    return results


def _rates(at: Place, options: argparse.Namespace, details: list[dict[str, Any]]) -> list[Result]:
    held = 0
    for rate in options.rates:
        phase = _measured(at, options, rate, options.rate_seconds)
        details.append(phase.about())
        if not phase.is_held:
            break
        held = rate
    tried = ", ".join(f"{rate:,}" for rate in options.rates)
    return [Result("rate_held", float(held) or None, "readings/s", note=f"tried: {tried}")]


# -- backlog ------------------------------------------------------------------------------------


def _backlog(at: Place, options: argparse.Namespace, model_dir: Path) -> list[Result]:
    """The rate at which each program works off the same readings."""
    (events,) = at.create("backlog-events", partitions=1)
    arguments = [
        *("--bootstrap", at.bootstrap, "--topic", events, "--machines", str(options.machines)),
        *("--seconds", str(options.backlog_seconds), "--disturbed", "0.3"),
        *("--start-ms", str((int(time.time()) - options.backlog_seconds) * 1_000)),
        *("--no-faults", "--backlog"),
    ]
    say("writing a backlog")
    with Child("load-backlog", "bench.anomaly_load", arguments, at.folder) as load:
        load.line("ready")
        load.tell("go")
        readings = json.loads(load.line("{", 600))["sent"]
    per_window = readings / (options.machines * (options.backlog_seconds // 10))
    common_arguments = ["--bootstrap", at.bootstrap, "--events", events]
    common_arguments += ["--model", str(model_dir / "model.onnx")]
    plain = _rate_of(at, options, "plain", common_arguments, per_window)
    results = [Result("plain_loop", plain, "readings/s", note="the limit: no state survives")]
    if PEER_PYTHONS["bytewax"].exists():
        rate = _rate_of(at, options, "bytewax", common_arguments, per_window)
        results.append(compared("bytewax", rate, "readings/s", plain))
    else:
        results.append(Result("bytewax", None, "readings/s", note="missing: make bench-peers"))
    ours = _attempted(at, lambda: [_ours(at, options, events, per_window, plain)])
    return ours + results


def _ours(
    at: Place, options: argparse.Namespace, events: str, per_window: float, plain: float | None
) -> Result:
    topics = {**at.create_outputs("backlog", 1), "events": events}
    with at.start_ours("backlog", at.job_overrides("backlog", topics)) as job:
        rate = _growth(at, options, job, topics["predictions"], per_window)
    return compared("backlog", rate, "readings/s", plain)


def _rate_of(
    at: Place, options: argparse.Namespace, name: str, arguments: list[str], per_window: float
) -> float | None:
    (output,) = at.create(f"{name}-windows", partitions=1)
    arguments = [*arguments, "--output", output]
    module, python = "bench.plain_anomaly", Path(sys.executable)
    if name == "bytewax":
        module, python = "bench.peer_bytewax_anomaly", PEER_PYTHONS["bytewax"]
        arguments += ["--libraries", sysconfig.get_path("purelib")]
    with Child(name, module, arguments, at.folder, python=python) as job:
        return _growth(at, options, job, output, per_window)


def _growth(
    at: Place, options: argparse.Namespace, job: Child, topic: str, per_window: float
) -> float | None:
    """Readings per second, told by the windows that come out; none if they come too fast."""
    total = options.machines * (options.backlog_seconds // 10 - 1)

    def is_enough(n: int, seconds: float) -> bool:
        return n >= total or (n > 0 and seconds > _DONE_S)

    try:
        samples = watch(at.topics.size, topic, total, [job], is_enough)
        return growth_rate(samples, 0.2).per_s * per_window
    except BenchError as exc:
        at.failures.append(f"{job.name}: {exc}")
        return None


if __name__ == "__main__":
    sys.exit(main())
