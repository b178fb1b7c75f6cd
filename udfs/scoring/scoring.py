"""How the last keyed stage scores: a Predict call per micro-batch.

It is a part of that stage's operator (thread mode), as ``embedded`` is, and no operator of its own:
a batch goes from its features to its score without being written and read again.
"""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from pyflink.common import Row, Types
from pyflink.datastream import RuntimeContext
from pyflink.datastream.state import MapStateDescriptor
from pyflink.datastream.timerservice import TimerService

from model_server.client import ClientOptions
from model_server.errors import PredictError
from udfs.alerting.feed import EpisodeFeed
from udfs.batches.batch import FeatureBatch
from udfs.batches.events import FloatArray
from udfs.batches.privacy import Privacy
from udfs.batches.records import RecordWriter, Verdict
from udfs.definition.enrichment import LookupSpec
from udfs.enrichment.lookup_metrics import LookupMetrics
from udfs.preparation.encoders import Matrix
from udfs.preparation.preparation import Preparation
from udfs.preparation.preparations import Answer, Preparations
from udfs.scoring.arms import Arm, Arms
from udfs.scoring.loop import CLOSE_S, open_lookups, run

Pair = list[bytes]
"""Key and value of a Kafka record; PyFlink wants a list for an array."""

PAIRS = Types.OBJECT_ARRAY(Types.OBJECT_ARRAY(Types.PRIMITIVE_ARRAY(Types.BYTE())))
"""Flink's type of a list of them."""


