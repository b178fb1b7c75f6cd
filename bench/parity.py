"""Run the job over transactions in disorder, restart it from a checkpoint, and check every feature.

5 % of the events come up to half an hour of event time out of order, 1 % a day late. The labels of
the first 40,000 are known before their delay has passed. In the middle of a backlog the job is
ended and started again from its newest checkpoint, so some predictions come twice. Then
`streamscore features parity` recomputes and compares all. Written to build/bench/parity.json; exit
code 1 on a difference of a prediction that is not late: the features of late ones are not promised
to be exact.

Examples:
  python -m bench.parity --quick
  python -m bench.parity --records 1000000 --data full
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.common import (
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
from bench.lab import LABELS, PARTITIONS, Child, Lab, installed_environment, lab
from bench.records import repeated
from jobs.environment import ROOT

TAG = "b"
SETTINGS = {
    "model.embedded": True,
    "flink.checkpoint_interval": "3s",
    "batch.window": "50ms",
}
_MINUTE_MS = 60_000
_OUT_OF_ORDER, _LATE = 0.05, 0.01
_OUT_OF_ORDER_MS, _LATE_MS = 30 * _MINUTE_MS, 24 * 60 * _MINUTE_MS
_FIRST = 5_000
"""Written before the labels are known: none is a label's delay after the first event."""
_NO_LABEL = b"this is no label"
_WAIT_S = 900.0
_QUIET_S = 10.0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = command_line("parity", __doc__)
    add_common_options(result.add_argument)
    result.add_argument("--records", type=int, help="events (default: 200,000; --quick 20,000)")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; returns the exit code."""
    options = parser().parse_args(argv)
    options.records = options.records or (20_000 if options.quick else 200_000)
    options.data = options.data or "small"
    return guarded(lambda: _bench(options))


def _bench(options: argparse.Namespace) -> int:
    about, overrides = machine(), SETTINGS | dict(options.overrides)
    with lab("parity", options.config, overrides, options.data, keep=options.keep) as at:
        labels = at.preload_labels(TAG, LABELS)
        (events,) = at.create("events")
        topics = {**at.create_outputs("parity"), "events": events, "labels": labels}
        _score(at, topics, options.records)
        found, seconds, peak_bytes = _parity(at)
        if found["differences"] > found["late_differences"] or found["without_event"]:
            at.failures.append(f"{found['differences']:,} differences; {found['first'][:3]}")
        document = {
            "machine": about,
            "versions": versions(),
            "settings": {"config": options.config.name, "changed": overrides},
            "runs": [{"name": "parity", "records": options.records, **found}],
            "failures": at.failures,
        }
        results = [
            Result("values_compared", found["values"], "values"),
            Result("differences", found["differences"], "values"),
            Result("differences_of_late_ones", found["late_differences"], "values"),
            Result("late_predictions", found["late"], "predictions"),
            Result("repeated_predictions", found["repeats"], "predictions"),
            Result("parity_duration", seconds, "s"),
            Result("parity_peak_memory", peak_bytes / 1e6, "MB"),
        ]
        title = "Features of live predictions, recomputed"
        return finish("parity", title, document, results, quick=options.quick)


def _disturbed(at: Lab, count: int) -> list[tuple[bytes, bytes]]:
    """The records in the order of arrival."""
    pairs = list(repeated(at.frame, 0, count, TAG))
    times = np.array([json.loads(raw)["event_time_ms"] for _, raw in pairs])
    rng = np.random.default_rng(7)
    chance, delay = rng.random(count), rng.random(count)
    times = times + np.where(chance < _OUT_OF_ORDER, delay * _OUT_OF_ORDER_MS, 0)
    times = times + np.where(chance > 1 - _LATE, _LATE_MS, 0)
    return [pairs[n] for n in np.argsort(times, kind="stable").tolist()]


def _score(at: Lab, topics: Mapping[str, str], count: int) -> None:
    """Write all records, with a restart when a good part of them has been scored."""
    pairs = _disturbed(at, count)
    overrides = at.job_overrides("parity", topics) | SETTINGS
    predictions = topics["predictions"]
    say("starting the job")
    with at.start_ours("parity", overrides) as job:
        at.topics.write(topics["events"], pairs[:_FIRST], "writing events", _FIRST)
        _wait(job, lambda: at.topics.size(predictions) >= _FIRST, "the first predictions")
        _learn(at, job, topics)
        say("labels are known")
        rest = pairs[_FIRST : count // 2]
        at.topics.write(topics["events"], rest, "writing events", count // 2)
        _wait(job, lambda: at.topics.size(predictions) >= count * 2 // 5, "two fifths")
    path = _checkpoints(at)[-1]
    say(f"restarting from {path.name}, {at.topics.size(predictions):,} predictions so far")
    overrides |= {"flink.options": {"execution.state-recovery.path": path.as_uri()}}
    with at.start_ours("parity", overrides) as job:
        at.topics.write(topics["events"], pairs[count // 2 :], "writing events", count)
        _wait(job, lambda: at.topics.size(predictions) >= count, "all predictions")
        _quiet(at, predictions)


def _learn(at: Lab, job: Child, topics: Mapping[str, str]) -> None:
    """Wait until all labels are known.

    Each partition ends with a record that is none: its dead letter says that all before it were
    read. The barriers of a checkpoint after that push them through every channel.
    """
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": at.bootstrap})
    for partition in range(PARTITIONS):
        producer.produce(topics["labels"], _NO_LABEL, partition=partition)
    producer.flush(30)
    letters = topics["dead_letters"]
    _wait(job, lambda: at.topics.size(letters) >= PARTITIONS, "the labels")
    number = _number(_checkpoints(at)[-1]) if _checkpoints(at) else 0
    _wait(
        job,
        lambda: bool(_checkpoints(at)) and _number(_checkpoints(at)[-1]) >= number + 2,
        "two checkpoints",
    )


def _checkpoints(at: Lab) -> list[Path]:
    """Complete checkpoints, the oldest first."""
    found = (at.folder / "checkpoints" / "parity").glob("*/chk-*/_metadata")
    return sorted((path.parent for path in found), key=_number)


def _number(path: Path) -> int:
    return int(path.name.removeprefix("chk-"))


def _wait(job: Child, done: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + _WAIT_S
    while not done():
        job.check()
        if time.monotonic() > deadline_s:
            raise BenchError(f"{what} did not come within {_WAIT_S:.0f} s")
        time.sleep(0.2)


def _quiet(at: Lab, topic: str) -> None:
    """Wait until a topic has not grown for a while: repeats come after the last record."""
    size, since_s = at.topics.size(topic), time.monotonic()
    while time.monotonic() - since_s < _QUIET_S:
        time.sleep(0.5)
        if (now := at.topics.size(topic)) != size:
            size, since_s = now, time.monotonic()


def _parity(at: Lab) -> tuple[dict[str, Any], float, int]:
    """The command's outcome, its seconds and the most memory it had, in bytes."""
    say("comparing")
    out, config = at.folder / "parity.out", at.folder / "parity.yaml"
    command = [sys.executable, "-m", "jobs.cli", "features", "parity", str(config), "--json"]
    with out.open("wb") as stdout:
        started_s = time.monotonic()
        process = subprocess.Popen(command, cwd=ROOT, stdout=stdout, env=installed_environment())
        _, _, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - started_s
    try:
        found: dict[str, Any] = json.loads(out.read_bytes())
    except json.JSONDecodeError as exc:
        raise BenchError(f"features parity gave no outcome; see above, and {out}") from exc
    return found, seconds, 1_024 * usage.ru_maxrss


if __name__ == "__main__":
    sys.exit(main())
