"""What measurements and tests of a job on a cluster share: a steady writer, and the accounts."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import orjson
import yaml
from confluent_kafka import Producer

from jobs.environment import ROOT
from jobs.features import parity, topics
from jobs.settings import Settings

Event = tuple[bytes, bytes]
"""Key and value of a record."""

START_MS = 1_750_000_000_000
_STEP_MS = 20
_TICK_S = 0.02


def events(cards: int, seed: int, terminals: int = 1_000) -> Iterator[Event]:
    """Events of conf/fraud.yaml without end: each card once, then cards at random.

    A card has a terminal of its own partition's, so that the order at a terminal does not depend on
    which partition is read faster.
    """
    chance = np.random.default_rng(seed)
    number = 0
    while True:
        size = 10_000
        first = np.arange(number, number + size)
        drawn = np.where(first < cards, first, chance.integers(0, cards, size))
        amounts = np.round(chance.gamma(2.0, 40.0, size), 2)
        for card, amount in zip(drawn.tolist(), amounts.tolist(), strict=True):
            yield (
                b"c%d" % card,
                orjson.dumps(
                    {
                        "transaction_id": f"t{number}",
                        "event_time_ms": START_MS + number * _STEP_MS,
                        "card_id": f"c{card}",
                        "terminal_id": f"m{card % terminals}",
                        "amount": amount,
                        "type": "CP" if card % 2 else "CNP",
                    }
                ),
            )
            number += 1


class Writer:
    """Writes events at a rate, in a thread; a context manager that ends with all written.

    Args:
        settings: The job's; a card's partition is told by its number.
        source: The events.
    """

    def __init__(self, settings: Settings, source: Iterator[Event]) -> None:
        self._source = source
        self._topic = settings.topics.events
        self._partitions = settings.topics.partitions
        self._producer = Producer(
            {
                "bootstrap.servers": settings.kafka.bootstrap_servers,
                "acks": "all",
                "enable.idempotence": True,
                "linger.ms": 5,
                "log_level": 0,
                "queue.buffering.max.messages": 1_000_000,
            }
        )
        self._ended = threading.Event()
        self.written = 0

    def write(self, count: int) -> None:
        """Write so many now."""
        for _ in range(count):
            key, value = next(self._source)
            self._producer.produce(self._topic, value, key, int(key[1:]) % self._partitions)
            self.written += 1
            if self.written % 1_000 == 0:
                self._producer.poll(0)
        self._producer.poll(0)

    def flush(self) -> None:
        """Wait until the broker has all."""
        assert self._producer.flush(60) == 0, "the broker does not take the events"

    def at(self, rate: float) -> Self:
        """The rate to write at, events a second, inside the context."""
        self._rate = rate
        return self

    def __enter__(self) -> Self:
        self._ended.clear()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self.flush()

    def _run(self) -> None:
        start_s, before = time.monotonic(), self.written
        while not self._ended.is_set():
            due = before + int((time.monotonic() - start_s) * self._rate)
            self.write(max(0, due - self.written))
            time.sleep(_TICK_S)


@dataclass(frozen=True)
class Accounts:
    """What became of the events that were written.

    Attributes:
        events: That were written.
        predictions: Of different events.
        lost: Events without a prediction.
        repeats: Further predictions of an event, as a read_committed reader sees them.
        wrong: Values of features that are not what the topics give.
        first: The first few wrong ones, to be read.
    """

    events: int
    predictions: int
    lost: int
    repeats: int
    wrong: int
    first: Sequence[parity.Difference]


def accounts(settings: Settings, newest: int | None = None) -> Accounts:
    """Read a job's topics and recompute every feature.

    Args:
        settings: The job's.
        newest: Compare the features of the newest so many predictions; none compares all.
    """
    source = topics.read(settings, {}, lambda *_: None)
    found = parity.compare(settings, source, newest, lambda *_: None)
    return Accounts(
        len(source.events),
        found.predictions,
        found.unscored + found.without_event,
        found.repeats,
        found.differences,
        found.first[:5],
    )


def changed_code(folder: Path, name: str, old: str, new: str) -> Path:
    """The project in a new folder, with one change in one file."""
    for part in ("jobs", "udfs", "model_server"):
        shutil.copytree(ROOT / part, folder / part)
    (folder / "conf").mkdir()
    for path in (ROOT / "conf").glob("*"):
        if path.is_file():
            shutil.copy(path, folder / "conf")
    text = (folder / name).read_text()
    assert text.count(old) == 1, f"{name} has not one {old!r}"
    (folder / name).write_text(text.replace(old, new))
    return folder


def with_a_feature(conf: Path, new: Path) -> Path:
    """A copy of conf/fraud.yaml with one more window of a card."""
    document = yaml.safe_load(conf.read_text())
    document["features"]["windows"][0]["windows"].insert(1, "10m")
    new.write_text(yaml.safe_dump(document))
    return new
