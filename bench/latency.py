"""Measure how long a prediction takes at constant rates, beside stock PyFlink.

Latency is from the event's creation (the producer's clock, in the record's Kafka time) to the
moment the broker appended its prediction (LogAppendTime). Both clocks are this machine's. One job
per way of scoring meets one rate after the other, ascending; each rate begins with a warm-up that
is not measured. The predictions are read only afterwards, as reading takes the job's CPU.

Results, ms: p50_<mode>_<rate> and p99_<mode>_<rate> for the modes served (model server over gRPC)
and embedded (the model in the operator). Each is compared with stock PyFlink's figure in that mode
at --stock-rate, a rate that it holds: p50_stock_served_50 and so on. A ratio below 1 is better.
The table below the results has p90, the maximum, the rate achieved and the fallbacks.

A rate is held if the load generator achieved 99 % of it, the job was done within 5 s of the last
record and at most 0.1 % of the predictions are fallbacks. One that is not held has no value, and
higher ones are not tried. Missing predictions, or a job that failed, give exit code 1. Written to
build/bench/latency.json.

Examples:
  python -m bench.latency --quick
  python -m bench.latency --modes served --rates 10000 --seconds 60 --set batch.window=5ms
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import orjson
from rich.table import Table

from bench.common import (
    PERCENTILES,
    BenchError,
    Result,
    add_common_options,
    command_line,
    compared,
    console,
    fill_in,
    finish,
    guarded,
    machine,
    percentiles,
    say,
    versions,
)
from bench.lab import LABELS, Child, Lab, lab
from bench.records import repeated

MODES = ("served", "embedded")
SETTINGS = {"batch.buckets": 1}
"""What differs from ``conf/fraud.yaml``: as many buckets as subtasks, as for throughput."""

STOCK_ARGUMENTS = {
    "served": ("--mode", "process", "--scoring", "served"),
    "embedded": ("--mode", "thread", "--scoring", "embedded"),
}
HELD_FRACTION = 0.99
FALLBACKS_MAX = 0.001
DONE_WITHIN_S = 5.0
_GIVE_UP_S = 60.0
_STALL_S = 30.0
_PRIMING_RECORDS = 200
_PRIMING_TAG = "priming"
_PRIMING_S = 120.0
_WAIT_EVERY_S = 0.25


@dataclass
class Phase:
    """One rate, met by one job.

    Attributes:
        mode: Who scores.
        rate: Records per second.
        stock: Whether the job is stock PyFlink's.
        load: What the load generator reported.
        done_after_s: From the last record sent to the last prediction; none if it never came.
        latencies_ms: Of the measured records.
        fallbacks: How many of them no model scored, by reason.
        note: Why it was not held, empty if it was.
    """

    mode: str
    rate: int
    stock: bool = False
    load: dict[str, Any] = field(default_factory=dict)
    done_after_s: float | None = None
    latencies_ms: array[int] = field(default_factory=lambda: array("q"))
    fallbacks: Counter[str] = field(default_factory=Counter)
    note: str = ""

    @property
    def tag(self) -> str:
        """Leads the event ids."""
        return f"r{self.rate}"

    @property
    def name(self) -> str:
        """What the results' names end in."""
        return f"{'stock_' * self.stock}{self.mode}_{self.rate}"

    def percentile(self, which: str) -> float | None:
        """A percentile in ms; none if the rate was not held."""
        return None if self.note else percentiles(self.latencies_ms)[which]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = command_line("latency", __doc__)
    add = result.add_argument
    add_common_options(add)
    add("--rates", nargs="+", type=int, help="records/s (default: 1000 5000 10000 20000)")
    add("--modes", nargs="+", choices=MODES, help="who scores (default: served embedded)")
    add("--seconds", type=float, help="measured seconds per rate (default: 30)")
    add("--warm-s", type=float, help="seconds of warm-up per rate (default: 20)")
    add("--stock-rate", type=int, default=50,
        help="records/s of the stock job (default: %(default)s)")  # fmt: skip
    return result


