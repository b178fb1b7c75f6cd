"""What the last keyed stage asks of its scoring, and a scoring of what writes its records."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from pyflink.common import Row
from pyflink.datastream import RuntimeContext
from pyflink.datastream.timerservice import TimerService

from udfs.batches.batch import FeatureBatch
from udfs.batches.events import FloatArray
from udfs.batches.records import Verdict
from udfs.preparation.preparation import Preparation


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
