"""What the fraud demo sends: a history, its late labels, exact duplicates and bad records.

How many there are of each is known before the first is sent, so that a run shows what becomes of
them.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import pandas as pd

from jobs.demo.data import DAY_MS, LABEL_DELAY_MS, event_json, label_json
from jobs.demo.replay import Chunk, Item
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

    def chunks(self) -> Iterator[Chunk]:
        """All of it as one; see ``replay.Content``."""
        yield Chunk(self.items, self.places)

    @property
    def added(self) -> str:
        """See ``replay.Content``."""
        return f"{self.duplicates:,} exact duplicates, {self.bad.total():,} bad records"

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
