"""The measurements of ``bench/features.py`` that read a topic: our job and the peers'."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import orjson
import pandas as pd

from bench.common import BenchError, Rate, Result, compared, growth_rate, say
from bench.feature_data import (
    Column,
    Oracle,
    columns_of,
    differences,
    records,
    write_columns,
)
from bench.lab import Child, Place
from bench.watching import watch
from jobs.environment import BUILD
from jobs.ports import free_port
from jobs.settings import Settings

SETTINGS = {"batch.window": "100ms"}
"""What differs from ``bench/features.yaml``; ``batch.buckets`` is the parallelism besides."""

PEER_PYTHONS = {name: BUILD / "peers" / name / "bin" / "python" for name in ("quix", "bytewax")}
OURS = "features_20_over_2_keys"
WINDOW_ONLY = "features_of_one_window"
_WINDOW_AGGREGATES = ("count", "sum", "mean")
_CHECKED = 3_000
_READ_MOST = 200_000


@dataclass(frozen=True)
class Run:
    """One measurement.

    Attributes:
        name: The result's name, without parallelism.
        part: The part it belongs to.
        columns: The features it computes.
        baseline_of: The name of our run that it is compared with; none for ours.
        ratio: The name of that ratio.
    """

    name: str
    part: str
    columns: tuple[Column, ...]
    baseline_of: str | None = None
    ratio: str = ""


@dataclass(frozen=True)
class Outcome:
    """What came of a measurement.

    Attributes:
        run: The measurement.
        parallelism: Of its job.
        value: Events per second; none if it failed or is invalid.
        note: Why there is no value.
        details: For the document.
    """

    run: Run
    parallelism: int
    value: float | None
    note: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def suffix(self) -> str:
        """Of the results' names."""
        return "" if self.parallelism == 1 else f"_p{self.parallelism}"


def runs_of(parts: Sequence[str], columns: Sequence[Column]) -> list[Run]:
    """The measurements of the parts, in their order.

    ``quix_window`` has the longest window of the first key alone, and so has the run of ours that
    it is compared with.
    """
    whole = tuple(columns)
    longest_ms = max(c.window_ms for c in columns if c.key == columns[0].key)
    window = tuple(
        c
        for c in columns
        if (c.key, c.window_ms) == (columns[0].key, longest_ms)
        and c.aggregate in _WINDOW_AGGREGATES
    )
    runs = [
        Run(OURS, "job", whole),
        Run("quix", "quix", whole, OURS, "ratio_quix"),
        Run("quix_window", "quix", window, WINDOW_ONLY, "ratio_quix_window"),
        Run("bytewax", "bytewax", whole, OURS, "ratio_bytewax"),
        Run("sql_over", "sql", whole, OURS, "ratio_sql_over"),
    ]
    if {"job", "quix"} <= set(parts):
        runs.insert(1, Run(WINDOW_ONLY, "job", window))
    return [run for run in runs if run.part in parts]


