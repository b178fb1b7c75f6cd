"""The demo's input: a history told again in its own order, thousands of times faster than life.

Beside the transactions and their late labels it has exact duplicates and bad records, so that a run
shows what becomes of them. How many there are of each is known before the first is sent.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import orjson
import pandas as pd

from jobs.demo.data import DAY_MS, LABEL_DELAY_MS, event_json, label_json
from udfs.batches.events import FloatArray, IntArray

LABEL_LEAD_MS = DAY_MS
"""How much event time before it is known a label is sent.

The first window that reads a label ends seven days before its event, at the label's own
transaction. A day of event time passes in about a second here, while labels and events take two
ways through Kafka and Flink: sent on the very millisecond, many a label would be too late for the
event that first needs it. Sent early it changes nothing, as windows go by the transaction's time.
"""

MAX_DISTANCE = 50
"""A duplicate follows its original by at most so many transactions."""

TICK_S = 0.005


class Item(NamedTuple):
    """A record to be sent: a topic's role, ``events`` or ``labels``, key and value."""

    role: str
    key: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class Script:
    """All that will be sent.

    Attributes:
        items: In their order.
        places: Where each stands among the transactions, as a part of them: float64 (items,),
            ascending, 0 to 1.
        bad: Records that must become dead letters, by kind.
        duplicates: Exact copies of a transaction.
    """

    items: Sequence[Item]
    places: FloatArray
    bad: Counter[str]
    duplicates: int

    @property
    def events(self) -> int:
        """Records of the events topic: transactions, bad records and duplicates."""
        return sum(item.role == "events" for item in self.items)

    @property
    def labels(self) -> int:
        """Records of the labels topic."""
        return len(self.items) - self.events


def script(frame: pd.DataFrame, bad: int = 200, duplicates: int = 500, seed: int = 1) -> Script:
    """What to send of a history.

    Args:
        frame: Transactions in the order of their time, as ``demo_data.load`` gives them.
        bad: How many bad records to add, of all kinds alike.
        duplicates: How many transactions to send twice.
        seed: Of the places and the kinds.
    """
    chance = random.Random(seed)  # noqa: S311 (places in a replay)
    events = [Item("events", key, value) for key, value in event_json(frame)]
    placed = [(float(place), event) for place, event in enumerate(events)]
    placed += _labels(frame)
    placed += _duplicates(events, min(duplicates, len(events)), chance)
    spoilt = list(_bad(events, bad, chance))
    placed += [(place, item) for place, _, item in spoilt]
    placed.sort(key=lambda entry: entry[0])
    return Script(
        items=[item for _, item in placed],
        places=np.array([place for place, _ in placed]).clip(0) / max(len(events), 1),
        bad=Counter(kind for _, kind, _ in spoilt),
        duplicates=min(duplicates, len(events)),
    )


def _labels(frame: pd.DataFrame) -> Iterator[tuple[float, Item]]:
    """The labels that are known before the history ends; see ``LABEL_LEAD_MS``."""
    times: IntArray = frame["event_time_ms"].to_numpy(np.int64)
    places = np.searchsorted(times, times + LABEL_DELAY_MS - LABEL_LEAD_MS)
    for place, (key, value) in zip(places.tolist(), label_json(frame), strict=True):
        if place < len(times):
            yield place - 0.5, Item("labels", key, value)


def _duplicates(
    events: Sequence[Item], count: int, chance: random.Random
) -> Iterator[tuple[float, Item]]:
    for original in chance.sample(range(len(events)), count):
        yield _soon_after(original, chance), events[original]


def _soon_after(place: int, chance: random.Random) -> float:
    return place + chance.randint(0, MAX_DISTANCE) + 0.25


def _bad(
    events: Sequence[Item], count: int, chance: random.Random
) -> Iterator[tuple[float, str, Item]]:
    kinds = list(_SPOIL)
    for n in range(count if events else 0):
        kind, original = kinds[n % len(kinds)], chance.randrange(len(events))
        event = events[original]
        yield _soon_after(original, chance), kind, event._replace(value=_SPOIL[kind](event.value))


def _changed(**fields: Any) -> Callable[[bytes], bytes]:
    return lambda value: orjson.dumps({**orjson.loads(value), **fields})


def _without_amount(value: bytes) -> bytes:
    return orjson.dumps({k: v for k, v in orjson.loads(value).items() if k != "amount"})


