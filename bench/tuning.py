"""Measure what a setting changes: the figures of the tuning table in jobs/README.md.

One job for each case, which is the settings file with one setting changed. Each meets a warm-up, a
steady rate and a backlog. Results:

  <case>_p50, <case>_p99   ms from a record's creation until a read_committed reader has its
                           prediction, at the steady rate
  <case>_cpu_us            CPU time of the job's process for a record at that rate
  <case>_per_s             predictions/s of a backlog

Each is beside that of the file as it is: with the model embedded; for settings of its calls with a
model server; for settings of its failures with one that hangs during the steady rate, so that every
prediction is a fallback. Written to build/bench/tuning.json.

Examples:
  python -m bench.tuning --list
  python -m bench.tuning --cases window_2ms window_100ms
  python -m bench.tuning                       # 28 minutes on a quiet machine
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
from confluent_kafka import Consumer, TopicPartition

from bench.common import (
    BenchError,
    Result,
    add_common_options,
    command_line,
    compared,
    finish,
    guarded,
    machine,
    percentiles,
    say,
    versions,
)
from bench.lab import PARTITIONS, Child, Lab, lab
from bench.latency import prime
from bench.overload import capacity, send, wait_accounted
from jobs.environment import QUICK_JVM

_HIGH_FROM = 0.0
_WARM_PER_S = 3_000
_WARM_S = 12.0
_READ_S = 60.0
_JVM_ARGS = "JVM_ARGS"


@dataclass(frozen=True)
class Case:
    """A setting that is changed.

    Attributes:
        name: Leads the results' names.
        changed: What differs from the file.
        served: Whether a model server is asked.
        hung: Whether it stands still at the steady rate.
        jvm: Of the job's JVM.
    """

    name: str
    changed: Mapping[str, Any] = field(default_factory=dict)
    served: bool = False
    hung: bool = False
    jvm: str = ""

    @property
    def base(self) -> str:
        """The case that it is beside."""
        if self.hung:
            return HUNG
        return SERVED if self.served else EMBEDDED


EMBEDDED, SERVED, HUNG = "embedded", "served", "hung"
CASES = (
    Case(EMBEDDED),
    Case("window_2ms", {"batch.window": "2ms"}),
    Case("window_100ms", {"batch.window": "100ms"}),
    Case("buckets_8", {"batch.buckets": 8}),
    Case("parallelism_2", {"flink.parallelism": 2, "batch.buckets": 2}),
    Case("journal_off", {"flink.journal_events": 0}),
    Case("rocksdb", {"flink.state_backend": "rocksdb"}),
    Case("rocksdb_few_cached", {"flink.state_backend": "rocksdb", "flink.cached_entries": 1_000}),
    Case("checkpoint_1s", {"flink.checkpoint_interval": "1s"}),
    Case("checkpoint_5s", {"flink.checkpoint_interval": "5s"}),
    Case(
        "exactly_once_5s",
        {"flink.checkpoint_interval": "5s", "flink.delivery": "exactly_once"},
    ),
    Case("profile_latency", {"flink.profile": "latency"}),
    Case("profile_throughput", {"flink.profile": "throughput"}),
    Case("profile_large_state", {"flink.profile": "large-state"}),
    Case("quick_jvm", jvm=QUICK_JVM),
    Case(SERVED, served=True),
    Case("one_call", {"model.calls_in_flight": 1}, served=True),
    Case("rows_64", {"batch.max_rows": 64}, served=True),
    Case("rows_4096", {"batch.max_rows": 4_096}, served=True),
    Case(HUNG, served=True, hung=True),
    Case("hung_deadline_100ms", {"model.deadline": "100ms"}, served=True, hung=True),
    Case("hung_breaker_1", {"model.breaker": {"failures": 1}}, served=True, hung=True),
    Case("hung_open_5s", {"model.breaker": {"open_for": "5s"}}, served=True, hung=True),
)


@dataclass(frozen=True)
class Outcome:
    """What was measured of a case.

    Attributes:
        p50: ms.
        p99: ms.
        cpu_us: Of a record.
        per_s: Of a backlog.
    """

    p50: float
    p99: float
    cpu_us: float
    per_s: float


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = command_line("tuning", __doc__)
    add_common_options(result.add_argument)
    add = result.add_argument
    names = [case.name for case in CASES]
    add("--list", action="store_true", help="print the cases and end")
    add("--cases", nargs="+", choices=names, help="default: all; their bases come along")
    add("--rate", type=float, default=1_000, help="records/s (default: %(default)s)")
    add("--seconds", type=float, help="of the steady rate (default: 15)")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, store and print; returns the exit code."""
    options = parser().parse_args(argv)
    options.data = options.data or "small"
    options.seconds = options.seconds or (5.0 if options.quick else 15.0)
    if options.list:
        for case in CASES:
            changed = ", ".join(f"{key} {value}" for key, value in case.changed.items())
            say(f"{case.name}: {changed or case.jvm or 'the file as it is'}")
        return 0
    return guarded(lambda: _bench(options))


def chosen(names: Sequence[str]) -> list[Case]:
    """The cases of those names and their bases, in order."""
    bases = {case.base for case in CASES if case.name in names}
    return [case for case in CASES if case.name in names or case.name in bases]


