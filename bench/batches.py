"""Measure what ``batch.window`` costs when there is little to do, and brings when there is much.

For each window one job with the embedded model: latency at a low rate, from a record's creation to
the append time of its prediction, then predictions/s while a backlog is there and more comes.
Results: p50_idle_<window>, p99_idle_<window> and backlog_<window>. Written to
build/bench/batches.json.

Example:
  python -m bench.batches --windows 2ms 10ms 100ms
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np
import orjson

from bench.common import (
    Result,
    add_common_options,
    command_line,
    finish,
    guarded,
    machine,
    percentiles,
    say,
    versions,
)
from bench.lab import Child, Lab, lab
from bench.latency import prime
from bench.overload import capacity, send, wait_accounted
from udfs.batches.events import IntArray

_HIGH_FROM = 0.0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = command_line("batches", __doc__)
    add_common_options(result.add_argument)
    add = result.add_argument
    add("--windows", nargs="+", default=["2ms", "10ms", "100ms"], help="values of batch.window")
    add("--idle-rate", type=float, default=500, help="records/s (default: %(default)s)")
    add("--idle-s", type=float, default=12, help="seconds of it (default: %(default)s)")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, store and print; returns the exit code."""
    options = parser().parse_args(argv)
    options.data = options.data or "small"
    return guarded(lambda: _bench(options))


def _bench(options: argparse.Namespace) -> int:
    about, results = machine(), []
    overrides = {"batch.buckets": 1, "model.embedded": True, **dict(options.overrides)}
    with lab("batches", options.config, overrides, options.data, keep=options.keep) as at:
        for window in options.windows:
            say(f"[bold]window {window}[/]")
            results += _of_window(at, options, window)
    document = {
        "machine": about,
        "versions": versions(),
        "settings": {"config": options.config.name, "changed": overrides, "data": options.data},
        "failures": [],
    }
    return finish("batches", "Batch windows", document, results, quick=options.quick)


def _of_window(at: Lab, options: argparse.Namespace, window: str) -> list[Result]:
    events, labels = at.create(f"{window}_events", f"{window}_labels")
    topics = {"events": events, "labels": labels, **at.create_outputs(window)}
    with ExitStack() as exits:
        overrides = at.job_overrides(window, topics) | {"batch.window": window}
        job = exits.enter_context(at.start_ours(window, overrides))
        words = ["--bootstrap", at.bootstrap, "--topic", events, "--data", at.data]
        words += ["--amount", str(_HIGH_FROM)]
        load = exits.enter_context(Child("load", "bench.overload_load", words, at.folder))
        load.line("ready")
        prime(at, job, topics)
        send(load, 2_000, options.idle_s)  # the JVM compiles meanwhile
        idle = send(load, options.idle_rate, options.idle_s)
        wait_accounted(at, job, topics)
        latencies = _latencies(at, topics["predictions"], idle["first_ms"])
        found = percentiles(latencies)
        per_s = capacity(at, job, load, topics)
    at.topics.delete(topics.values())
    return [
        Result(f"p50_idle_{window}", found["p50"], "ms"),
        Result(f"p99_idle_{window}", found["p99"], "ms"),
        Result(f"backlog_{window}", per_s, "records/s"),
    ]


def _latencies(at: Lab, topic: str, first_ms: float) -> IntArray:
    """Of the predictions of records created since then, ms."""
    times = [
        (orjson.loads(message.value() or b"{}")["ingest_time_ms"], message.timestamp()[1])
        for message in at.topics.read(topic)
    ]
    created, written = np.array(times, np.int64).T
    latencies: IntArray = (written - created)[created >= first_ms]
    return latencies


if __name__ == "__main__":
    sys.exit(main())