_SPOIL: dict[str, Callable[[bytes], bytes]] = {
    "not JSON": lambda _: b"ping",
    "cut off": lambda value: value[: len(value) // 2],
    "empty": lambda _: b"",
    "not an object": lambda value: b"[" + value + b"]",
    "not UTF-8": lambda value: value.replace(b'"CNP"', b'"\xff"').replace(b'"CP"', b'"\xff"'),
    "missing field": _without_amount,
    "wrong type": _changed(amount="12,50"),
    "negative amount": _changed(amount=-1.0),
    "far future": _changed(event_time_ms=4_102_444_800_000),  # the year 2100
    "other content": _changed(amount=0.01),  # of an id that was there before
}


def due_s(places: FloatArray, duration_s: float, ramp_s: float) -> FloatArray:
    """When to send each item: the rate rises from 0 for ``ramp_s``, then it stays.

    Args:
        places: Parts of the whole, 0 to 1, ascending.
        duration_s: From the first item to the last.
        ramp_s: At most ``duration_s``.

    Returns:
        Seconds since the start, float64 of the same shape.
    """
    rate_per_s = 1 / (duration_s - ramp_s / 2)
    in_ramp = rate_per_s * ramp_s / 2
    rising = np.sqrt(2 * ramp_s * np.minimum(places, in_ramp) / rate_per_s)
    steady: FloatArray = rising + np.maximum(places - in_ramp, 0) / rate_per_s
    return steady


class Producer(Protocol):
    """What is used of confluent_kafka's producer."""

    def produce(
        self, topic: str, value: bytes, key: bytes, *, on_delivery: Callable[[Any, Any], None]
    ) -> None:
        """Queue a record; its Kafka timestamp is now."""

    def poll(self, timeout: float) -> int:
        """Report deliveries."""

    def flush(self, timeout: float) -> int:
        """Wait for the queue to empty; returns how many records are left."""


class ReplayError(RuntimeError):
    """Kafka did not take a record."""


class Replay:
    """Sends a script to Kafka at its pace; ``events_sent`` may be read from another thread.

    Args:
        content: What to send.
        topics: Topic name by role.
        duration_s: From the first item to the last.
        ramp_s: How long the rate rises first.
        clock: Monotonic seconds.
        sleep: Waits so many seconds.
    """

    def __init__(
        self,
        content: Script,
        topics: Mapping[str, str],
        duration_s: float,
        ramp_s: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._script = content
        self._events = content.events
        self._topics = topics
        self._due_s = due_s(content.places, duration_s, ramp_s)
        self._clock = clock
        self._sleep = sleep
        self._failure: Any = None
        self.events_sent = 0
        self.is_done = False

    @property
    def progress(self) -> float:
        """Which part of the events is sent, 0 to 1."""
        return self.events_sent / max(self._events, 1)

    def run(self, producer: Producer, stop: threading.Event) -> None:
        """Send everything, or until ``stop`` is set.

        Args:
            producer: Where to.
            stop: Looked at at every tick.

        Raises:
            ReplayError: Kafka refused a record, or did not take the last ones within 30 s.
        """
        begun_s, at = self._clock(), 0
        while at < len(self._due_s) and not stop.is_set():
            end = int(np.searchsorted(self._due_s, self._clock() - begun_s, side="right"))
            self._send(self._script.items[at:end], producer)
            at = max(at, end)
            self._sleep(TICK_S)
        if left := producer.flush(30.0):
            raise ReplayError(f"Kafka did not take the last {left:,} records within 30 s")
        self._raise_failure()
        self.is_done = not stop.is_set()

    def _send(self, items: Sequence[Item], producer: Producer) -> None:
        for item in items:
            self._produce(item, producer)
            self.events_sent += item.role == "events"
        producer.poll(0)
        self._raise_failure()

    def _produce(self, item: Item, producer: Producer) -> None:
        topic = self._topics[item.role]
        while True:
            try:
                producer.produce(topic, item.value, item.key, on_delivery=self._delivered)
            except BufferError:  # its queue is full
                producer.poll(0.1)
            else:
                return

    def _delivered(self, error: Any, _message: Any) -> None:
        self._failure = self._failure or error

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise ReplayError(f"Kafka refused a record: {self._failure}")
