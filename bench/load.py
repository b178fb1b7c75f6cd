"""The load generator: a process that writes transactions to a topic at a constant rate.

Makes the records first and prints ``ready``; starts at a line on its standard input; prints one
line of JSON at the end. A record's Kafka time is this process' clock when it was handed to the
producer. Its event id is ``<tag>-<number>``, so that a reader can tell warm-up records.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from confluent_kafka import Producer

from bench.common import Pacer
from bench.records import repeated
from jobs.demo import data as demo_data

_QUEUE_RECORDS = 500_000
_POLL_EVERY = 8
_FLUSH_S = 30.0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(prog="python -m bench.load", description=__doc__)
    add = result.add_argument
    add("--bootstrap", required=True, help="host:port of the broker")
    add("--topic", required=True, help="topic to write to")
    add("--data", choices=tuple(demo_data.SIZES), default="full", help="demo data to repeat")
    add("--first", type=int, default=0, help="number of the first transaction to take")
    add("--tag", required=True, help="leads the event ids")
    add("--rate", type=float, required=True, help="records per second")
    add("--warm-s", type=float, required=True, help="seconds of warm-up, not measured")
    add("--seconds", type=float, required=True, help="seconds that are measured")
    add("--tick-ms", type=float, default=2.0, help="least time between two batches")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Write the load; returns 1 if a record was not accepted."""
    options = parser().parse_args(argv)
    warm = round(options.rate * options.warm_s)
    total = warm + round(options.rate * options.seconds)
    frame = demo_data.load(options.data)
    records = list(repeated(frame, options.first, total, options.tag))
    gc.collect()
    gc.disable()  # a pause of the collector would look like the job's
    print("ready", flush=True)
    sys.stdin.readline()
    report = _send(options, records, warm)
    print(json.dumps(report), flush=True)
    return 1 if report["refused"] else 0


def _send(
    options: argparse.Namespace, records: list[tuple[bytes, bytes]], warm: int
) -> dict[str, Any]:
    producer = Producer(_producer_options(options.bootstrap))
    pacer = Pacer(options.rate, options.tick_ms / 1_000)
    start_s = time.perf_counter()
    measured_from_s, measured_from = start_s, 0
    for number, (first, end) in enumerate(pacer.batches(len(records))):
        now_ms = time.time_ns() // 1_000_000
        for key, value in records[first:end]:
            producer.produce(options.topic, value, key, timestamp=now_ms)
        if first < warm <= end:
            measured_from_s, measured_from = time.perf_counter(), end
            pacer.late_max_s = 0.0
        if number % _POLL_EVERY == 0:
            producer.poll(0)
    end_s = time.perf_counter()
    return {
        "sent": len(records),
        "warm": warm,
        "achieved_per_s": (len(records) - measured_from) / (end_s - measured_from_s),
        "seconds": end_s - start_s,
        "late_max_ms": pacer.late_max_s * 1_000,
        "refused": producer.flush(_FLUSH_S),
    }


def _producer_options(bootstrap: str) -> dict[str, Any]:
    return {
        "bootstrap.servers": bootstrap,
        "linger.ms": 5,  # the default of Kafka's own clients; with less the broker takes the CPU
        "acks": 1,
        "compression.type": "none",
        "queue.buffering.max.messages": _QUEUE_RECORDS,
        "queue.buffering.max.kbytes": 1_048_576,
    }


if __name__ == "__main__":
    sys.exit(main())
