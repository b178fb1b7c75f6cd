"""How the last keyed stage scores by a model server: a Predict call per micro-batch.

It is a part of that stage's operator (thread mode), as ``embedded`` is, and no operator of its own:
a batch goes from its features to its score without being written and read again.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from pyflink.common import Row, Types
from pyflink.datastream import RuntimeContext
from pyflink.datastream.state import MapStateDescriptor
from pyflink.datastream.timerservice import TimerService

from model_server.client import ClientOptions
from udfs.batches.batch import FeatureBatch
from udfs.definition.enrichment import LookupSpec
from udfs.enrichment.lookup_metrics import LookupMetrics
from udfs.scoring.base import Outputs
from udfs.scoring.calls import Answered, ModelCalls
from udfs.scoring.loop import run


@dataclass(frozen=True, slots=True)
class _Call:
    """A call in flight, and the numbers under which its batches lie in the state."""

    numbers: list[int]
    answer: Future[list[Answered]]


@dataclass(slots=True)
class _Bucket:
    """A bucket's calls in flight, and the batches that wait for the next one, by number."""

    calls: list[_Call] = field(default_factory=list)
    waiting: dict[int, FeatureBatch] = field(default_factory=dict)
    waiting_rows: int = 0
    next_number: int = 0
    timer_set: bool = False

    def add(self, number: int, batch: FeatureBatch) -> None:
        """A batch that waits for a call."""
        self.waiting[number] = batch
        self.waiting_rows += len(batch)
        self.next_number = number + 1

    def pop_longest_waiting(self, max_rows: int) -> tuple[list[int], FeatureBatch]:
        """The batches that have waited longest, as many as fit in a call, and their numbers."""
        numbers: list[int] = []
        rows = 0
        for number, batch in self.waiting.items():
            if numbers and rows + len(batch) > max_rows:
                break
            numbers.append(number)
            rows += len(batch)
        self.waiting_rows -= rows
        return numbers, FeatureBatch.merged([self.waiting.pop(number) for number in numbers])


