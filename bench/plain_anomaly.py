"""The limit for bench/anomaly.py: a loop of a consumer, plain windows, the model, a producer."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from confluent_kafka import Consumer, Producer, TopicPartition

from bench.machine_windows import Machines, Scorer

_BATCH, _POLL_S = 5_000, 0.05


def main(argv: Sequence[str] | None = None) -> None:
    """Run until it is ended."""
    parser = argparse.ArgumentParser(prog="python -m bench.plain_anomaly", description=__doc__)
    for name in ("bootstrap", "events", "output", "model"):
        parser.add_argument(f"--{name}", required=True)
    options = parser.parse_args(argv)
    scorer, machines = Scorer(options.model), Machines()
    consumer = Consumer({"bootstrap.servers": options.bootstrap, "group.id": "plain"})
    consumer.assign([TopicPartition(options.events, 0, 0)])
    producer = Producer({"bootstrap.servers": options.bootstrap, "linger.ms": 5})
    print("started", flush=True)
    while True:
        messages = consumer.consume(_BATCH, _POLL_S)
        values = [value for m in messages if not m.error() and (value := m.value()) is not None]
        if closed := machines.add(values):
            for key, record in scorer.records(closed):
                producer.produce(options.output, record, key)
        producer.poll(0)


if __name__ == "__main__":
    main()
