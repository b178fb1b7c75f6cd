"""The feedback join in Flink: one Python call per micro-batch, keyed by bucket of users."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

from pyflink.common import Row, Types
from pyflink.datastream import KeyedProcessFunction, RuntimeContext
from pyflink.datastream.state import MapStateDescriptor
from pyflink.datastream.timerservice import TimerService

from udfs.batches.events import split_batch
from udfs.feedback.join import FeedbackJoin, FeedbackOptions, Written
from udfs.feedback.records import record_of
from udfs.lifetime import close_at_end

__all__ = ["FeedbackStage"]

_TICK_MS = 1_000
_END_MS = 2**63 - 1


class FeedbackStage(KeyedProcessFunction):
    """Input: records of the events and the impressions topic, as the JVM joins them.

    Output: ``Row(examples)``, key and value of each. Exactly once in state; the examples are at
    least once where the sink is, and named by the request's id.

    Args:
        options: How long is waited.
        kinds: Interactions that are labels.
    """

    def __init__(self, options: FeedbackOptions, kinds: frozenset[str]) -> None:
        self._options = options
        self._kinds = kinds

    def open(self, runtime_context: RuntimeContext) -> None:
        """Ready the state; Flink has restored it by now."""
        close_at_end(self.close)
        descriptor = MapStateDescriptor("feedback", Types.STRING(), Types.PICKLED_BYTE_ARRAY())
        self._state = runtime_context.get_map_state(descriptor)
        self._joins: dict[int, FeedbackJoin] = {}
        self._looked_ms: dict[int, int] = {}
        self._next_ms: dict[int, int] = {}
        self._metrics = runtime_context.get_metrics_group()
        self._counters: dict[str, Any] = {}
        split_batch("")

    def process_element(self, value: Any, ctx: KeyedProcessFunction.Context) -> Iterable[Row]:
        """One micro-batch."""
        bucket = ctx.get_current_key()
        raw, _ = split_batch(value)
        join = self._of(bucket, ctx.timer_service())
        records = (record_of(one, self._kinds) for one in raw)
        yield from self._rows(join, join.take(one for one in records if one is not None))

    def on_timer(self, timestamp: int, ctx: KeyedProcessFunction.OnTimerContext) -> Iterable[Row]:
        """Time passes, or the input has ended."""
        bucket = ctx.get_current_key()
        join = self._of(bucket, ctx.timer_service())
        if timestamp == _END_MS - 1:
            yield from self._rows(join, join.finish())
            return
        now_ms = _now_ms()
        elapsed_ms = now_ms - self._looked_ms[bucket]
        self._looked_ms[bucket] = now_ms
        if timestamp == self._next_ms[bucket]:  # not one that a restart has left
            self._look_again(bucket, now_ms, ctx.timer_service())
        yield from self._rows(join, join.pass_time(max(0, elapsed_ms)))

    def _of(self, bucket: int, timers: TimerService) -> FeedbackJoin:
        join = self._joins.get(bucket)
        if join is None:
            join = self._joins[bucket] = FeedbackJoin(self._options, self._state)
            self._looked_ms[bucket] = _now_ms()
            self._look_again(bucket, self._looked_ms[bucket], timers)
            timers.register_event_time_timer(_END_MS - 1)
        return join

    def _look_again(self, bucket: int, now_ms: int, timers: TimerService) -> None:
        self._next_ms[bucket] = now_ms + _TICK_MS
        timers.register_processing_time_timer(self._next_ms[bucket])

    def _rows(self, join: FeedbackJoin, written: Iterator[Written]) -> Iterator[Row]:
        records = [[one.key.encode(), one.value] for one in written]
        for name, count in join.counts.taken().items():
            if name not in self._counters:
                self._counters[name] = self._metrics.counter(f"feedback_{name}")
            self._counters[name].inc(count)
        if records:
            yield Row(records)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
