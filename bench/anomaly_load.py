"""The load generator of bench/anomaly.py: machines that send a reading a second, as Fleet has them.

Readings are sent when they are due by the clock: a reading's event
time is when it is due. With ``--backlog`` all are written as fast as they are made. Prints
``ready``, starts at a line on its standard input, prints a line of JSON at the end.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from confluent_kafka import Producer

from jobs.demo.iot import runs
from jobs.demo.iot.fleet import NO_FAULTS, Faults, Fleet
from jobs.demo.replay import Chunk, Replay

_QUEUE_RECORDS = 500_000


class Ahead:
    """A fleet whose next second is made while one is sent.

    Args:
        fleet: The machines.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.added = ""
        self.events = fleet.events

    def chunks(self) -> Iterator[Chunk]:
        """See ``jobs.demo.replay.Content``."""
        made = self._fleet.chunks()
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(next, made, None)
            while (chunk := waiting.result()) is not None:
                waiting = pool.submit(next, made, None)
                yield chunk


def fleet_of(machines: int, seconds: int, start_ms: int, faults: bool, disturbed: float) -> Fleet:
    """The machines; the same arguments give the same ones."""
    kinds = replace(Faults(), silent=0.0) if faults else NO_FAULTS
    return Fleet(runs.load(), machines, seconds, start_ms, disturbed=disturbed, faults=kinds)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(prog="python -m bench.anomaly_load", description=__doc__)
    add = result.add_argument
    add("--bootstrap", required=True, help="host:port of the broker")
    add("--topic", required=True, help="topic to write to")
    add("--machines", type=int, required=True, help="how many; as many readings a second")
    add("--seconds", type=int, required=True, help="seconds of their time")
    add("--start-ms", type=int, required=True, help="event time of the first second, epoch")
    add("--disturbed", type=float, required=True, help="part of the machines with an anomaly")
    add("--no-faults", action="store_true", help="no gaps, repeats, bad or late records")
    add("--backlog", action="store_true", help="write all of it as fast as it is made")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Write the load; returns 0."""
    options = parser().parse_args(argv)
    fleet = fleet_of(
        options.machines,
        options.seconds,
        options.start_ms,
        not options.no_faults,
        options.disturbed,
    )
    content = Ahead(fleet)
    duration_s = 1e-3 if options.backlog else float(options.seconds)
    replay = Replay(content, {"events": options.topic}, duration_s, 0.0)
    producer = Producer(
        {
            "bootstrap.servers": options.bootstrap,
            "linger.ms": 5,
            "acks": 1,
            "queue.buffering.max.messages": _QUEUE_RECORDS,
        }
    )
    print("ready", flush=True)
    sys.stdin.readline()
    if not options.backlog:
        time.sleep(max(0.0, options.start_ms / 1_000 - time.time()))
    begun_s = time.monotonic()
    replay.run(producer, threading.Event())
    took_s = time.monotonic() - begun_s
    print(json.dumps({"sent": replay.events_sent, "seconds": took_s}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