class ServedScoring:
    """Asks a model server over gRPC, several calls in flight, without waiting for one.

    PyFlink's own AsyncFunction exists in process mode only: every batch would be written to a
    worker process and back, and wait for the bundle it belongs to. Here the calls run in an event
    loop beside the operator, which looks for answers with each batch and, by a timer, every
    ``POLL_MS`` while any is open.

    While a call is open, what comes waits for its answer or for enough rows to fill the next call:
    a server that is idle is asked at once, and one that is busy gets fewer, larger calls.

    A batch lies in Flink's keyed state until its records are out. So a checkpoint includes it, and
    after a restart it is asked for again.

    A call that fails, or is not answered within the deadline, gives the fallback score with its
    reason: the job goes on.

    Args:
        options: The client's.
        output: Writes what was scored.
        max_rows: Rows of one Predict call at most.
        calls_in_flight: Open calls of a bucket at most; with as many, and enough rows for another,
            the operator waits for an answer, which holds back the source.
        rollout: The file that sends a share of the keys elsewhere, see ``rollout``; or none.
        version_dir: Where the output's preparation is from; those of other versions lie beside it.
        lookups: Stores that are asked for features first, within the client's deadline.
    """

    POLL_MS = 2
    END_MS = 2**63 - 1
    """The watermark of an input that has ended: Flink drops the timers of processing time then."""

    def __init__(
        self,
        options: ClientOptions,
        output: Outputs,
        max_rows: int,
        calls_in_flight: int,
        rollout: Path | None = None,
        version_dir: Path | None = None,
        lookups: tuple[LookupSpec, ...] = (),
    ) -> None:
        self._options = options
        self._output = output
        self._max_rows = max_rows
        self._calls_in_flight = calls_in_flight
        self._rollout = rollout
        self._version_dir = version_dir
        self._declared_lookups = lookups
        self._opened = ExitStack()

    def open(self, runtime_context: RuntimeContext) -> None:
        """Make the client; its channel opens with the first call."""
        self._opened = ExitStack()
        self._buckets: dict[int, _Bucket] = {}
        self._calls = ModelCalls(
            self._options, self._output, self._rollout, self._version_dir, self._declared_lookups
        )
        self._opened.callback(self._calls.close)
        self._opened.callback(self._give_up)
        self._output.warm_up()
        descriptor = MapStateDescriptor("in-flight", Types.LONG(), Types.PICKLED_BYTE_ARRAY())
        self._state = runtime_context.get_map_state(descriptor)
        metrics = runtime_context.get_metrics_group()
        self._lookup_metrics = LookupMetrics(self._declared_lookups, metrics)
        self._fallbacks = metrics.counter("fallbacks")
        # Not a gauge: in thread mode Flink would call a Python object that PyFlink has let go of,
        # and the TaskManager would die of it (SIGSEGV).
        self._breaker_metric = metrics.counter("breaker_state")
        self._breaker_state = 0

    def close(self) -> None:
        """Give up the calls that are open, and close the connections."""
        self._opened.close()

    def _give_up(self) -> None:
        for bucket in self._buckets.values():
            for call in bucket.calls:
                call.answer.cancel()

    def take(self, bucket: int, batch: FeatureBatch, timers: TimerService) -> Iterator[Row]:
        """Ask for a batch's scores, and give what has been answered meanwhile."""
        mine = self._of(bucket)
        for part in batch.chunks(self._max_rows):
            if not len(part):
                yield from self._output.emit(part, None, None)
                continue
            self._state.put(mine.next_number, pickle.dumps(part, pickle.HIGHEST_PROTOCOL))
            mine.add(mine.next_number, part)
            while mine.waiting_rows >= self._max_rows:
                if len(mine.calls) < self._calls_in_flight:
                    self._ask(mine)
                else:
                    yield from self._next_answered(mine)
        if timers.current_watermark() == self.END_MS:
            yield from self._rest(mine)
        yield from self._proceed(mine, timers)

    def on_timer(self, bucket: int, timestamp_ms: int, timers: TimerService) -> Iterator[Row]:
        """Give what has been answered; at the input's end, wait for the rest."""
        mine = self._of(bucket)
        if timestamp_ms == self.END_MS - 1:
            yield from self._rest(mine)
            return
        mine.timer_set = False
        yield from self._proceed(mine, timers)

    def queue(self, bucket: int) -> float:
        """Open calls, and the part of a next one that waits."""
        mine = self._of(bucket)
        used = len(mine.calls) + mine.waiting_rows / self._max_rows
        return min(1.0, used / (self._calls_in_flight + 1))

    def _of(self, bucket: int) -> _Bucket:
        """The bucket's batches; the first time, those that a restart has left without answer."""
        mine = self._buckets.get(bucket)
        if mine is None:
            mine = self._buckets[bucket] = _Bucket()
            for number, packed in sorted(self._state.items()):
                mine.add(number, pickle.loads(packed))  # noqa: S301 (own state)
        return mine

    def _ask(self, mine: _Bucket) -> None:
        numbers, batch = mine.pop_longest_waiting(self._max_rows)
        mine.calls.append(_Call(numbers, run(self._calls.answer(batch))))

    def _next_answered(self, mine: _Bucket) -> Iterator[Row]:
        """Wait until a call is done; the records of those that are."""
        wait([call.answer for call in mine.calls], return_when=FIRST_COMPLETED)
        yield from self._answered(mine)

    def _answered(self, mine: _Bucket) -> Iterator[Row]:
        """The records of the calls that are done, in the order of asking."""
        for call in [call for call in mine.calls if call.answer.done()]:
            for part in call.answer.result():
                if part.verdict.fallback_reason is not None:
                    self._fallbacks.inc(len(part.batch))
                yield from self._output.emit(part.batch, part.verdict, part.contributions)
            mine.calls.remove(call)
            for number in call.numbers:
                self._state.remove(number)

    def _proceed(self, mine: _Bucket, timers: TimerService) -> Iterator[Row]:
        """Give what has been answered, ask what waits if no call is open, and look again later.

        A shadow's answers go along; no timer waits for them, so that it costs the others nothing.
        """
        yield from self._answered(mine)
        yield from self._shadow_rows()
        if mine.waiting and not mine.calls:
            self._ask(mine)
        self._tell_breaker_state()
        self._lookup_metrics.tell(self._calls.lookup_counts)
        if mine.calls and not mine.timer_set:
            mine.timer_set = True
            timers.register_processing_time_timer(time.time_ns() // 1_000_000 + self.POLL_MS)
            timers.register_event_time_timer(self.END_MS - 1)

    def _tell_breaker_state(self) -> None:
        state = self._calls.breaker_state
        if state != self._breaker_state:
            self._breaker_metric.inc(state - self._breaker_state)
            self._breaker_state = state

    def _rest(self, mine: _Bucket) -> Iterator[Row]:
        """Wait until nothing is left."""
        while mine.waiting or mine.calls:
            while mine.waiting and len(mine.calls) < self._calls_in_flight:
                self._ask(mine)
            yield from self._next_answered(mine)
        self._lookup_metrics.tell(self._calls.lookup_counts)
        self._calls.wait_for_shadow()
        yield from self._shadow_rows()

    def _shadow_rows(self) -> Iterator[Row]:
        for part in self._calls.shadow_answers():
            yield self._output.shadow_rows(part.batch, part.verdict)