def _bench(options: argparse.Namespace) -> int:
    about = machine()
    names = options.cases or ([EMBEDDED] if options.quick else [case.name for case in CASES])
    overrides = dict(options.overrides)
    found: dict[str, Outcome] = {}
    with lab("tuning", options.config, overrides, options.data, keep=options.keep) as at:
        for case in chosen(names):
            say(f"[bold]{case.name}[/]")
            try:
                found[case.name] = _measured(at, options, case)
                say(f"{case.name}: {found[case.name]}")
            except BenchError as exc:
                at.failures.append(f"{case.name}: {exc}")
        document = {
            "machine": about,
            "versions": versions(),
            "settings": {
                "config": options.config.name,
                "changed": overrides,
                "data": options.data,
                "rate_per_s": options.rate,
                "cases": {case.name: dict(case.changed) for case in chosen(names)},
            },
            "failures": at.failures,
        }
        results = results_of(found)
        title = "Settings, one by one" + " (smoke test)" * options.quick
        return finish("tuning", title, document, results, quick=options.quick, baseline="as it is")


def results_of(found: Mapping[str, Outcome]) -> list[Result]:
    """Each case's figures beside its base's."""
    units = {"p50": "ms", "p99": "ms", "cpu_us": "us", "per_s": "records/s"}
    results = []
    for case in CASES:
        if case.name not in found:
            continue
        base = found.get(case.base) if case.name != case.base else None
        for name, unit in units.items():
            value = getattr(found[case.name], name)
            other = getattr(base, name) if base else None
            results.append(compared(f"{case.name}_{name}", value, unit, other))
    return results


def _measured(at: Lab, options: argparse.Namespace, case: Case) -> Outcome:
    run = case.name
    events, labels = at.create(f"{run}_events", f"{run}_labels")
    topics = {"events": events, "labels": labels, **at.create_outputs(run)}
    overrides = at.job_overrides(run, topics) | {"batch.buckets": 1, "model.embedded": True}
    with ExitStack() as exits:
        server: Child | None = None
        if case.served:
            server, address = exits.enter_context(at.model_server_process())
            overrides |= {"model.embedded": False, "model.server": address}
        with _jvm(case.jvm):
            job = exits.enter_context(at.start_ours(run, {**overrides, **case.changed}))
        words = ["--bootstrap", at.bootstrap, "--topic", events, "--data", at.data]
        words += ["--amount", str(_HIGH_FROM)]
        load = exits.enter_context(Child("load", "bench.overload_load", words, at.folder))
        load.line("ready")
        prime(at, job, topics)
        send(load, _WARM_PER_S, _WARM_S)  # the JVM compiles meanwhile
        wait_accounted(at, job, topics)
        reader = _Reader(at, topics["predictions"])
        exits.callback(reader.stop)
        with _hung(server if case.hung else None):
            before_s = job.cpu_s()
            sent = send(load, options.rate, options.seconds)
            cpu_s = job.cpu_s() - before_s
            steady = reader.latencies(sent["first_ms"], round(options.rate * options.seconds), job)
        reader.stop()
        per_s = capacity(at, job, load, topics)
    at.topics.delete(topics.values())
    times = percentiles(steady)
    return Outcome(times["p50"], times["p99"], 1e6 * cpu_s / len(steady), per_s)


@contextmanager
def _hung(server: Child | None) -> Iterator[None]:
    """Let a server stand still meanwhile: its port is open and nobody answers."""
    if server is None:
        yield
        return
    family = server.processes()
    try:
        for process in family:
            process.suspend()
        yield
    finally:
        for process in family:
            process.resume()


@contextmanager
def _jvm(arguments: str) -> Iterator[None]:
    """The environment of a job that is started meanwhile."""
    before = os.environ.get(_JVM_ARGS)
    if arguments:
        os.environ[_JVM_ARGS] = arguments
    try:
        yield
    finally:
        if arguments:
            os.environ.pop(_JVM_ARGS)
            os.environ |= {_JVM_ARGS: before} if before is not None else {}


class _Reader:
    """A read_committed reader that notes when each prediction reached it, in a thread."""

    def __init__(self, at: Lab, topic: str) -> None:
        self._consumer = Consumer(
            {
                "bootstrap.servers": at.bootstrap,
                "group.id": topic,
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "log_level": 3,
            }
        )
        ends = at.topics.ends(topic)
        self._consumer.assign([TopicPartition(topic, n, ends[n]) for n in range(PARTITIONS)])
        self._over = threading.Event()
        self._seen: list[tuple[int, int]] = []
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        while not self._over.is_set():
            for message in self._consumer.consume(10_000, timeout=0.002):
                now_ms = time.time_ns() // 1_000_000
                created_ms = orjson.loads(message.value() or b"{}")["ingest_time_ms"]
                self._seen.append((created_ms, now_ms))
        self._consumer.close()

    def stop(self) -> None:
        """End the thread."""
        self._over.set()
        self._thread.join()

    def latencies(self, first_ms: float, records: int, job: Child) -> list[int]:
        """Wait for the predictions of so many records created since then; ms of each.

        Raises:
            BenchError: the job ended, or they did not come.
        """
        deadline_s = time.monotonic() + _READ_S
        while True:
            found = [now - created for created, now in self._seen if created >= first_ms]
            if len(found) >= records:
                return found
            job.check()
            if time.monotonic() > deadline_s:
                raise BenchError(f"{records - len(found):,} predictions did not come")
            time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main())