class Streams:
    """A backlog in a topic, and what reads it at one parallelism.

    Args:
        at: The place.
        chosen: Our job's settings.
        frame: The transactions.
        parallelism: Subtasks, or processes, and partitions of the topics.
        most_s: Most seconds of output per measurement.
    """

    def __init__(
        self, at: Place, chosen: Settings, frame: pd.DataFrame, parallelism: int, most_s: float
    ) -> None:
        self._at = at
        self._settings = chosen
        self._frame = frame
        self._parallelism = parallelism
        self._most_s = most_s

    def measure(self, parts: Sequence[str]) -> list[Outcome]:
        """Write the backlog, measure, and delete it."""
        columns = columns_of(self._settings.schema_)
        n = len(self._frame)
        (events,) = self._at.create(f"events_p{self._parallelism}", partitions=self._parallelism)
        say(f"writing a backlog of {n:,} records to {self._parallelism} partition(s)")
        self._at.topics.write(events, records(self._frame), "writing the backlog", n)
        outcomes = [self._attempt(run, events) for run in runs_of(parts, columns)]
        self._at.topics.delete([events])
        return outcomes

    def _attempt(self, run: Run, events: str) -> Outcome:
        """Measure; a failure is kept, so that the other measurements take place."""
        name = f"{run.name}_p{self._parallelism}"
        say(f"[bold]{name}[/]: starting")
        outputs = self._at.create_outputs(name, self._parallelism)
        try:
            outcome = self._measured(run, name, {**outputs, "events": events})
        except BenchError as exc:
            outcome = Outcome(run, self._parallelism, None, str(exc), {"name": name})
        finally:
            self._at.topics.delete(outputs.values())
        if outcome.value is None:
            self._at.failures.append(f"{name}: {outcome.note}")
        rate = f"{outcome.value:,.0f} events/s" if outcome.value else outcome.note
        say(f"{name}: {rate}")
        return outcome

    def _measured(self, run: Run, name: str, topics: Mapping[str, str]) -> Outcome:
        total = len(self._frame)
        with ExitStack() as exits:
            jobs = self._start(run, name, topics)
            for job in jobs:
                exits.push(job)
            used: list[tuple[int, float]] = []

            def is_enough(n: int, seconds: float) -> bool:
                used.append((n, sum(job.cpu_s() for job in jobs)))
                return bool(n) and (n >= total or seconds >= self._most_s)

            samples = watch(self._at.topics.size, topics["predictions"], total, jobs, is_enough)
        rate = growth_rate(samples)
        checked, wrong = self._check(run, topics["predictions"])
        details = {
            "name": name,
            "rate": asdict(rate),
            "cpu_us_per_event": cpu_us_per_event(used, rate),
            "checked_events": checked,
            "wrong": wrong,
        }
        if wrong or not checked:
            note = f"invalid: {'; '.join(wrong[:3]) or 'nothing could be checked'}"
            return Outcome(run, self._parallelism, None, note, details)
        return Outcome(run, self._parallelism, rate.per_s, "", details)

    # -- the jobs -------------------------------------------------------------------------------

    def _start(self, run: Run, name: str, topics: Mapping[str, str]) -> list[Child]:
        start: dict[str, Callable[..., list[Child]]] = {
            "job": self._start_ours,
            "quix": self._start_quix,
            "bytewax": self._start_bytewax,
            "sql": self._start_sql,
        }
        return start[run.part](run, name, topics)

    def _start_ours(self, run: Run, name: str, topics: Mapping[str, str]) -> list[Child]:
        overrides = self._at.job_overrides(name, topics) | {
            **SETTINGS,
            "batch.buckets": self._parallelism,
            "flink.parallelism": self._parallelism,
        }
        if run.name == WINDOW_ONLY:
            overrides["features.windows"] = [_as_window(self._settings, run.columns)]
        return [self._at.start_ours(name, overrides, features_alone=True)]

    def _start_quix(self, run: Run, name: str, topics: Mapping[str, str]) -> list[Child]:
        arguments = self._arguments(run, name, topics)
        arguments += ["--group", f"{name}-{self._at.tag}"]
        arguments += ["--kind", "window" if run.name == "quix_window" else "state"]
        arguments += ["--changelog"] if self._parallelism > 1 else []
        return [
            self._peer(name, n, "bench.peer_quix",
                       [*arguments, "--state-dir", str(self._at.folder / f"{name}-{n}-state")],
                       PEER_PYTHONS["quix"])
            for n in range(self._parallelism)
        ]  # fmt: skip

    def _start_bytewax(self, run: Run, name: str, topics: Mapping[str, str]) -> list[Child]:
        arguments = self._arguments(run, name, topics)
        if self._parallelism > 1:
            ports = [free_port() for _ in range(self._parallelism)]
            arguments += ["--addresses", *(f"127.0.0.1:{port}" for port in ports)]
        return [
            self._peer(name, n, "bench.peer_bytewax", [*arguments, "--process", str(n)],
                       PEER_PYTHONS["bytewax"])
            for n in range(self._parallelism)
        ]  # fmt: skip

    def _start_sql(self, run: Run, name: str, topics: Mapping[str, str]) -> list[Child]:
        arguments = self._arguments(run, name, topics)
        arguments += ["--parallelism", str(self._parallelism)]
        arguments += ["--checkpoint-dir", str(self._at.folder / "checkpoints" / name)]
        return [self._peer(name, 0, "bench.sql_over_job", arguments, sys.executable)]

    def _arguments(self, run: Run, name: str, topics: Mapping[str, str]) -> list[str]:
        columns = write_columns(self._at.folder / f"{name}.json", run.columns)
        return [
            *("--bootstrap", self._at.bootstrap, "--events", topics["events"]),
            *("--output", topics["predictions"], "--columns", str(columns)),
        ]

    def _peer(self, name: str, n: int, module: str, arguments: list[str], python: Any) -> Child:
        return Child(f"{name}-{n}", module, arguments, self._at.folder, python=python)

    # -- the check ------------------------------------------------------------------------------

    def _check(self, run: Run, topic: str) -> tuple[int, list[str]]:
        """Compare sampled events' features with the oracle's; how many, and what is wrong."""
        columns = list(run.columns)
        if self._parallelism > 1:
            columns = [column for column in columns if column.key == self._settings.key]
        size = min(self._at.topics.size(topic), _READ_MOST)
        found = dict(_features(self._at.topics.read(topic), columns, size))
        oracle = Oracle(self._frame, columns)
        expected = np.array([oracle.features(row) for row in found], dtype=np.float64)
        values = np.array(list(found.values()), dtype=np.float64)
        return len(found), differences(values, expected, columns) if found else []


