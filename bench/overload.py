"""Measure a job that gets three times what it can score, before, meanwhile and afterwards.

First the sustainable rate: what the model of --far-us can score; or, with records of high priority
alone, of which nothing is shed, what the job scores while it gets more than it can. Of that 85 %;
or --rate says it. Then one load without a pause: normal (half of the sustainable rate), overload
(three times), normal again. A tenth of the events, those of the largest amounts, are of high
priority.

Reading and shedding take the CPU of this machine too, which also has the broker and the load. So
three times what the model can score can be had here only if that is little: --far-us has the model
server wait for each row, without using the CPU, as if it stood elsewhere.

Latency is from the record's creation to the append time of its prediction; the normal one is that
before or after the overload, whichever is lower. Afterwards each record
of the events topic must have ended as prediction, shed event, dead letter or duplicate, and once.
A job is normal again when nothing more is shed and the 99th percentile of 5 s is again at most
twice the normal one. Written to build/bench/overload.json. Exit code 1 if a record is unaccounted
for or a limit is not met; with --quick only the former counts.

Examples:
  python -m bench.overload
  python -m bench.overload --quick --rate 3000
  python -m bench.overload --far-us 120 --set batch.window=50ms
  python -m bench.overload --rate 6000 --seconds 60 --set overload.before=scoring
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
import psutil

from bench.common import (
    BenchError,
    Result,
    Sample,
    add_common_options,
    command_line,
    compared,
    fill_in,
    finish,
    growth_rate,
    guarded,
    machine,
    say,
    versions,
)
from bench.lab import Child, Lab, lab
from bench.latency import prime

PHASES = ("before", "overload", "after")
OUTCOMES = ("predictions", "shed", "dead_letters", "duplicates")
_SUSTAINABLE = 0.85
_NORMAL = 0.5
_TIMES = 3.0
_HIGH = 0.1
_PROBE_PER_S = 25_000
_MEMORY_EVERY_S = 2.0
_COURSE_MS = 10_000
_WINDOW_MS = 5_000
_ONSET_MS = 5_000
_LIMITS = {"memory_growth": 0.1, "p99_ratio": 2.0, "normal_after_s": 60.0}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = command_line("overload", __doc__)
    add = result.add_argument
    add_common_options(add)
    add("--rate", type=float, help="the sustainable rate, records/s (default: found)")
    add("--seconds", type=float, help="of overload (default: 300, with --quick 40)")
    add("--normal-s", type=float, help="of normal load before and after it (default: 60, 30)")
    add("--warm-s", type=float, help="of normal load that is not measured (default: 40, 20)")
    add("--far-us", type=float, default=0.0, help="microseconds that the model server waits for"
        " each row, as one on another machine would take; 0: the model's own time")  # fmt: skip
    add("--times", type=float, default=_TIMES, help="the overload (default: %(default)s)")
    return result


@dataclass
class Memory:
    """Resident bytes of some process groups, by name, looked at while it is open.

    Attributes:
        groups: The ids of their first processes.
        samples: Epoch ms, and resident bytes and CPU seconds so far by group.
    """

    groups: Mapping[str, int]
    samples: list[tuple[int, dict[str, tuple[int, float]]]] = field(default_factory=list)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Look every other second."""
        over = threading.Event()
        thread = threading.Thread(target=self._look, args=(over,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _look(self, over: threading.Event) -> None:
        while not over.wait(_MEMORY_EVERY_S):
            now_ms = time.time_ns() // 1_000_000
            self.samples.append((now_ms, {n: _used(p) for n, p in self.groups.items()}))

    def growth(self, first_ms: float, last_ms: float) -> dict[str, float]:
        """By group: the mean of the last quarter of a span over that of the second one, less 1."""
        inside = [s for s in self.samples if first_ms <= s[0] <= last_ms]
        quarter = max(1, len(inside) // 4)
        found = {}
        for name in self.groups if inside else ():
            begin = np.mean([s[1][name][0] for s in inside[quarter : 2 * quarter] or inside])
            found[name] = float(np.mean([s[1][name][0] for s in inside[-quarter:]]) / begin - 1)
        return found

    def course(self, name: str, first_ms: float, last_ms: float) -> list[dict[str, int]]:
        """A group's memory in a span, every ten seconds."""
        found: dict[int, int] = {}
        for at_ms, used in self.samples:
            if first_ms <= at_ms <= last_ms:
                found.setdefault(int(at_ms - first_ms) // _COURSE_MS, used[name][0])
        return [
            {"s": step * _COURSE_MS // 1_000, "mib": memory >> 20} for step, memory in found.items()
        ]

    def cores(self, first_ms: float, last_ms: float) -> dict[str, float]:
        """By group: cores in use in a span."""
        inside = [s for s in self.samples if first_ms <= s[0] <= last_ms]
        if len(inside) < 2:
            return {}
        (begin_ms, begin), (end_ms, end) = inside[0], inside[-1]
        return {n: 1_000 * (end[n][1] - begin[n][1]) / (end_ms - begin_ms) for n in self.groups}


def _used(pid: int) -> tuple[int, float]:
    memory, cpu_s = 0, 0.0
    for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
        try:
            memory += process.memory_info().rss
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        cpu_s += times.user + times.system
    return memory, cpu_s


def _broker_pid() -> int:
    """Of the broker that this process has started."""
    own = psutil.Process().children()
    return next(process.pid for process in own if "kafka.Kafka" in process.cmdline())


@dataclass
class Ends:
    """Where the records of a run ended.

    Attributes:
        counts: By outcome.
        times_ms: Of the predictions: creation, append and score, int64 (n, 3).
        high: Which of them are of high priority.
        shed_ms: When events were shed and how long after their creation, int64 (m, 2), by time.
        unaccounted: Records that ended nowhere.
        twice: Records that ended more than once.
        fallbacks: Predictions that no model made.
    """

    counts: Counter[str]
    times_ms: np.ndarray[Any, Any]
    high: np.ndarray[Any, Any]
    shed_ms: np.ndarray[Any, Any]
    unaccounted: int
    twice: int
    fallbacks: int

    def p99(self, first_ms: float, last_ms: float, high: bool | None = None) -> float | None:
        """Of the predictions of records created in that time."""
        chosen = (self.times_ms[:, 0] >= first_ms) & (self.times_ms[:, 0] < last_ms)
        if high is not None:
            chosen &= self.high == high
        latencies = self.times_ms[chosen, 1] - self.times_ms[chosen, 0]
        return float(np.percentile(latencies, 99, method="inverted_cdf")) if chosen.any() else None

    def timeline(self, first_ms: float, last_ms: float) -> list[dict[str, float | None]]:
        """By the second: what is shed; of high priority, p99 of all and of the way to the score."""
        told = []
        for begin in np.arange(first_ms, last_ms, 1_000.0):
            rows = (
                (self.times_ms[:, 0] >= begin) & (self.times_ms[:, 0] < begin + 1_000) & self.high
            )
            scored = self.times_ms[rows, 2] - self.times_ms[rows, 0]
            shed = self._shed_between(begin, begin + 1_000)
            told.append(
                {
                    "predictions_high": float(rows.sum()),
                    "shed": float(len(shed)),
                    "p50_shed_ms": float(np.median(shed)) if len(shed) else None,
                    "p99_high_ms": self.p99(begin, begin + 1_000, True),
                    "p99_high_to_score_ms": float(np.percentile(scored, 99))
                    if rows.any()
                    else None,
                }
            )
        return told

    def _shed_between(self, first_ms: float, last_ms: float) -> np.ndarray[Any, Any]:
        """How long the events that were shed then had waited, ms."""
        first, last = np.searchsorted(self.shed_ms[:, 0], [first_ms, last_ms])
        return self.shed_ms[first:last, 1]

    def normal_after_s(self, end_ms: float, last_ms: float, limit_ms: float) -> float:
        """Seconds after the overload until nothing is shed and latency is normal for good."""
        at_ms = max([end_ms, *self.shed_ms[-1:, 0].tolist()])
        for begin in np.arange(end_ms, last_ms, _WINDOW_MS):
            p99 = self.p99(begin, begin + _WINDOW_MS)
            if p99 is not None and p99 > limit_ms:
                at_ms = max(at_ms, begin + _WINDOW_MS)
        return float(at_ms - end_ms) / 1_000


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, store and print; returns the exit code."""
    options = parser().parse_args(argv)
    defaults = {
        "seconds": (40.0, 300.0),
        "normal_s": (30.0, 60.0),
        "warm_s": (20.0, 40.0),
        "data": ("small", "full"),
    }
    return guarded(lambda: _bench(fill_in(options, defaults)))


def _bench(options: argparse.Namespace) -> int:
    about = machine()
    overrides = {
        "batch.buckets": 1,
        "topics.shed": "shed",
        "overload.low_priority": "amount < 0",  # a number follows when the data are there
        **dict(options.overrides),
    }
    with lab("overload", options.config, overrides, options.data, keep=options.keep) as at:
        amount = float(np.quantile(at.frame["amount"], 1 - _HIGH))
        at.overrides["overload.low_priority"] = f"amount < {amount:.2f}"  # type: ignore[index]
        (events, labels) = at.create("events", "labels")
        topics = {"events": events, "labels": labels, **_outputs(at)}
        at.overrides["topics.shed"] = topics["shed"]  # type: ignore[index]
        memory, phases, sustainable = _run(at, options, topics, amount)
        say("reading what came of the records")
        ends = _read(at, topics, amount)
    results, failures = _judged(options, memory, phases, ends, sustainable)
    document = {
        "machine": about,
        "versions": versions(),
        "settings": {
            "config": options.config.name,
            "changed": overrides | {"overload.low_priority": f"amount < {amount:.2f}"},
            "data": options.data,
            "seconds": options.seconds,
            "far_us": options.far_us,
            "times": options.times,
        },
        "runs": [
            {
                "name": name,
                **phase,
                "memory_growth": memory.growth(*_span(phase)),
                "job_memory": memory.course("job", *_span(phase)),
                "cores": memory.cores(*_span(phase)),
            }
            for name, phase in phases.items()
        ],
        "timeline": ends.timeline(phases["before"]["first_ms"], phases["after"]["last_ms"]),
        "accounts": dict(ends.counts) | {"unaccounted": ends.unaccounted, "twice": ends.twice},
        "failures": failures,
    }
    title = "Overload" + " (smoke test)" * options.quick
    return finish("overload", title, document, results, quick=options.quick, baseline="normal")


def _span(phase: Mapping[str, float]) -> tuple[float, float]:
    return phase["first_ms"], phase["last_ms"]


def _outputs(at: Lab) -> dict[str, str]:
    outputs = at.create_outputs("overload")
    (shed,) = at.create("overload_shed")
    return {**outputs, "shed": shed}


def _run(
    at: Lab, options: argparse.Namespace, topics: Mapping[str, str], amount: float
) -> tuple[Memory, dict[str, dict[str, float]], float]:
    with ExitStack() as exits:
        overrides = at.job_overrides("overload", topics)
        server, overrides["model.server"] = exits.enter_context(
            at.model_server_process(options.far_us)
        )
        say("starting the job")
        job = exits.enter_context(at.start_ours("overload", overrides))
        arguments = {"--bootstrap": at.bootstrap, "--topic": topics["events"], "--data": at.data}
        words = [str(word) for pair in (arguments | {"--amount": amount}).items() for word in pair]
        load = exits.enter_context(Child("load", "bench.overload_load", words, at.folder))
        load.line("ready")
        prime(at, job, topics)
        sustainable = options.rate or _SUSTAINABLE * (
            1e6 / options.far_us if options.far_us else capacity(at, job, load, topics)
        )
        say(f"sustainable: {sustainable:,.0f} records/s")
        memory = Memory(
            {"job": job.pid, "model_server": server.pid, "load": load.pid, "broker": _broker_pid()}
        )
        phases = {}
        normal = _NORMAL * sustainable
        with memory.watched():
            send(load, normal, options.warm_s)
            for name in PHASES:
                seconds = options.seconds if name == "overload" else options.normal_s
                rate = options.times * sustainable if name == "overload" else normal
                say(f"{name}: {rate:,.0f} records/s for {seconds:g} s")
                phases[name] = send(load, rate, seconds)
        wait_accounted(at, job, topics)
        return memory, phases, sustainable


def send(load: Child, rate: float, seconds: float, kind: str = "mix") -> dict[str, float]:
    """Have the load generator send so much; its report."""
    load.tell(f"{rate} {seconds} {kind}")
    found: dict[str, float] = orjson.loads(load.line("{", 2 * seconds + 60))
    return found | {"wanted_per_s": rate}


def capacity(at: Lab, job: Child, load: Child, topics: Mapping[str, str]) -> float:
    """Predictions per second while more comes than can be scored, and nothing may be shed."""
    say("looking for the sustainable rate")
    samples: list[Sample] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.5):
            samples.append(Sample(time.monotonic(), at.topics.size(topics["predictions"])))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        send(load, 6_000, 15, "high")  # the JVM compiles meanwhile
        send(load, _PROBE_PER_S, 8, "high")
    finally:
        over.set()
        thread.join()
    found = growth_rate(samples, 0.5)
    wait_accounted(at, job, topics)
    return found.per_s


def wait_accounted(at: Lab, job: Child, topics: Mapping[str, str]) -> None:
    """Wait until there are as many outputs as events.

    Raises:
        BenchError: nothing moves.
    """
    wanted = at.topics.size(topics["events"])
    grown_s, seen = time.monotonic(), -1
    while seen < wanted:
        job.check()
        size = sum(at.topics.size(topics[name]) for name in OUTCOMES if name in topics)
        if size > seen:
            grown_s, seen = time.monotonic(), size
        if time.monotonic() - grown_s > 60:
            raise BenchError(f"{wanted - seen:,} of {wanted:,} records ended nowhere")
        time.sleep(0.2)


def _read(at: Lab, topics: Mapping[str, str], amount: float) -> Ends:
    # A byte and a few words a record: a long run has ten million.
    ended = {n: bytearray(end) for n, end in at.topics.ends(topics["events"]).items()}
    counts, fallbacks = Counter[str](), 0
    times, shed, high = array("q"), array("q"), bytearray()
    for name in OUTCOMES:
        for message in at.topics.read(topics[name]):
            document = orjson.loads(message.value() or b"{}")
            source = document["source"]
            ended[source["partition"]][source["offset"]] += 1
            counts[name] += 1
            if name == "predictions":
                times.append(document["ingest_time_ms"])
                times.append(message.timestamp()[1])
                times.append(document["scored_time_ms"])
                high.append(document["features"]["amount"] >= amount)
                fallbacks += document["fallback_reason"] is not None
            elif name == "shed":
                shed.append(document["shed_time_ms"])
                shed.append(document["shed_time_ms"] - document["ingest_time_ms"])
    shed_ms = np.array(shed, np.int64).reshape(-1, 2)
    all_ended = np.concatenate([np.frombuffer(part, np.uint8) for part in ended.values()])
    return Ends(
        counts,
        np.array(times, np.int64).reshape(-1, 3),
        np.array(high, np.bool_),
        shed_ms[np.argsort(shed_ms[:, 0])],
        int((all_ended == 0).sum()),
        int((all_ended > 1).sum()),
        fallbacks,
    )


def _judged(
    options: argparse.Namespace,
    memory: Memory,
    phases: Mapping[str, Mapping[str, float]],
    ends: Ends,
    sustainable: float,
) -> tuple[list[Result], list[str]]:
    """The figures, and what is wrong with them."""
    spans = {name: _span(phase) for name, phase in phases.items()}
    calm = [p99 for name in ("before", "after") if (p99 := ends.p99(*spans[name], True))]
    if not calm:
        raise BenchError("no event of high priority was scored before or after the overload")
    normal = min(calm)  # the JVM may still compile in the one, a backlog may end in the other
    after_s = ends.normal_after_s(*spans["after"], 2 * normal)
    growth = memory.growth(*spans["overload"])
    results = [
        Result("sustainable_rate", sustainable, "records/s"),
        Result("overload_rate", phases["overload"]["per_s"], "records/s"),
        *(
            compared(f"p99_high_{name}", ends.p99(*spans[name], True), "ms", normal)
            for name in PHASES
        ),
        compared(
            "p99_high_overload_later",
            ends.p99(spans["overload"][0] + _ONSET_MS, spans["overload"][1], True),
            "ms",
            normal,
            f"without its first {_ONSET_MS // 1_000} s",
        ),
        *(Result(f"p99_low_{name}", ends.p99(*spans[name], False), "ms") for name in PHASES),
        Result("normal_after_s", after_s, "s"),
        *(Result(f"memory_growth_{name}", value, "share") for name, value in growth.items()),
        *(Result(f"records_{name}", float(ends.counts[name]), "records") for name in OUTCOMES),
        Result("unaccounted", float(ends.unaccounted), "records"),
        Result("fallbacks", float(ends.fallbacks), "records", note="of the predictions"),
    ]
    failures = [
        f"{count:,} records ended {how}"
        for how, count in (("nowhere", ends.unaccounted), ("twice", ends.twice))
        if count
    ]
    if not options.quick:
        failures += _missed(results, growth, after_s)
    return results, failures


def _missed(results: Sequence[Result], growth: Mapping[str, float], after_s: float) -> list[str]:
    missed = []
    ratio = next(r.ratio for r in results if r.name == "p99_high_overload")
    if ratio is None or ratio > _LIMITS["p99_ratio"]:
        missed.append(f"p99 of high priority is {ratio or float('nan'):.2f} times its normal")
    if after_s > _LIMITS["normal_after_s"]:
        missed.append(f"normal only after {after_s:.0f} s")
    if (grown := growth.get("job", 0.0)) > _LIMITS["memory_growth"]:
        missed.append(f"the job's memory grew by {grown:.0%} while overloaded")
    return missed


if __name__ == "__main__":
    sys.exit(main())
