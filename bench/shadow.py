"""What a shadow server that hangs does to the latency of the predictions themselves.

One job meets one rate all the time. A rollout file gives it a shadow that takes connections and
never answers, for every other window of time; the windows with and without are compared. Written to
build/bench/shadow.json.

Example:
  python -m bench.shadow --rate 1000
"""

from __future__ import annotations

import argparse
import socket
import sys
import threading
import time
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson

from bench import latency
from bench.common import (
    BenchError,
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
from bench.lab import LABELS, Lab, lab
from udfs.scoring.rollout import Address, Limits, Rollout

_SETTLING_S = 3.0
"""At the beginning of a window: the job looks at the file each second, calls take 0.2 s."""
_NAMES = ("without", "hung_shadow")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = command_line("shadow", __doc__)
    add = found.add_argument
    add_common_options(add)
    add("--rate", type=int, default=1_000, help="records/s (%(default)s)")
    add("--windows", type=int, help="of each kind (default: 8)")
    add("--window-s", type=float, help="seconds of one (default: 15)")
    add("--warm-s", type=float, help="seconds of warm-up (default: 60)")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, store and print; returns the exit code."""
    options = parser().parse_args(argv)
    for name, short, long in (("windows", 2, 8), ("window_s", 6.0, 15.0), ("warm_s", 10.0, 60.0)):
        if getattr(options, name) is None:
            setattr(options, name, short if options.quick else long)
    options.data = options.data or ("small" if options.quick else "full")
    return guarded(lambda: _bench(options))


def _bench(options: argparse.Namespace) -> int:
    about = machine()
    overrides = latency.SETTINGS | dict(options.overrides)
    with lab("shadow", options.config, overrides, options.data, keep=options.keep) as at:
        latencies, fallbacks = _measure(at, options)
        figures = {name: percentiles(values) for name, values in latencies.items()}
        results = [
            compared(f"{which}_hung_shadow", figures["hung_shadow"][which], "ms",
                     figures["without"][which], "baseline: without")
            for which in ("p50", "p99")
        ]  # fmt: skip
        if fallbacks:
            at.failures.append(f"predictions without a model's answer: {dict(fallbacks)}")
        document = {
            "machine": about,
            "versions": versions(),
            "settings": {
                "changed": overrides,
                "rate_per_s": options.rate,
                "windows": options.windows,
                "window_s": options.window_s,
            },
            "runs": [
                {"name": name, "predictions": len(latencies[name]), "latency_ms": figures[name]}
                for name in _NAMES
            ],
            "failures": at.failures,
        }
        title = "A shadow that hangs" + " (smoke test)" * options.quick
        return finish("shadow", title, document, results, quick=options.quick)


def _measure(at: Lab, options: argparse.Namespace) -> tuple[dict[str, array[int]], Counter[str]]:
    labels = at.preload_labels("history", LABELS)
    (events,) = at.create("events")
    topics = {**at.create_outputs("ours"), "events": events, "labels": labels}
    path = at.folder / "rollout.json"
    options.seconds = 2 * options.windows * options.window_s
    phase = latency.Phase("served", options.rate)
    with ExitStack() as exits:
        overrides = at.job_overrides("ours", topics) | {
            "model.server": exits.enter_context(at.model_server()),
            "model.rollout": str(path),
        }
        job = exits.enter_context(at.start_ours("ours", overrides))
        sent = latency.prime(at, job, topics)
        switcher = exits.enter_context(_switching(path, exits.enter_context(_hung()), options))
        say(f"{options.warm_s:g} s of warm-up, {options.seconds:g} s measured")
        phase.load = latency.generate(at, options, phase, events, sent)
        if latency.wait_for(at, job, topics["predictions"], sent + phase.load["sent"]) is None:
            raise BenchError("the job does not keep up with the rate")
    return _read(at, topics["predictions"], switcher)


@contextmanager
def _hung() -> Iterator[str]:
    """A server whose connections the kernel accepts and nobody reads."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def _switching(
    path: Path, target: str, options: argparse.Namespace
) -> Iterator[list[tuple[float, int]]]:
    """Write and remove the rollout file in turn; yields when which window began."""
    begun: list[tuple[float, int]] = []
    stop = threading.Event()

    def run() -> None:
        stop.wait(options.warm_s)
        for number in range(2 * options.windows):
            kind = number % 2
            if kind:
                shadow = Address(target, None, 100.0)
                Rollout(f"hung-{number}", "running", None, shadow, Limits()).write(path)
            else:
                path.unlink(missing_ok=True)
            begun.append((time.time(), kind))
            if stop.wait(options.window_s):
                return
        begun.append((time.time(), 0))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield begun
    finally:
        stop.set()
        thread.join()


def _read(
    at: Lab, topic: str, begun: list[tuple[float, int]]
) -> tuple[dict[str, array[int]], Counter[str]]:
    """Sort the latencies by window."""
    latencies = {name: array("q") for name in _NAMES}
    fallbacks: Counter[str] = Counter()
    spans = [((a + _SETTLING_S) * 1e3, b * 1e3, kind) for (a, kind), (b, _) in pairwise(begun)]
    for message in at.topics.read(topic):
        prediction: dict[str, Any] = orjson.loads(message.value() or b"{}")
        created_ms = prediction["ingest_time_ms"]
        for begins_ms, ends_ms, kind in spans:
            if begins_ms <= created_ms < ends_ms:
                latencies[_NAMES[kind]].append(message.timestamp()[1] - created_ms)
                if prediction["fallback_reason"] is not None:
                    fallbacks[prediction["fallback_reason"]] += 1
    return latencies, fallbacks


if __name__ == "__main__":
    sys.exit(main())