def cpu_us_per_event(used: Sequence[tuple[int, float]], rate: Rate) -> float | None:
    """Microseconds of CPU per event over the records that a rate counts.

    Other work on the machine changes it less than the rate. The broker's CPU is not in it.

    Args:
        used: Output records, and CPU seconds of the job at that moment, in time order.
        rate: The measured one.
    """
    measured = [(n, cpu_s) for n, cpu_s in used if n >= rate.ignored_records]
    (first, begin_s), (last, end_s) = measured[0], measured[-1]
    return 1e6 * (end_s - begin_s) / (last - first) if last > first else None


def _features(
    messages: Iterator[Any], columns: Sequence[Column], size: int
) -> Iterator[tuple[int, list[float]]]:
    """Row and features of every so many of the first ``size`` output records."""
    step = max(1, size // _CHECKED)
    for n, message in enumerate(messages):
        if n >= size:
            return
        if n % step == 0:
            record = orjson.loads(message.value())
            event_id = record.get("event_id") or record["transaction_id"]
            features = record.get("features", record)
            values = [np.nan if (v := features[c.name]) is None else v for c in columns]
            yield int(event_id[1:]), values


def _as_window(chosen: Settings, columns: Sequence[Column]) -> dict[str, Any]:
    """The settings of one window with some features of one of the settings' windows."""
    spec = chosen.features.of_stage(columns[0].key)[0]
    return {
        "prefix": spec.prefix,
        "key": list(spec.key),
        "value": spec.value,
        "windows": [f"{columns[0].window_ms}ms"],
        "aggregates": [column.aggregate for column in columns],
    }


def results_of(outcomes: Sequence[Outcome]) -> list[Result]:
    """The headline figures: each peer's rate, and ours over it."""
    ours = {(o.run.name, o.parallelism): o for o in outcomes}
    results = []
    for outcome in outcomes:
        run, suffix = outcome.run, outcome.suffix
        results.append(Result(run.name + suffix, outcome.value, "events/s", note=outcome.note))
        own = ours.get((run.baseline_of or "", outcome.parallelism))
        if own is not None and own.value and outcome.value:
            ratio = own.value / outcome.value
            note = f"{own.run.name} / {run.name}: {len(run.columns)} features"
            results.append(Result(run.ratio + suffix, ratio, "x", 1.0, ratio, note))
        if (cpu := outcome.details.get("cpu_us_per_event")) is not None and outcome.value:
            baseline = own.details.get("cpu_us_per_event") if own is not None else None
            note = f"baseline: {run.baseline_of}" if baseline else "of the job's processes"
            results.append(compared(f"cpu_{run.name}{suffix}", cpu, "us/event", baseline, note))
    return results
