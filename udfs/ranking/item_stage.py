"""Popularity by item in Flink: counts per item, published to a compacted topic.

A request is keyed by its user, an item's count by the item: the counts reach the ranking stage as a
topic that each of its subtasks follows. They are late by the publishing interval.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from pyflink.common import Row, Types
from pyflink.datastream import KeyedProcessFunction, RuntimeContext
from pyflink.datastream.state import MapStateDescriptor
from pyflink.datastream.timerservice import TimerService

from udfs.batches.buckets import sql_buckets
from udfs.batches.events import split_batch
from udfs.lifetime import close_at_end
from udfs.ranking.arrays import keys_of
from udfs.ranking.index import ItemIndex
from udfs.ranking.live_popularity import ItemPopularity

__all__ = ["ItemStage"]

_END_MS = 2**63 - 1


class ItemStage(KeyedProcessFunction):
    """Input: records of the events topic as the JVM joins them, keyed by bucket of items.

    Output: ``Row(records)``, item and popularity, of the items that have changed. An item begins
    with what the version at the job's start knows of it; events before that version's time are in
    there already and are left out. A record that is written twice to the topic counts twice.

    Args:
        version_dir: The version's folder.
        weights: What an interaction adds, by its kind; others add nothing.
        publish_ms: Processing time between two publications.
        labels: The buckets' labels.
    """

    def __init__(
        self,
        version_dir: Path,
        weights: Mapping[str, float],
        publish_ms: int,
        labels: tuple[int, ...],
    ) -> None:
        self._labels = labels
        self._version_dir = version_dir
        self._weights = dict(weights)
        self._publish_ms = publish_ms

    def open(self, runtime_context: RuntimeContext) -> None:
        """Read the version's items; Flink has restored the state by now."""
        close_at_end(self.close)
        descriptor = MapStateDescriptor("popularity", Types.STRING(), Types.PICKLED_BYTE_ARRAY())
        self._state = runtime_context.get_map_state(descriptor)
        self._index = ItemIndex.load(self._version_dir)
        self._dirty: dict[int, dict[str, ItemPopularity]] = {}
        self._next_ms: dict[int, int] = {}
        self._counter = runtime_context.get_metrics_group().counter("popularity_events")
        split_batch("")

    def process_element(self, value: Any, ctx: KeyedProcessFunction.Context) -> Iterable[Row]:
        """One micro-batch."""
        dirty = self._of(ctx.get_current_key())
        changed = dict[str, ItemPopularity]()
        for item, time_ms, weight in self._purchases(split_batch(value)[0]):
            before = changed.get(item) or dirty.get(item) or self._stored(item)
            changed[item] = before.add(time_ms, weight)
        for item, popularity in changed.items():
            self._state.put(item, popularity.packed())
        dirty |= changed
        yield from self._schedule(ctx)

    def on_timer(self, timestamp: int, ctx: KeyedProcessFunction.OnTimerContext) -> Iterable[Row]:
        """Publish what has changed."""
        bucket = ctx.get_current_key()
        dirty = self._of(bucket)
        if timestamp == self._next_ms.get(bucket):
            del self._next_ms[bucket]
        if dirty:
            yield Row([[item.encode(), one.record(item)] for item, one in dirty.items()])
            dirty.clear()

    def _of(self, bucket: int) -> dict[str, ItemPopularity]:
        """The bucket's items to be published: at first all of them."""
        found = self._dirty.get(bucket)
        if found is None:
            stored = self._state.items()
            found = self._known(bucket)
            found |= {item: ItemPopularity.unpacked(packed) for item, packed in stored}
            self._dirty[bucket] = found
        return found

    def _known(self, bucket: int) -> dict[str, ItemPopularity]:
        """What the version knows of the bucket's items that were ever bought."""
        index = self._index
        ids = index.ids.tolist()
        own = np.array(self._labels)[sql_buckets(ids, len(self._labels))] == bucket
        rows = np.flatnonzero(own & (index.popularity[:, 0] > 0))
        return {ids[row]: self._of_row(row) for row in rows.tolist()}

    def _of_row(self, row: int) -> ItemPopularity:
        index = self._index
        first_ms, last_ms = int(index.first_ms[row]), int(index.last_ms[row])
        return ItemPopularity.of_sums(index.popularity[row], index.as_of_ms, first_ms, last_ms)

    def _purchases(self, raw: list[bytes]) -> Iterator[tuple[str, int, float]]:
        """Item, event time and weight; what is malformed became a dead letter elsewhere."""
        for one in raw:
            try:
                document = orjson.loads(one)
                weight = self._weights.get(document["kind"])
                item, time_ms = document.get("item"), document["event_time_ms"]
            except (ValueError, KeyError, TypeError, AttributeError):
                continue
            if weight is None or not isinstance(item, str) or not item:
                continue
            if type(time_ms) is int and time_ms >= self._index.as_of_ms:
                self._counter.inc(1)
                yield item, time_ms, weight

    def _stored(self, item: str) -> ItemPopularity:
        packed = self._state.get(item)
        if packed is not None:
            return ItemPopularity.unpacked(packed)
        row = int(self._index.rows_of(keys_of([item]))[0])
        return ItemPopularity() if row < 0 else self._of_row(row)

    def _schedule(self, ctx: KeyedProcessFunction.Context) -> Iterator[Row]:
        bucket, timers = ctx.get_current_key(), ctx.timer_service()
        if timers.current_watermark() == _END_MS:
            yield from self.on_timer(_END_MS, ctx)
        elif self._dirty[bucket] and bucket not in self._next_ms:
            self._next_ms[bucket] = self._register(timers)

    def _register(self, timers: TimerService) -> int:
        at_ms = time.time_ns() // 1_000_000 + self._publish_ms
        timers.register_processing_time_timer(at_ms)
        timers.register_event_time_timer(_END_MS - 1)
        return at_ms