@dataclass(frozen=True, slots=True)
class Output:
    """How scored batches are written.

    Attributes:
        writer: Makes the records.
        preparation: From features to the model's columns, as in training.
        fallback_score: The score when the model cannot answer.
        explain: Whether alerts name the features that weigh most.
        privacy: What is hidden of the events; none if nothing is.
        episodes: What makes one alert of many scores; none: each score above is an alert.
    """

    writer: RecordWriter
    preparation: Preparation
    fallback_score: float
    explain: bool
    privacy: Privacy | None = None
    episodes: EpisodeFeed | None = None

    def model_input(self, batch: FeatureBatch) -> Matrix:
        """The batch as the model gets it: float32 (n, the model's columns)."""
        return self.preparation.transform(batch.features)

    def warm_up(self) -> None:
        """Compile the writing of records, or load it from Numba's cache."""
        columns = len(self.preparation.names)
        batch = FeatureBatch(
            keys=[""],
            ids=[""],
            raw=[b"{}"],
            positions=np.zeros((1, 3), np.int64),
            times=np.zeros(1, np.int64),
            entities={},
            values={},
            features=np.zeros((1, columns)),
            order=np.zeros((1, len(self.writer.stages)), np.int64),
            late=np.zeros(1, np.bool_),
            lookup_fallbacks=[""],
        )
        self.rows(batch, self.fallback(batch, "", "warm_up"), None)

    def fallback(
        self, batch: FeatureBatch, model_name: str, reason: str, arm: str | None = None
    ) -> Verdict:
        """The verdict when the model did not answer."""
        return Verdict(np.full(len(batch), self.fallback_score), model_name, None, reason, arm)

    def rows_to_explain(self, batch: FeatureBatch, verdict: Verdict) -> list[int]:
        """The alerts, if they are to name the features that weigh most."""
        return self._rows_above(batch, verdict) if self.explain else []

    def _rows_above(self, batch: FeatureBatch, verdict: Verdict) -> list[int]:
        if self.episodes is not None:
            return self.episodes.columns.rows_above(batch, verdict)
        return self.writer.alert_rows(verdict)

    def emit(
        self, batch: FeatureBatch, verdict: Verdict | None, contributions: FloatArray | None
    ) -> Iterator[Any]:
        """A row of each sink's records, and beside it what the episodes get; see ``rows``."""
        yield self.rows(batch, verdict, contributions)
        if self.episodes is not None and verdict is not None:
            reasons = {} if contributions is None else self._reasons(batch, verdict, contributions)
            yield from self.episodes.parts(batch, verdict, reasons)

    def rows(
        self, batch: FeatureBatch, verdict: Verdict | None, contributions: FloatArray | None
    ) -> Row:
        """The records of each sink: predictions, alerts, dead letters, duplicates, shadows.

        Args:
            batch: The scored batch.
            verdict: Its scores; none if it has no rows.
            contributions: float64 (alerts, features), or none.
        """
        predictions: list[Pair] = []
        batch = self._as_shown(batch)
        alerts = pairs(batch.silences)
        if verdict is not None:
            made = self.writer.predictions(batch, verdict, time.time_ns() // 1_000_000)
            predictions = pairs(zip(batch.keys, made, strict=True))
            if self.episodes is None:
                alerts += pairs(self._alerts(batch, verdict, made, contributions))
        return Row(predictions, alerts, pairs(batch.dead_letters), pairs(batch.duplicates), [])

    def shadow_rows(self, batch: FeatureBatch, verdict: Verdict) -> Row:
        """What a shadow said, as records of its own sink; key and value."""
        batch = self._as_shown(batch)
        made = self.writer.predictions(batch, verdict, time.time_ns() // 1_000_000)
        return Row([], [], [], [], pairs(zip(batch.keys, made, strict=True)))

    def _as_shown(self, batch: FeatureBatch) -> FeatureBatch:
        if self.privacy is None:
            return batch
        keys, ids = self.privacy.keys(batch.keys), self.privacy.ids(batch.ids)
        return replace(batch, keys=keys, ids=ids)

    def _event(self, raw: bytes) -> bytes:
        """A record as an alert shows it."""
        return (self.privacy.record(raw) or b"{}") if self.privacy else raw

    def _alerts(
        self,
        batch: FeatureBatch,
        verdict: Verdict,
        records: list[bytes],
        contributions: FloatArray | None,
    ) -> Iterator[tuple[str, bytes]]:
        known = {} if contributions is None else self._reasons(batch, verdict, contributions)
        for row in self.writer.alert_rows(verdict):
            reasons = known.get(row, [])
            event = self._event(batch.raw[row])
            yield batch.keys[row], self.writer.alert(records[row], event, reasons)

    def _reasons(
        self, batch: FeatureBatch, verdict: Verdict, contributions: FloatArray
    ) -> dict[int, list[dict[str, Any]]]:
        """The reasons of the alerts, by row."""
        rows = self._rows_above(batch, verdict)
        whys = zip(rows, contributions, strict=True)
        return {row: self.writer.reasons(batch.features[row], why) for row, why in whys}


def pairs(records: Iterable[tuple[str, bytes]]) -> list[Pair]:
    """Records as a sink's column takes them."""
    return [[key.encode(), value] for key, value in records]


class Outputs(Protocol):
    """How scored batches are written; see ``Output``."""

    @property
    def preparation(self) -> Preparation:
        """From features to the model's columns, as in training."""

    def warm_up(self) -> None:
        """Make the first batch as quick as the others."""

    def fallback(
        self, batch: FeatureBatch, model_name: str, reason: str, arm: str | None = None
    ) -> Verdict:
        """The verdict when the model did not answer."""

    def rows_to_explain(self, batch: FeatureBatch, verdict: Verdict) -> list[int]:
        """The rows whose score is to be explained."""

    def emit(
        self, batch: FeatureBatch, verdict: Verdict | None, contributions: FloatArray | None
    ) -> Iterator[Any]:
        """What the operator emits for a batch: the records of each sink, and what goes beside."""

    def shadow_rows(self, batch: FeatureBatch, verdict: Verdict) -> Row:
        """What a shadow said, as records of its own sink."""


class Scoring(Protocol):
    """What the last keyed stage does with its batches. Rows are those of ``Output.rows``."""

    def open(self, runtime_context: RuntimeContext) -> None:
        """Make ready, in the operator's own process."""

    def close(self) -> None:
        """The operator ends."""

    def take(self, bucket: int, batch: FeatureBatch, timers: TimerService) -> Iterator[Row]:
        """Score a batch, now or later; Flink's current key is the bucket."""

    def on_timer(self, bucket: int, timestamp_ms: int, timers: TimerService) -> Iterator[Row]:
        """A timer that ``take`` or ``on_timer`` set; Flink's current key is the bucket."""

    def queue(self, bucket: int) -> float:
        """How full the calls that a bucket may have open are, 0 to 1: at 1, ``take`` waits."""


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows of one batch that one side of a rollout answered; without a rollout, all of them."""

    batch: FeatureBatch
    verdict: Verdict
    contributions: FloatArray | None


@dataclass(frozen=True, slots=True)
class _Call:
    """A call in flight, and the numbers under which its batches lie in the state."""

    numbers: list[int]
    batch: FeatureBatch
    answer: Future[list[_Part]]


@dataclass(slots=True)
class _Bucket:
    """A bucket's calls in flight, and the batches that wait for the next one, by number."""

    calls: list[_Call] = field(default_factory=list)
    waiting: dict[int, FeatureBatch] = field(default_factory=dict)
    waiting_rows: int = 0
    next_number: int = 0
    timer_set: bool = False


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

    COPIES = 4
    """Calls that a shadow has open at most; what comes meanwhile is not copied."""

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

    def open(self, runtime_context: RuntimeContext) -> None:
        """Make the client; its channel opens with the first call."""
        self._buckets: dict[int, _Bucket] = {}
        self._lookups = open_lookups(self._declared_lookups)
        self._preparations = Preparations(self._output.preparation, self._version_dir)
        self._arms = Arms(self._options, self._rollout, known=self._preparations.of)
        self._following = run(self._arms.follow())
        self._copies: set[asyncio.Task[None]] = set()
        self._shadows: deque[_Part] = deque()
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
        """Close the connection and give up the calls that are open."""
        self._following.cancel()
        for bucket in self._buckets.values():
            for call in bucket.calls:
                call.answer.cancel()
        for closing in (self._arms.close(), self._lookups.close()):
            with contextlib.suppress(TimeoutError):
                run(closing).result(CLOSE_S)

    def take(self, bucket: int, batch: FeatureBatch, timers: TimerService) -> Iterator[Row]:
        """Ask for a batch's scores, and give what has been answered meanwhile."""
        mine = self._of(bucket)
        for part in batch.chunks(self._max_rows):
            if not len(part):
                yield from self._output.emit(part, None, None)
                continue
            self._state.put(mine.next_number, pickle.dumps(part, pickle.HIGHEST_PROTOCOL))
            self._add(mine, mine.next_number, part)
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
                self._add(mine, number, pickle.loads(packed))  # noqa: S301 (own state)
        return mine

    def _add(self, mine: _Bucket, number: int, batch: FeatureBatch) -> None:
        mine.waiting[number] = batch
        mine.waiting_rows += len(batch)
        mine.next_number = number + 1

    def _ask(self, mine: _Bucket) -> None:
        """Open a call for the batches that have waited longest, as many as fit."""
        numbers: list[int] = []
        rows = 0
        for number, batch in mine.waiting.items():
            if numbers and rows + len(batch) > self._max_rows:
                break
            numbers.append(number)
            rows += len(batch)
        batch = FeatureBatch.merged([mine.waiting.pop(number) for number in numbers])
        mine.waiting_rows -= rows
        mine.calls.append(_Call(numbers, batch, run(self._answer(batch))))

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
        self._lookup_metrics.tell(self._lookups.counts)
        if mine.calls and not mine.timer_set:
            mine.timer_set = True
            timers.register_processing_time_timer(time.time_ns() // 1_000_000 + self.POLL_MS)
            timers.register_event_time_timer(self.END_MS - 1)

    def _tell_breaker_state(self) -> None:
        state = self._arms.breaker_state
        if state != self._breaker_state:
            self._breaker_metric.inc(state - self._breaker_state)
            self._breaker_state = state

    def _rest(self, mine: _Bucket) -> Iterator[Row]:
        """Wait until nothing is left."""
        while mine.waiting or mine.calls:
            while mine.waiting and len(mine.calls) < self._calls_in_flight:
                self._ask(mine)
            yield from self._next_answered(mine)
        self._lookup_metrics.tell(self._lookups.counts)
        run(self._copies_done()).result()
        yield from self._shadow_rows()

    def _shadow_rows(self) -> Iterator[Row]:
        while self._shadows:
            part = self._shadows.popleft()
            yield self._output.shadow_rows(part.batch, part.verdict)

    async def _answer(self, batch: FeatureBatch) -> list[_Part]:
        begun_s = time.monotonic()
        batch = await self._lookups.enrich(batch)
        self._copy(batch)
        parts = self._arms.parts(batch)
        return await asyncio.gather(*(self._answer_of(arm, part, begun_s) for arm, part in parts))

    async def _answer_of(self, arm: Arm, batch: FeatureBatch, begun_s: float) -> _Part:
        verdict, answer = await self._verdict(arm, batch, _left_ms(arm, begun_s))
        left_ms = _left_ms(arm, begun_s)
        rows = self._output.rows_to_explain(batch, verdict)
        return _Part(batch, verdict, await self._explain(arm, answer, rows, left_ms))

    async def _verdict(
        self, arm: Arm, batch: FeatureBatch, deadline_ms: float
    ) -> tuple[Verdict, Answer | None]:
        try:
            answer = await self._preparations.predict(
                partial(self._arms.predict, arm, deadline_ms=deadline_ms),
                replace(arm.client.options, deadline_ms=deadline_ms),
                batch.features,
            )
        except PredictError as exc:
            name = self._options.model_name
            return self._output.fallback(batch, name, exc.reason, arm.name), None
        scores = answer.scores
        verdict = Verdict(scores.values, scores.model_name, scores.model_version, arm=arm.name)
        return verdict, answer

    def _copy(self, batch: FeatureBatch) -> None:
        """Send the shadow its copies, if there is one and it keeps up."""
        at_work = len(self._copies)
        found = self._arms.copies(batch, at_work) if at_work < self.COPIES else None
        if found is not None:
            task = asyncio.get_running_loop().create_task(self._answer_of_shadow(*found))
            self._copies.add(task)
            task.add_done_callback(self._copies.discard)

    async def _answer_of_shadow(self, arm: Arm, batch: FeatureBatch) -> None:
        verdict, _ = await self._verdict(arm, batch, arm.deadline_ms)
        self._shadows.append(_Part(batch, verdict, None))

    async def _copies_done(self) -> None:
        await asyncio.gather(*self._copies, return_exceptions=True)

    async def _explain(
        self, arm: Arm, answer: Answer | None, rows: list[int], left_ms: float
    ) -> FloatArray | None:
        """Contributions of the alerts, if they come within what the prediction left of its time."""
        if answer is None or not rows:
            return None
        try:
            matrix = answer.matrix[rows]
            contributions = await arm.client.explain(matrix, deadline_ms=left_ms)
        except PredictError:
            return None  # an alert without reasons is worth more than a late one
        return answer.preparation.by_feature(contributions)


def _left_ms(arm: Arm, begun_s: float) -> float:
    """What is left of the arm's deadline, at least a millisecond."""
    return max(1.0, arm.deadline_ms - 1_000.0 * (time.monotonic() - begun_s))
