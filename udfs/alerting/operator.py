"""Flink's side of episodes: scored batches in, records of the alerts topic out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pyflink.common import Row, Types
from pyflink.datastream import KeyedProcessFunction, OutputTag, RuntimeContext
from pyflink.datastream.state import MapStateDescriptor

from udfs.alerting.episodes import Episodes, Told
from udfs.alerting.records import EpisodeWriter
from udfs.definition.episode import EpisodeSpec
from udfs.lifetime import close_at_end
from udfs.runtime import share_interpreter_fairly
from udfs.state_ttl import state_ttl

SCORED = OutputTag("scored", Types.ROW([Types.INT(), Types.PICKLED_BYTE_ARRAY()]))
"""Side output of what scores: ``Row(bucket of the entity, ScoredBatch)``."""

_LONGEST_CHECK_MS = 1_000
_CHECKS = 10


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class EpisodeOperator(KeyedProcessFunction):
    """Opens and closes episodes; thread mode, keyed by bucket of the entity.

    Input: ``ScoredBatch``. Output: ``Row(alerts)``, pairs of key and value as other sinks have.
    State: entity -> packed timeline. A processing-time timer per bucket closes episodes without
    events and tells silent entities; Flink drops it when an input ends. If it is overdue by
    more than the time to the next one, the job stood still and events wait: no silence is told.

    Args:
        spec: When episodes open and close.
        topic: The events topic.
        ttl_s: How long an idle entity is kept.
        hide: Makes what is shown of an entity that is sensitive; none: it is not.
        now_ms: The clock.
    """

    def __init__(
        self,
        spec: EpisodeSpec,
        topic: str,
        ttl_s: int,
        hide: Callable[[str], str] | None = None,
        now_ms: Callable[[], int] = _now_ms,
    ) -> None:
        self._spec = spec
        self._writer = EpisodeWriter(topic, spec, hide)
        self._ttl_s = ttl_s
        self._now_ms = now_ms
        waits = [w for w in (spec.close_after, spec.silent_after) if w is not None]
        self._check_ms = max(1, min(_LONGEST_CHECK_MS, min(waits) // _CHECKS)) if waits else None

    def open(self, runtime_context: RuntimeContext) -> None:
        """Flink has restored the state by now; a bucket's is read with its first element."""
        close_at_end(self.close)
        descriptor = MapStateDescriptor("episodes", Types.STRING(), Types.PICKLED_BYTE_ARRAY())
        descriptor.enable_time_to_live(state_ttl(self._ttl_s))
        self._state = runtime_context.get_map_state(descriptor)
        self._buckets: dict[int, Episodes] = {}
        self._timers: dict[int, int] = {}
        metrics = runtime_context.get_metrics_group()
        self._opened_counter = metrics.counter("episodes_opened")
        self._late_counter = metrics.counter("episode_scores_too_late")
        share_interpreter_fairly()

    def process_element(self, value: Any, ctx: KeyedProcessFunction.Context) -> Iterable[Row]:
        """A batch of scores."""
        now_ms = self._now_ms()
        episodes = self._of(ctx.get_current_key(), now_ms)
        self._set_timer(ctx, now_ms)
        return self._rows(episodes, episodes.take(value, now_ms), now_ms)

    def on_timer(self, timestamp: int, ctx: KeyedProcessFunction.OnTimerContext) -> Iterable[Row]:
        """Look at the clock."""
        now_ms = self._now_ms()
        episodes = self._of(ctx.get_current_key(), now_ms)
        self._timers.pop(ctx.get_current_key(), None)
        self._set_timer(ctx, now_ms)
        return self._rows(episodes, episodes.due(now_ms), now_ms)

    def _of(self, bucket: int, now_ms: int) -> Episodes:
        """A bucket's episodes, told of a standstill; Flink's current key is the bucket."""
        if bucket not in self._buckets:
            self._buckets[bucket] = Episodes(self._spec, self._state, now_ms)
        episodes, late_ms = self._buckets[bucket], now_ms - self._timers.get(bucket, now_ms)
        if self._check_ms is not None and late_ms > self._check_ms:
            episodes.forgive(late_ms)
        return episodes

    def _set_timer(self, ctx: KeyedProcessFunction.Context, now_ms: int) -> None:
        """The next one, at a round time: one that a restart has left is the same one."""
        if self._check_ms is None:
            return
        bucket, at_ms = ctx.get_current_key(), (now_ms // self._check_ms + 1) * self._check_ms
        if self._timers.get(bucket) != at_ms:
            self._timers[bucket] = at_ms
            ctx.timer_service().register_processing_time_timer(at_ms)

    def _rows(self, episodes: Episodes, told: list[Told], now_ms: int) -> Iterator[Row]:
        counts = episodes.counts.take()
        self._opened_counter.inc(counts.opened)
        self._late_counter.inc(counts.late)
        if told:
            records = [self._writer.record(one, now_ms) for one in told]
            yield Row([[key.encode(), value] for key, value in records])
