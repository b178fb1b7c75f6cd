"""Shedding as a part of a Flink operator: its side output and its metrics."""

from __future__ import annotations

from pyflink.common import Row, Types
from pyflink.datastream import OutputTag, RuntimeContext
from pyflink.metrics import Counter

from udfs.batches.batch import FeatureBatch
from udfs.batches.events import IntArray
from udfs.definition.overload import LagLimits, OverloadSpec
from udfs.definition.schema import Schema
from udfs.overload.board import board_of
from udfs.overload.shedding import Shed, Shedding, monotonic_ms, waited_ms, waits_since, wall_ms
from udfs.scoring.pairs import PAIRS, pairs

SHED = OutputTag("shed", Types.ROW_NAMED(["shed"], [PAIRS]))
"""Side output of what sheds: a row of its topic's records."""

ShedRow = tuple[OutputTag, Row]


class Valve:
    """Sheds for one operator, and counts.

    Args:
        spec: What the user wants.
        schema: The job's.
        topic: The events topic.
        job: The job's name.
        runtime_context: The operator's.
    """

    def __init__(
        self,
        spec: OverloadSpec,
        schema: Schema,
        topic: str,
        job: str,
        runtime_context: RuntimeContext,
    ) -> None:
        self.shedding = Shedding(spec, schema, topic)
        self._board = board_of(job)
        metrics = runtime_context.get_metrics_group()
        self._shed = metrics.counter("shed")
        self._reasons = {"lag": metrics.counter("shed_lag"), "queue": metrics.counter("shed_queue")}
        # Counters that go up and down: a gauge that Python gives makes a TaskManager die.
        self._shedding, self._lag = metrics.counter("shedding"), metrics.counter("lag_ms")
        self._told = {self._shedding: 0, self._lag: 0}

    def of_records(
        self, raw: list[bytes], positions: IntArray, queue: float
    ) -> tuple[list[bytes], IntArray, list[ShedRow]]:
        """The records that go on, their positions, and what to give away."""
        lag_ms, later_queue = self._board.worst(monotonic_ms())
        shed = self.shedding.of_records(raw, positions, max(queue, later_queue), lag_ms)
        gone = self._told_of(shed)
        if shed is None:
            return raw, positions, gone
        return [raw[row] for row in shed.kept.tolist()], positions[shed.kept], gone

    def of_batch(self, batch: FeatureBatch, queue: float) -> tuple[FeatureBatch, list[ShedRow]]:
        """What goes on of a batch, and what to give away."""
        batch, shed = self.shedding.of_batch(batch, queue)
        return batch, self._told_of(shed)

    def _told_of(self, shed: Shed | None) -> list[ShedRow]:
        self._tell(self._shedding, int(self.shedding.controller.sheds))
        self._tell(self._lag, self.shedding.lag_ms)
        if shed is None:
            return []
        self._shed.inc(len(shed.records))
        self._reasons[shed.reason].inc(len(shed.records))
        return [(SHED, Row(pairs(shed.records)))]

    def _tell(self, gauge: Counter, value: int) -> None:
        if value != self._told[gauge]:
            gauge.inc(value - self._told[gauge])
            self._told[gauge] = value


class Teller:
    """Tells the operator that sheds how its events fare later on.

    Args:
        limits: By which clock events wait.
        job: The job's name.
    """

    def __init__(self, limits: LagLimits, job: str) -> None:
        self._limits = limits
        self._board = board_of(job)

    def tell(self, batch: FeatureBatch, queue: float) -> None:
        """A batch is about to be scored."""
        if len(batch):
            lag_ms = waited_ms(waits_since(batch, self._limits), wall_ms())
            self._board.tell(id(self), monotonic_ms(), lag_ms, queue)
