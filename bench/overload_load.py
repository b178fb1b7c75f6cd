"""The load generator of bench/overload.py: any number of records at rates that it is told.

Reads ``RATE SECONDS mix|high`` lines, sends that, and answers each with a line of JSON. Records are
the demo's transactions, over and over, with new ids and times that go on, so that windows forget as
fast as they learn. ``high`` sends only those of high priority. One in a thousand is sent twice, and
one is no JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Sequence

import orjson
from confluent_kafka import Producer

from bench.common import Pacer
from bench.records import REPEAT_AFTER_MS, shift_ms
from jobs.demo import data as demo_data

_EVERY = 1_000
_QUEUE_RECORDS = 500_000


class Records:
    """An endless history, made record by record.

    Args:
        data: Which demo data.
        amount: A transaction of at least this amount is of high priority.
    """

    def __init__(self, data: str, amount: float) -> None:
        frame = demo_data.load(data)
        rows = [(key, orjson.loads(value)) for key, value in demo_data.event_json(frame)]
        self._all = [(key, _rest(row)) for key, row in rows]
        high = [n for n, (_, row) in enumerate(rows) if row["amount"] >= amount]
        self._high = [self._all[n] for n in high]
        self._step_ms = REPEAT_AFTER_MS // len(rows)
        self._start_ms = int(frame["event_time_ms"].min()) + shift_ms(0)
        self._number = 0

    def one(self, kind: str) -> tuple[bytes, bytes]:
        """The next record: key and JSON."""
        pool = self._high if kind == "high" else self._all
        number = self._number
        self._number += 1
        key, rest = pool[number % len(pool)]
        time_ms = self._start_ms + number * self._step_ms
        return key, b'{"transaction_id":"o-%d","event_time_ms":%d,%b' % (number, time_ms, rest)


def _rest(row: dict[str, object]) -> bytes:
    del row["transaction_id"], row["event_time_ms"]
    return orjson.dumps(row)[1:]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(prog="python -m bench.overload_load", description=__doc__)
    add = result.add_argument
    add("--bootstrap", required=True, help="host:port of the broker")
    add("--topic", required=True, help="topic to write to")
    add("--data", choices=tuple(demo_data.SIZES), default="full", help="demo data to repeat")
    add("--amount", type=float, required=True, help="of high priority from this amount on")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Send what the lines of standard input say; returns 1 if a record was not accepted."""
    options = parser().parse_args(argv)
    records = Records(options.data, options.amount)
    producer = Producer(
        {
            "bootstrap.servers": options.bootstrap,
            "linger.ms": 5,
            "acks": 1,
            "queue.buffering.max.messages": _QUEUE_RECORDS,
            "queue.buffering.max.kbytes": 1_048_576,
        }
    )
    gc.collect()
    gc.disable()  # a pause of the collector would look like the job's
    print("ready", flush=True)
    for line in sys.stdin:
        rate, seconds, kind = line.split()
        print(
            json.dumps(_send(producer, options.topic, records, float(rate), float(seconds), kind))
        )
        sys.stdout.flush()
    return 1 if producer.flush(30) else 0


def _send(
    producer: Producer, topic: str, records: Records, rate: float, seconds: float, kind: str
) -> dict[str, float]:
    pacer, first_ms = Pacer(rate), time.time_ns() // 1_000_000
    begun_s, sent = time.perf_counter(), 0
    for first, end in pacer.batches(round(rate * seconds)):
        now_ms = time.time_ns() // 1_000_000
        for n in range(first, end):
            key, value = records.one(kind)
            producer.produce(topic, value, key, timestamp=now_ms)
            if n % _EVERY == 1:
                producer.produce(topic, value, key, timestamp=now_ms)
            elif n % _EVERY == 2:
                producer.produce(topic, b"no json", key, timestamp=now_ms)
        producer.poll(0)
        sent = end
    took_s = time.perf_counter() - begun_s
    return {"first_ms": first_ms, "last_ms": time.time_ns() // 1_000_000, "per_s": sent / took_s}


if __name__ == "__main__":
    sys.exit(main())