def _complete(options: argparse.Namespace) -> argparse.Namespace:
    """Fill in the defaults, which --quick changes."""
    defaults = {
        "rates": ([500, 2_000], [1_000, 5_000, 10_000, 20_000]),
        "modes": (["served"], list(MODES)),
        "seconds": (6, 30),
        "warm_s": (6, 20),
        "data": ("small", "full"),
    }
    return fill_in(options, defaults)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, store and print; returns the exit code."""
    options = _complete(parser().parse_args(argv))
    return guarded(lambda: _bench(options))


def _bench(options: argparse.Namespace) -> int:
    about = machine()
    overrides = SETTINGS | dict(options.overrides)
    with lab("latency", options.config, overrides, options.data, keep=options.keep) as at:
        labels = at.preload_labels("history", LABELS)
        phases = list(_all_phases(at, options, labels))
        document = {
            "machine": about,
            "versions": versions(),
            "settings": _settings(options, overrides),
            "runs": [_details(phase) for phase in phases],
            "failures": at.failures,
        }
        title = "Latency of a prediction" + " (smoke test)" * options.quick
        console.print(_phases_table(phases))
        return finish("latency", title, document, results_of(phases), quick=options.quick)


def _all_phases(at: Lab, options: argparse.Namespace, labels: str) -> Iterator[Phase]:
    for mode in options.modes:
        for stock in (True, False):
            rates = [options.stock_rate] if stock else sorted(options.rates)
            phases = [Phase(mode, rate, stock) for rate in rates]
            _attempt(at, options, phases, labels)
            yield from phases


def _settings(options: argparse.Namespace, overrides: dict[str, Any]) -> dict[str, Any]:
    return {
        "config": options.config.name,
        "changed": overrides,
        "stock": {mode: " ".join(STOCK_ARGUMENTS[mode]) for mode in options.modes},
        "data": options.data,
        "rates_per_s": options.rates,
        "stock_rate_per_s": options.stock_rate,
        "warm_up_s": options.warm_s,
        "measured_s": options.seconds,
        "labels": LABELS,
    }


def results_of(phases: Sequence[Phase]) -> list[Result]:
    """Median and 99th percentile of every phase, beside the stock job's in that mode."""
    results = []
    for which in ("p50", "p99"):
        stock = {phase.mode: phase for phase in phases if phase.stock}
        for phase in phases:
            value = phase.percentile(which)
            other = stock.get(phase.mode)
            if phase.stock or other is None:
                results.append(Result(f"{which}_{phase.name}", value, "ms", note=phase.note))
            else:
                baseline = other.percentile(which)
                known = f"baseline: stock at {other.rate:,}/s" if baseline else "no baseline"
                note = phase.note or known
                results.append(compared(f"{which}_{phase.name}", value, "ms", baseline, note))
    return results


def _attempt(at: Lab, options: argparse.Namespace, phases: list[Phase], labels: str) -> None:
    """Measure with one job; a failure is kept, so that the other measurements take place."""
    run = f"{'stock' if phases[0].stock else 'ours'}_{phases[0].mode}"
    say(f"[bold]{run}[/]: starting")
    (events,) = at.create(f"{run}_events")
    outputs = at.create_outputs(run)
    topics = {**outputs, "events": events, "labels": labels}
    try:
        with ExitStack() as exits:
            job = _start(at, exits, run, phases[0], topics)
            _meet(at, options, job, phases, topics)
        say(f"{run}: reading the predictions")
        _read(at, topics["predictions"], phases)
        at.failures.extend(f"{phase.name}: {text}" for phase in phases if (text := _missing(phase)))
    except BenchError as exc:
        at.failures.append(f"{run}: {exc}")
        for phase in phases:
            phase.note = phase.note or f"failed: {exc}"
    finally:
        at.topics.delete([*outputs.values(), events])
    for phase in phases:
        phase.note = phase.note or _objection(phase)


def _start(at: Lab, exits: ExitStack, run: str, phase: Phase, topics: Mapping[str, str]) -> Child:
    overrides = at.job_overrides(run, topics)
    if phase.mode == "served":
        overrides["model.server"] = exits.enter_context(at.model_server())
    if phase.stock:
        job = at.start_stock(run, overrides, *STOCK_ARGUMENTS[phase.mode])
    else:
        job = at.start_ours(run, {**overrides, "model.embedded": phase.mode == "embedded"})
    return exits.enter_context(job)


def _meet(
    at: Lab,
    options: argparse.Namespace,
    job: Child,
    phases: list[Phase],
    topics: Mapping[str, str],
) -> None:
    """Let a job meet each rate, until one is not held."""
    sent = prime(at, job, topics)
    for n, phase in enumerate(phases):
        say(f"{phase.name}: {options.warm_s:g} s of warm-up, {options.seconds:g} s measured")
        phase.load = generate(at, options, phase, topics["events"], sent)
        sent += phase.load["sent"]
        phase.done_after_s = wait_for(at, job, topics["predictions"], sent)
        if phase.done_after_s is None or phase.done_after_s > DONE_WITHIN_S:
            for later in phases[n + 1 :]:
                later.note = f"not tried: {phase.rate:,}/s was not held"
            return


def prime(at: Lab, job: Child, topics: Mapping[str, str]) -> int:
    """Send the job its first records and wait until it has scored them; returns how many.

    A job runs before its Python does: at a constant rate it would begin with a backlog.
    """
    say("waiting for the first predictions")
    first = repeated(at.frame, 0, _PRIMING_RECORDS, _PRIMING_TAG)
    at.topics.write(topics["events"], first, "priming", _PRIMING_RECORDS)
    if wait_for(at, job, topics["predictions"], _PRIMING_RECORDS, _PRIMING_S) is None:
        raise BenchError(f"the first predictions did not come within {_PRIMING_S:.0f} s")
    return _PRIMING_RECORDS


