"""Measure how many records per second the fraud job scores, beside the same job in stock PyFlink.

A backlog of transactions lies in one topic of 4 partitions, with the labels of the first of them in
another. Each measurement is a job in a fresh process that reads that backlog from its start; its
rate is the growth of its predictions topic, without the first 40 % of the records, in which the
JVM compiles. Broker, model server and all run on this machine.

Results, records/s (with suffix _p2: parallelism 2):

  whole_job_served     ours: features, model server over gRPC, one Kafka record per prediction
  whole_job_embedded   ours: features, the model in the operator
  features_alone       ours: features, written without a score
  stock_served         stock PyFlink, process mode: its AsyncFunction exists only there
  stock_embedded       stock PyFlink, thread mode
  stock_features       stock PyFlink, thread mode
  ratio_to_stock       whole_job_served / stock_served

A figure is invalid if more than 0.1 % of the measured predictions are fallbacks, if predictions are
missing, or if the job failed; then the exit code is 1. Written to build/bench/throughput.json.

Examples:
  python -m bench.throughput --quick
  python -m bench.throughput --kinds served --parallelism 1 --set batch.max_rows=1024
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.common import (
    BenchError,
    Rate,
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
from bench.lab import LABELS, Child, Lab, lab
from bench.records import repeated
from bench.watching import watch

TAG = "b"
"""Leads the events' ids."""

KINDS = {
    "served": "whole_job_served",
    "embedded": "whole_job_embedded",
    "features": "features_alone",
}
STOCK_ARGUMENTS = {
    "served": ("--mode", "process", "--scoring", "served"),
    "embedded": ("--mode", "thread", "--scoring", "embedded"),
    "features": ("--mode", "thread", "--scoring", "none"),
}
SETTINGS = {"batch.window": "100ms"}
"""What differs from ``conf/fraud.yaml``; ``batch.buckets`` is the parallelism besides."""

FALLBACKS_MAX = 0.001
_STOCK_WARM_UP_S = 12.0
_NULL_REASONS = (b'"fallback_reason":null', b'"fallback_reason": null')


@dataclass(frozen=True)
class Run:
    """One measurement.

    Attributes:
        kind: A name in ``KINDS``.
        parallelism: Subtasks per operator.
        stock: Whether it is stock PyFlink's.
        records: Records after which it may end.
        least_s: Least seconds of output.
        most_s: Most seconds of output.
    """

    kind: str
    parallelism: int
    stock: bool
    records: int
    least_s: float
    most_s: float

    @property
    def name(self) -> str:
        """The result's name."""
        name = f"stock_{self.kind}" if self.stock else KINDS[self.kind]
        return name if self.parallelism == 1 else f"{name}_p{self.parallelism}"


@dataclass(frozen=True)
class Outcome:
    """What came of a measurement.

    Attributes:
        run: The measurement.
        value: Records per second; none if it failed or is invalid.
        note: Why there is no value.
        details: For the document.
    """

    run: Run
    value: float | None
    note: str
    details: dict[str, Any]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = command_line("throughput", __doc__)
    add = result.add_argument
    add_common_options(add)
    add("--records", type=int, help="backlog in records (default: 2,000,000)")
    add("--max-s", type=float, help="most seconds of output per measurement (default: 60)")
    add("--stock-records", type=int, default=40_000,
        help="least records of a stock measurement (default: %(default)s)")  # fmt: skip
    add("--stock-s", type=float, help="least seconds of output of one (default: 30)")
    add("--kinds", nargs="+", choices=tuple(KINDS), help="what to measure (default: all)")
    add("--parallelism", nargs="+", type=int, help="of our job (default: 1 2)")
    add("--stock-parallelism", nargs="+", type=int, default=[1],
        help="of stock (default: 1); ours is compared with the same, else with 1")  # fmt: skip
    return result


def _complete(options: argparse.Namespace) -> argparse.Namespace:
    """Fill in the defaults, which --quick changes."""
    defaults = {
        "records": (120_000, 2_000_000),
        "max_s": (15.0, 60.0),
        "stock_s": (15.0, 30.0),
        "kinds": (["served"], list(KINDS)),
        "parallelism": ([1], [1, 2]),
        "data": ("small", "full"),
    }
    return fill_in(options, defaults)


