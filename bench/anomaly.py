"""Measure the machine anomalies: alert latency, the highest rate held, and a plain loop beside it.

Every machine sends a reading a second, SKAB's runs or synthetic ones with an offset and a gain of
its own, on the same cores as the broker and the job. The job is that of conf/iot.yaml; its alert
threshold is lowered so that there are enough alerts to tell a p99 by.

Results, by part:

  live      alert_p99_ms, window_p99_ms   from a window's end, which is event time, to its alert and
                                          its score in Kafka; by the broker's clock. Windows close
                                          at the first reading 500 ms after their end, or by the
                                          clock when that is overdue (rollup.overdue). Windows that
                                          the end of the load leaves open are not among them: they
                                          are overdue all at once
            memory_growth, memory_slope   of the job's processes: last quarter over second; a line
                                          through all samples after the first quarter
            windows_wrong                 fields of sampled windows that differ from pandas' by more
                                          than 1e-9 of their size
  rates     rate_held                     the highest of --machines and --rates with alert_p99_ms
                                          of at most 2 s and every record accounted for
  backlog   backlog                       readings/s of a backlog without faults, beside:
            plain_loop, bytewax           the same library calls without Flink; Bytewax needs
                                          `make bench-peers`

Written to build/bench/anomaly.json. Each rate is a job of its own: 80 s beside its seconds.

Examples:
  python -m bench.anomaly --quick
  python -m bench.anomaly --short               # 4 minutes: 10,000 machines for 60 s, a backlog
  python -m bench.anomaly                       # 25 minutes: for 10 minutes, then higher rates
"""

from __future__ import annotations

import argparse
import json
import os
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
    add_job_options,
    command_line,
    compared,
    fill_in,
    growth_rate,
    guarded,
    percentiles,
    say,
)
from bench.feature_runs import PEER_PYTHONS
from bench.lab import Child, Place, place
from bench.watching import watch
from jobs import settings, training
from jobs.demo.iot import evaluation, runs
from jobs.environment import QUICK_JVM, ROOT
from jobs.settings import Settings
from udfs.batches.events import FloatArray

PARTS = ("live", "rates", "backlog")
SETTINGS = {"alerts.threshold": 0.45, "batch.buckets": 1, "batch.window": "50ms"}
"""What differs from conf/iot.yaml."""

JVM_ARGS = f"{QUICK_JVM} -Xmx1500m"
"""Without its optimising compiler, which takes half of two cores for the first minutes; and with
about the heap of a TaskManager, as the JVM's own default is a quarter of the machine."""

P99_MOST_MS = 2_000
LEAD_S = 10
"""From the start of the load generator to its first reading."""

_MEMORY_EVERY_S = 5.0
_WARM, _WARM_READINGS, _WARM_S = "warm", 60, 240.0
_DONE_S = 60.0
_CHECKED_MACHINES = 50
_CLOSING_MS = 1_500
"""A window's end, the lateness, and a second to the next reading: by then it is closed."""

_MOST_WINDOWS = 0.97


