"""The Flink operator that rolls readings up to windows: one Python call per micro-batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from pyflink.common import Row, Types
from pyflink.datastream import KeyedProcessFunction, RuntimeContext
from pyflink.datastream.state import MapStateDescriptor
from pyflink.datastream.timerservice import TimerService

from udfs.batches.batch import ClosedWindows
from udfs.batches.categories import code_of
from udfs.batches.events import KAFKA_TIME_MS, Decoder, Events, Reject, split_batch
from udfs.batches.privacy import Privacy
from udfs.batches.records import dead_letter, duplicate, silence
from udfs.batches.routing import Routing, conflict, refused, stray
from udfs.compiled import Ints
from udfs.definition.schema import Schema
from udfs.features.states import BucketStates
from udfs.lifetime import close_at_end
from udfs.overload.pacing import limit_of
from udfs.rollup.core import Rolled, Rollup
from udfs.rollup.idleness import Idleness
from udfs.rollup.kernels import BY_CLOCK, BY_END, BY_IDLENESS, Closed
from udfs.rollup.windows import OpenWindows
from udfs.runtime import calm_garbage_collector, share_interpreter_fairly
from udfs.state_ttl import state_ttl

END_MS = 2**63 - 1
"""The watermark of an input that has ended."""

_LATE = (
    "its window is closed: the key's newest reading is further ahead than "
    "event.time.allowed_lateness, or the key was idle, or its reading overdue"
)


@dataclass(slots=True)
class _Bucket:
    """A bucket's keys by the clock.

    Attributes:
        idleness: When each was heard.
        texts: The text of each code of a field that is kept.
        tick_ms: When the next timer goes off, epoch ms.
    """

    idleness: Idleness
    texts: dict[int, str]
    tick_ms: int = 0


def wall_ms() -> int:
    """Epoch ms."""
    return time.time_ns() // 1_000_000


class RollupStage(KeyedProcessFunction):
    """Checks raw readings, drops duplicates, and sends windows on when they close.

    Input: records as the JVM's micro-batch joins them, keyed by bucket. Output:
    ``Row(bucket, ClosedWindows)``, if there is anything to say.

    A window closes by its own key's readings; by a timer of processing time when its key is idle;
    and when the input ends. Every reading is in one window, a duplicate or a dead letter; one whose
    window is closed is a dead letter with the code ``late``.

    Args:
        schema: A schema with a roll-up.
        routing: The buckets.
        topic: The readings' topic.
        ttl_s: How long an idle key's readings are kept in Flink's state.
        journal_events: See ``BucketStates``.
        clock: Gives epoch ms.
        rate: Readings per second that are taken at most; none takes what comes.
    """

    def __init__(
        self,
        schema: Schema,
        routing: Routing,
        topic: str,
        ttl_s: int,
        journal_events: int,
        clock: Callable[[], int] = wall_ms,
        rate: float | None = None,
    ) -> None:
        assert schema.rollup is not None
        self._schema, self._routing, self._topic = schema, routing, topic
        self._spec, self._ttl_s, self._journal_events = schema.rollup, ttl_s, journal_events
        self._clock, self._rate = clock, rate

    def open(self, runtime_context: RuntimeContext) -> None:
        """Build the roll-up and its empty cache; Flink has restored the state by now."""
        close_at_end(self.close)
        descriptor = MapStateDescriptor("readings", Types.STRING(), Types.PICKLED_BYTE_ARRAY())
        descriptor.enable_time_to_live(state_ttl(self._ttl_s))
        texts = MapStateDescriptor("kept-texts", Types.STRING(), Types.PICKLED_BYTE_ARRAY())
        self._rollup = Rollup(self._schema)
        self._rollup.warm_up()
        state = runtime_context.get_map_state(descriptor)
        self._states = BucketStates(self._rollup, state, 1 << 62, self._journal_events)
        self._texts_state = runtime_context.get_map_state(texts)
        self._buckets: dict[int, _Bucket] = {}
        self._decoder = Decoder.for_events(self._schema.arriving, self._schema.arriving_keys)
        self._privacy = Privacy.of_arriving(self._schema)
        self._limit = limit_of(self._rate)
        split_batch("")
        metrics = runtime_context.get_metrics_group()
        self._readings_counter = metrics.counter("readings")
        self._duplicates_counter = metrics.counter("duplicates")
        self._dead_letters_counter = metrics.counter("dead_letters")
        self._late_counter = metrics.counter("late_readings")
        self._windows_counter = metrics.counter("windows")
        self._idle_counter = metrics.counter("idle_windows")
        self._silent_counter = metrics.counter("silent")
        calm_garbage_collector()
        share_interpreter_fairly()

    def process_element(self, value: Any, ctx: KeyedProcessFunction.Context) -> Iterator[Row]:
        """One micro-batch of raw readings."""
        bucket, timers = ctx.get_current_key(), ctx.timer_service()
        mine = self._of(bucket, timers)
        raw, positions = split_batch(value)
        if self._limit is not None:
            self._limit.wait(len(raw))
        decoded = self._decoder.decode(raw, positions)
        made = self._observe(
            bucket, mine, *self._of_bucket(bucket, decoded.merged()), decoded.rejects
        )
        if not made.is_empty:
            yield Row(bucket, made)
        if timers.current_watermark() == END_MS:
            yield from self._close(bucket, mine, self._windows(bucket).open_slots(), BY_END)

    def on_timer(self, timestamp: int, ctx: KeyedProcessFunction.OnTimerContext) -> Iterable[Row]:
        """Close what is idle; at the input's end, everything."""
        bucket, timers = ctx.get_current_key(), ctx.timer_service()
        mine = self._of(bucket, timers)
        windows = self._windows(bucket)
        if timestamp == END_MS - 1:
            return self._close(bucket, mine, windows.open_slots(), BY_END)
        if timestamp != mine.tick_ms:  # of before a restart, which has set its own
            return ()
        self._tick(mine, timers)
        now_ms = self._clock()
        if now_ms - timestamp > mine.idleness.stall_ms:  # what is to be read has waited as well
            mine.idleness.forgive(now_ms - timestamp)
        return self._by_clock(bucket, mine, now_ms)

    def _by_clock(self, bucket: int, mine: _Bucket, now_ms: int) -> Iterator[Row]:
        idle, silent = mine.idleness.idle(now_ms), mine.idleness.newly_silent(now_ms)
        yield from self._close(bucket, mine, idle, BY_IDLENESS, silent)
        slots, untils = mine.idleness.overdue(now_ms)
        yield from self._close(bucket, mine, slots, BY_CLOCK, untils=untils)

    def _windows(self, bucket: int) -> OpenWindows:
        windows = self._states.of(bucket).events
        assert isinstance(windows, OpenWindows)
        return windows

    def _of(self, bucket: int, timers: TimerService) -> _Bucket:
        """The bucket's clock; the first time, with all keys that a restart has left."""
        mine = self._buckets.get(bucket)
        if mine is None:
            self._states.open_all(bucket)
            spec = self._spec
            now_ms, clocks = self._clock(), (spec.idle, spec.silent_after)
            idleness = Idleness(self._windows(bucket), *clocks, now_ms, spec.overdue)
            texts = {int(code): text.decode() for code, text in self._texts_state.items()}
            mine = self._buckets[bucket] = _Bucket(idleness, texts)
            self._tick(mine, timers)
            timers.register_event_time_timer(END_MS - 1)
        return mine

    def _tick(self, mine: _Bucket, timers: TimerService) -> None:
        mine.tick_ms = self._clock() + mine.idleness.tick_ms
        timers.register_processing_time_timer(mine.tick_ms)

    def _of_bucket(
        self, bucket: int, readings: Events | None
    ) -> tuple[Events | None, list[Reject]]:
        """Refuse readings whose Kafka key led them to another bucket than their key field."""
        if readings is None:
            return None, []
        strays = self._routing.strays(bucket, readings.texts[self._schema.key])
        if not strays.any():
            return readings, []
        key = self._schema.key
        rejects = [stray(readings, row, key) for row in np.flatnonzero(strays).tolist()]
        return readings.select(np.flatnonzero(~strays)), rejects

    def _observe(
        self,
        bucket: int,
        mine: _Bucket,
        readings: Events | None,
        strays: list[Reject],
        rejects: list[Reject],
    ) -> ClosedWindows:
        rejects = rejects + strays
        if readings is None or not len(readings):
            return ClosedWindows(None, self._dead_letters(rejects))
        self._learn_texts(mine, readings)
        state = self._states.of(bucket)
        rolled = self._rollup.observe(state, readings)
        keys = readings.texts[self._schema.key]
        kept = rolled.kept.tolist()
        self._states.add(bucket, [keys[row] for row in kept], rolled.entries)
        written_ms = int(readings.positions[:, KAFKA_TIME_MS].min())
        mine.idleness.heard(state.events.slots(keys), self._clock(), written_ms)
        return ClosedWindows(
            self._events(state.events, mine, rolled.closed, readings),
            self._dead_letters(rejects + self._rejects(readings, rolled)),
            self._duplicates(readings, rolled.duplicates),
        )

    def _learn_texts(self, mine: _Bucket, readings: Events) -> None:
        """Remember the texts of kept fields, which lie in the state as numbers."""
        for name in self._spec.keep:
            for text in set(readings.texts[name]):
                code = code_of(text)
                if code not in mine.texts:
                    mine.texts[code] = text
                    self._texts_state.put(str(code), text.encode())

    def _events(
        self, windows: Any, mine: _Bucket, closed: Closed, readings: Events | None = None
    ) -> Events | None:
        if not len(closed.slots):
            return None
        self._windows_counter.inc(len(closed.slots))
        events = self._rollup.events(closed, windows.names(closed.slots), mine.texts)
        if readings is not None:  # the window came when the reading did that closed it
            events.positions[:, 2] = readings.positions[closed.rows, 2]
        return events

    def _rejects(self, readings: Events, rolled: Rolled) -> list[Reject]:
        self._readings_counter.inc(len(rolled.kept))
        self._late_counter.inc(len(rolled.late))
        late = [refused(readings, row, "late", _LATE) for row in rolled.late]
        return late + [conflict(readings, row) for row in rolled.conflicts]

    def _dead_letters(self, rejects: list[Reject]) -> list[tuple[str, bytes]]:
        self._dead_letters_counter.inc(len(rejects))
        return [
            (f"{r.partition}-{r.offset}", dead_letter(self._topic, r, self._privacy))
            for r in rejects
        ]

    def _duplicates(self, readings: Events, rows: list[int]) -> list[tuple[str, bytes]]:
        self._duplicates_counter.inc(len(rows))
        keys = self._shown([readings.texts[self._schema.key][row] for row in rows])
        ids = [readings.texts[self._schema.arriving.id][row] for row in rows]
        if self._privacy is not None:
            ids = self._privacy.ids(ids)
        places = readings.positions[rows].tolist()
        return [
            (key, duplicate(self._topic, reading, place))
            for key, reading, place in zip(keys, ids, places, strict=True)
        ]

    def _shown(self, keys: list[str]) -> list[str]:
        """Keys as outputs show them."""
        return keys if self._privacy is None else self._privacy.keys(keys)

    def _close(
        self,
        bucket: int,
        mine: _Bucket,
        slots: Ints,
        reason: int,
        silent: Ints | None = None,
        untils: Ints | None = None,
    ) -> Iterator[Row]:
        """Close windows of some keys, see ``OpenWindows.close``, and tell of those gone silent."""
        windows = self._windows(bucket)
        silent = slots[:0] if silent is None else silent
        changed = np.union1d(slots, silent)
        if not len(changed):
            return
        closed = windows.close(slots, reason, untils)
        marks = windows.pack_marks(changed)
        self._states.write_marks(dict(zip(windows.names(changed), marks, strict=True)))
        if reason == BY_IDLENESS:
            self._idle_counter.inc(len(closed.slots))
        made = ClosedWindows(
            self._events(windows, mine, closed), silences=self._silences(windows, silent)
        )
        if not made.is_empty:
            yield Row(bucket, made)

    def _silences(self, windows: OpenWindows, slots: Ints) -> list[tuple[str, bytes]]:
        self._silent_counter.inc(len(slots))
        after_ms, now_ms = self._spec.silent_after or 0, self._clock()
        pairs = zip(self._shown(windows.names(slots)), windows.newest(slots).tolist(), strict=True)
        return [(key, silence(key, newest, after_ms, now_ms)) for key, newest in pairs]