def runs(options: argparse.Namespace) -> Iterator[Run]:
    """The measurements in their order: stock first, so that ours can be compared at once."""
    for parallelism in options.stock_parallelism:
        for kind in options.kinds:
            yield Run(
                kind, parallelism, True, options.stock_records, options.stock_s, options.max_s
            )
    for parallelism in options.parallelism:
        for kind in options.kinds:
            yield Run(kind, parallelism, False, options.records, 0.0, options.max_s)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, store and print; returns the exit code."""
    options = _complete(parser().parse_args(argv))
    return guarded(lambda: _bench(options))


def _bench(options: argparse.Namespace) -> int:
    about = machine()
    overrides = dict(options.overrides)
    with lab("throughput", options.config, overrides, options.data, keep=options.keep) as at:
        (events,) = at.create("events")
        source = repeated(at.frame, 0, options.records, TAG)
        say(f"writing a backlog of {options.records:,} records")
        at.topics.write(events, source, "writing the backlog", options.records)
        labels = at.preload_labels(TAG, min(LABELS, options.records))
        outcomes = [
            _attempt(at, run, {"events": events, "labels": labels}) for run in runs(options)
        ]
        document = {
            "machine": about,
            "versions": versions(),
            "settings": _settings(options, overrides),
            "runs": [outcome.details for outcome in outcomes],
            "failures": at.failures,
        }
        title = "Throughput of the fraud job" + " (smoke test)" * options.quick
        return finish("throughput", title, document, results_of(outcomes), quick=options.quick)


def _settings(options: argparse.Namespace, overrides: dict[str, Any]) -> dict[str, Any]:
    return {
        "config": options.config.name,
        "changed": {**SETTINGS, "batch.buckets": "parallelism", **overrides},
        "stock": {kind: " ".join(arguments) for kind, arguments in STOCK_ARGUMENTS.items()},
        "data": options.data,
        "records": options.records,
        "labels": min(LABELS, options.records),
        "output_s_max": options.max_s,
        "stock_records_min": options.stock_records,
        "stock_output_s_min": options.stock_s,
        "ignored_fraction": 0.4,
        "stock_ignored_s_min": _STOCK_WARM_UP_S,
    }


def results_of(outcomes: Sequence[Outcome]) -> list[Result]:
    """The headline figures: each of ours with the stock figure of its kind, and the ratio."""
    stock = {o.run.name: o.value for o in outcomes if o.run.stock}
    results = []
    for outcome in outcomes:
        run = outcome.run
        if run.stock:
            results.append(Result(run.name, outcome.value, "records/s", note=outcome.note))
            continue
        same = f"stock_{run.kind}" + (f"_p{run.parallelism}" if run.parallelism > 1 else "")
        baseline = same if same in stock else f"stock_{run.kind}"
        note = outcome.note or f"baseline: {baseline}"
        results.append(compared(run.name, outcome.value, "records/s", stock.get(baseline), note))
    ours = [r for r in results if r.name == "whole_job_served"]
    if ours and ours[0].baseline:
        note = "whole_job_served / stock_served"
        results.append(Result("ratio_to_stock", ours[0].ratio, "x", 1.0, ours[0].ratio, note))
    return results


def _attempt(at: Lab, run: Run, inputs: dict[str, str]) -> Outcome:
    """Measure; a failure is kept, so that the other measurements take place."""
    say(f"[bold]{run.name}[/]: starting")
    outputs = at.create_outputs(run.name)
    try:
        outcome = _measure(at, run, {**outputs, **inputs})
    except BenchError as exc:
        outcome = Outcome(run, None, str(exc), {"name": run.name, "error": str(exc)})
    finally:
        at.topics.delete(outputs.values())
    if outcome.value is None:
        at.failures.append(f"{run.name}: {outcome.note}")
    say(f"{run.name}: {f'{outcome.value:,.0f} records/s' if outcome.value else outcome.note}")
    return outcome


def _measure(at: Lab, run: Run, topics: dict[str, str]) -> Outcome:
    overrides = at.job_overrides(run.name, topics)
    if run.kind != "served":
        with _start(at, run, overrides) as job:
            samples = _watch(at, job, run, topics)
        return _judged(at, run, topics, samples)
    with at.model_server() as server, _start(at, run, {**overrides, "model.server": server}) as job:
        samples = _watch(at, job, run, topics)
    return _judged(at, run, topics, samples)


def _start(at: Lab, run: Run, overrides: dict[str, Any]) -> Child:
    if run.stock:
        arguments = ("--parallelism", str(run.parallelism), *STOCK_ARGUMENTS[run.kind])
        return at.start_stock(run.name, overrides, *arguments)
    overrides = {
        **overrides,
        **SETTINGS,
        "batch.buckets": run.parallelism,
        "flink.parallelism": run.parallelism,
        "model.embedded": run.kind == "embedded",
    }
    return at.start_ours(run.name, overrides, features_alone=run.kind == "features")


def _watch(at: Lab, job: Child, run: Run, topics: dict[str, str]) -> list[Sample]:
    """Sample the predictions topic until the measurement may end."""
    total = at.topics.size(topics["events"])
    return watch(
        at.topics.size,
        topics["predictions"],
        total,
        [job],
        lambda records, seconds: _is_enough(run, records, seconds, total),
    )


def _is_enough(run: Run, records: int, seconds: float, total: int) -> bool:
    """Whether a measurement with that much output may end."""
    if not records:
        return False
    return (
        records >= total
        or seconds >= run.most_s
        or (records >= run.records and seconds >= run.least_s)
    )


def _judged(at: Lab, run: Run, topics: dict[str, str], samples: list[Sample]) -> Outcome:
    """The outcome: a rate, unless the predictions are not what they should be."""
    rate = growth_rate(samples, ignore_s=_STOCK_WARM_UP_S if run.stock else 0.0)
    counts = {
        name: at.topics.size(topics[name])
        for name in ("predictions", "alerts", "dead_letters", "duplicates")
    }
    before, fallbacks = (0, 0) if run.kind != "served" else _fallbacks(at, topics, rate)
    details = {
        "name": run.name,
        "parallelism": run.parallelism,
        "rate": asdict(rate),
        "counts": {**counts, "fallbacks": fallbacks, "fallbacks_in_warm_up": before},
        "growth": _growth(samples),
    }
    note = _objection(run, rate, counts, fallbacks, at.topics.size(topics["events"]))
    return Outcome(run, None if note else rate.per_s, note, details)


def _objection(run: Run, rate: Rate, counts: dict[str, int], fallbacks: int, total: int) -> str:
    """Why a rate is not valid; empty if it is."""
    predictions = counts["predictions"]
    if fallbacks > FALLBACKS_MAX * rate.records:
        share = fallbacks / rate.records
        return f"invalid: {fallbacks:,} fallbacks ({share:.2%} of the measured predictions)"
    if counts["dead_letters"] or counts["duplicates"]:
        return f"invalid: {counts['dead_letters']} dead letters, {counts['duplicates']} duplicates"
    if predictions > total:
        return f"invalid: {predictions - total:,} predictions more than records"
    return ""


def _fallbacks(at: Lab, topics: dict[str, str], rate: Rate) -> tuple[int, int]:
    """Predictions that no model made, in the warm-up and later.

    Read when the job has ended, as reading takes its CPU.
    """
    say("counting fallbacks")
    from_ms = (time.time() - time.monotonic() + rate.from_s) * 1_000
    counts = [0, 0]
    for message in at.topics.read(topics["predictions"]):
        value = message.value() or b""
        if not any(reason in value for reason in _NULL_REASONS):
            counts[message.timestamp()[1] >= from_ms] += 1
    return counts[0], counts[1]


def _growth(samples: list[Sample]) -> list[list[float]]:
    """Seconds since the start and records, every fifth sample."""
    start_s = samples[0].at_s
    return [[round(sample.at_s - start_s, 2), sample.records] for sample in samples[::5]]


if __name__ == "__main__":
    sys.exit(main())