@dataclass(slots=True)
class Phase:
    """One rate.

    Attributes:
        machines: Machines, and readings a second.
        seconds: For how long.
        start_ms: Event time of the first.
        alert_ms: Of each alert that such a window opened, from its end to Kafka.
        by_end: The same of each window not closed by idleness, by its end, epoch ms.
        window_ms: The same of those whose next readings were sent.
        memory: Bytes of each of the job's processes by name, over time.
        windows: Those of the machines that are checked.
        sent: Readings, repeats and bad records.
        accounted: Those whose end was seen.
    """

    machines: int
    seconds: int
    start_ms: int = 0
    alert_ms: list[float] = field(default_factory=list)
    by_end: dict[int, list[float]] = field(default_factory=dict)
    window_ms: list[float] = field(default_factory=list)
    memory: list[dict[str, int]] = field(default_factory=list)
    windows: list[dict[str, Any]] = field(default_factory=list)
    sent: int = 0
    accounted: int = 0

    @property
    def last_end_ms(self) -> int:
        """The end of the last window whose next readings are sent, at most; epoch ms."""
        return self.start_ms + 1_000 * self.seconds - _CLOSING_MS

    @property
    def is_held(self) -> bool:
        """Whether all is accounted for and alerts came in time."""
        return bool(
            self.sent == self.accounted
            and self.alert_ms
            and percentiles(self.alert_ms)["p99"] <= P99_MOST_MS
        )

    @property
    def memory_bytes(self) -> FloatArray:
        """Of all processes together, float64 (samples,)."""
        return np.array([sum(sample.values()) for sample in self.memory], np.float64)

    def about(self) -> dict[str, Any]:
        """For the document."""
        return {
            "name": f"{self.machines}_machines",
            "seconds": self.seconds,
            "memory_every_s": _MEMORY_EVERY_S,
            "sent": self.sent,
            "accounted": self.accounted,
            "alerts": len(self.alert_ms),
            "windows": len(self.window_ms),
            "alert_ms": percentiles(self.alert_ms) if self.alert_ms else {},
            "window_ms": percentiles(self.window_ms) if self.window_ms else {},
            "memory_bytes": self.memory,
            "window_ms_by_end": {
                str((end_ms - self.start_ms) // 1_000): percentiles(took_ms)
                for end_ms, took_ms in sorted(self.by_end.items())
            },
        }


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = command_line("anomaly", __doc__)
    add = result.add_argument
    add("--quick", action="store_true", help="a smoke test; its figures mean nothing")
    add("--short", action="store_true", help="10,000 machines for 60 s, and a backlog")
    add("--parts", nargs="+", choices=PARTS, help="what to measure (all)")
    add_job_options(add, ROOT / "conf" / "iot.yaml")
    add("--machines", type=int, help="and readings a second (default: 10,000)")
    add("--seconds", type=int, help="of the live part (default: 600)")
    add("--rates", nargs="+", type=int, help="readings a second to try (default: 15,000 to 30,000)")
    add("--rate-seconds", type=int, help="of each (default: 60)")
    add("--backlog-seconds", type=int, help="of the backlog's readings (default: 100)")
    add("--keep", action="store_true", help="keep the logs below build/bench in any case")
    return result


def complete(options: argparse.Namespace) -> argparse.Namespace:
    """Fill in the defaults, which --quick and --short change."""
    defaults: dict[str, tuple[Any, Any, Any]] = {
        "machines": (300, 10_000, 10_000),
        "seconds": (40, 60, 600),
        "rates": ([400], [15_000], [15_000, 20_000, 25_000, 30_000]),
        "rate_seconds": (30, 30, 60),
        "backlog_seconds": (60, 40, 100),
        "parts": (PARTS, ("live", "backlog"), PARTS),
    }
    return fill_in(options, defaults, 0 if options.quick else 1 if options.short else 2)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, store and print; returns the exit code."""
    options = complete(parser().parse_args(argv))
    os.environ.setdefault("JVM_ARGS", JVM_ARGS)
    return guarded(lambda: _bench(options))


def _bench(options: argparse.Namespace) -> int:
    about = common.machine()
    overrides = {**SETTINGS, "model.path": str(BENCH / "anomaly-models"), **dict(options.overrides)}
    chosen = settings.load(options.config, overrides)
    model_dir = _model(chosen)
    results: list[Result] = []
    phases: list[Phase] = []
    with place("anomaly", options.config, overrides, keep=options.keep) as at:
        parts: dict[str, Callable[[], list[Result]]] = {
            "live": lambda: _live(at, chosen, options, phases),
            "rates": lambda: _rates(at, options, phases),
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
            "jvm": os.environ["JVM_ARGS"],
            "machines": options.machines,
            "seconds": options.seconds,
        },
        "runs": [phase.about() for phase in phases],
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
    at: Place, chosen: Settings, options: argparse.Namespace, phases: list[Phase]
) -> list[Result]:
    phase = _measured(at, options, options.machines, options.seconds)
    phases.append(phase)
    return _live_results(chosen, options, phase, at.failures)


def _measured(at: Place, options: argparse.Namespace, machines: int, seconds: int) -> Phase:
    """One rate with a job of its own."""
    name = f"live-{machines}"
    say(f"[bold]{name}[/]: {machines:,} machines for {seconds} s")
    topics = {**at.create_outputs(name, 1), "events": at.create(f"{name}-events", partitions=1)[0]}
    phase = Phase(machines, seconds)
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


def _memory(job: Child) -> dict[str, int]:
    main = psutil.Process(job.pid)
    found: dict[str, int] = {}
    for process in (main, *main.children(recursive=True)):
        name = process.name()
        found[name] = found.get(name, 0) + process.memory_info().rss
    return found


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
        if window["closed_by"] in ("time", "clock"):
            took_ms = message.timestamp()[1] - window["window_end_ms"]
            phase.by_end.setdefault(window["window_end_ms"], []).append(took_ms)
            if window["window_end_ms"] <= phase.last_end_ms:
                phase.window_ms.append(took_ms)
                by_time.add((value["key"], window["window_end_ms"]))
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
    memory = phase.memory_bytes
    quarter = max(1, len(memory) // 4)
    growth = np.mean(memory[-quarter:]) / np.mean(memory[quarter : 2 * quarter])
    rate = f"at {phase.machines:,} readings/s for {options.seconds} s"
    results = [
        Result("window_p99_ms", percentiles(phase.window_ms)["p99"], "ms", note=rate),
        Result("memory_growth", float(growth), "times", note="last quarter over second"),
        Result("memory_slope", _slope(memory[quarter:]), "MiB/min", note="after a quarter"),
        Result("memory_max", float(memory.max()) / 2**20, "MiB"),
        Result("windows_wrong", float(len(wrong)), "fields", note=f"of {compared_fields:,}"),
    ]
    if phase.alert_ms:
        p99 = percentiles(phase.alert_ms)["p99"]
        note = f"{len(phase.alert_ms):,} alerts"
        results.insert(0, Result("alert_p99_ms", p99, "ms", note=note))
    else:
        failures.append("there were no alerts")
    return results


def _slope(memory: FloatArray) -> float:
    """MiB a minute, of a line through samples in bytes."""
    if len(memory) < 2:
        return 0.0
    minutes = np.arange(len(memory)) * _MEMORY_EVERY_S / 60
    return float(np.polyfit(minutes, memory / 2**20, 1)[0])


def _rates(at: Place, options: argparse.Namespace, phases: list[Phase]) -> list[Result]:
    for rate in options.rates:
        if phases and not phases[-1].is_held:
            break
        phases.append(_measured(at, options, rate, options.rate_seconds))
    held = max((float(phase.machines) for phase in phases if phase.is_held), default=None)
    tried = ", ".join(f"{phase.machines:,} for {phase.seconds} s" for phase in phases)
    p99 = [
        Result(f"alert_p99_ms_{phase.machines}", percentiles(phase.alert_ms)["p99"], "ms")
        for phase in phases
        if phase.alert_ms
    ]
    return [*p99, Result("rate_held", held, "readings/s", note=f"tried: {tried}")]


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
    # A few windows of each run have no reading, as its recording pauses.
    total = int(_MOST_WINDOWS * options.machines * (options.backlog_seconds // 10 - 1))

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