def generate(
    at: Lab, options: argparse.Namespace, phase: Phase, topic: str, first: int
) -> dict[str, Any]:
    """Send a phase's records at its rate; returns the load generator's report.

    Raises:
        BenchError: the broker did not take all of them.
    """
    arguments = {
        "--bootstrap": at.bootstrap,
        "--topic": topic,
        "--data": at.data,
        "--first": first,
        "--tag": phase.tag,
        "--rate": phase.rate,
        "--warm-s": options.warm_s,
        "--seconds": options.seconds,
    }
    words = [str(word) for pair in arguments.items() for word in pair]
    with Child(f"load-{phase.name}", "bench.load", words, at.folder) as generator:
        generator.line("ready")
        generator.tell("go")
        duration_s = options.warm_s + options.seconds
        report: dict[str, Any] = json.loads(generator.line("{", 2 * duration_s + 60))
    if report["refused"]:
        raise BenchError(f"the broker did not take {report['refused']:,} records")
    return report


def wait_for(
    at: Lab, job: Child, topic: str, records: int, stall_s: float = _STALL_S
) -> float | None:
    """Seconds until so many predictions are there; none if it takes too long.

    Raises:
        BenchError: the job ended, or writes nothing more.
    """
    start_s = grown_s = time.monotonic()
    seen = at.topics.size(topic)
    while seen < records:
        time.sleep(_WAIT_EVERY_S)
        job.check()
        now_s, size = time.monotonic(), at.topics.size(topic)
        if size > seen:
            seen, grown_s = size, now_s
        if now_s - grown_s > stall_s:
            raise BenchError(f"{records - seen:,} of {records:,} predictions are missing")
        if now_s - start_s > max(_GIVE_UP_S, stall_s):
            return None
    return time.monotonic() - start_s


def _read(at: Lab, topic: str, phases: list[Phase]) -> None:
    """Fill in the latencies and fallbacks of the measured records."""
    by_tag = {phase.tag: phase for phase in phases if phase.load}
    for message in at.topics.read(topic):
        prediction = orjson.loads(message.value() or b"{}")
        tag, _, number = prediction["event_id"].rpartition("-")
        if tag == _PRIMING_TAG:
            continue
        phase = by_tag[tag]
        if int(number) < phase.load["warm"]:
            continue
        phase.latencies_ms.append(message.timestamp()[1] - prediction["ingest_time_ms"])
        if (reason := prediction["fallback_reason"]) is not None:
            phase.fallbacks[reason] += 1


def _missing(phase: Phase) -> str:
    """What is wrong with the number of predictions; empty if it is right or not yet known."""
    if not phase.load or phase.done_after_s is None:
        return ""
    wanted = phase.load["sent"] - phase.load["warm"]
    found = len(phase.latencies_ms)
    return "" if found == wanted else f"{found:,} predictions for {wanted:,} records"


def _objection(phase: Phase) -> str:
    """Why a rate was not held; empty if it was."""
    if text := _missing(phase):
        return f"failed: {text}"
    if phase.load["achieved_per_s"] < HELD_FRACTION * phase.rate:
        return f"not held: the load generator achieved {phase.load['achieved_per_s']:,.0f}/s"
    if phase.done_after_s is None:
        return f"not held: not done {_GIVE_UP_S:.0f} s after the last record"
    if phase.done_after_s > DONE_WITHIN_S:
        return f"not held: done {phase.done_after_s:.1f} s after the last record"
    if phase.fallbacks.total() > FALLBACKS_MAX * len(phase.latencies_ms):
        return f"not held: {phase.fallbacks.total():,} fallbacks"
    return ""


def _details(phase: Phase) -> dict[str, Any]:
    """A phase for the document; its percentiles even if the rate was not held."""
    measured = percentiles(phase.latencies_ms) if len(phase.latencies_ms) else {}
    return {
        "name": phase.name,
        "rate_per_s": phase.rate,
        "held": not phase.note,
        "note": phase.note,
        "latency_ms": measured,
        "predictions": len(phase.latencies_ms),
        "fallbacks": dict(phase.fallbacks),
        "done_after_s": phase.done_after_s,
        "load": phase.load,
    }


def _phases_table(phases: Sequence[Phase]) -> Table:
    headings = ["job and rate", "achieved/s", *(f"{name} ms" for name in PERCENTILES)]
    headings += ["fallbacks", "latest load ms"]
    table = Table(title="Every rate")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == headings[0] else "right")
    for phase in phases:
        if not phase.load:
            continue
        measured = percentiles(phase.latencies_ms) if len(phase.latencies_ms) else {}
        row = [f"{phase.load['achieved_per_s']:,.0f}"]
        row += [f"{measured[name]:,.0f}" if measured else "-" for name in PERCENTILES]
        row += [f"{phase.fallbacks.total():,}", f"{phase.load['late_max_ms']:.1f}"]
        table.add_row(phase.name, *row)
    return table


if __name__ == "__main__":
    sys.exit(main())
