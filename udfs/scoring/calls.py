"""The calls for a batch: look-ups, each row's arm of a rollout, reasons, and a shadow's copies."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from model_server.client import ClientOptions
from model_server.errors import PredictError
from udfs.batches.batch import FeatureBatch
from udfs.batches.events import FloatArray
from udfs.batches.records import Verdict
from udfs.definition.enrichment import LookupSpec
from udfs.enrichment.lookups import LookupCounts
from udfs.preparation.preparations import Answer, Preparations
from udfs.scoring.arms import Arm, Arms
from udfs.scoring.base import Outputs
from udfs.scoring.loop import open_lookups, run, wait_closed

__all__ = ["Answered", "ModelCalls"]


@dataclass(frozen=True, slots=True)
class Answered:
    """Rows of one batch that one side of a rollout answered; without a rollout, all of them."""

    batch: FeatureBatch
    verdict: Verdict
    contributions: FloatArray | None


class ModelCalls:
    """Gets a batch its scores, in the event loop beside the operator.

    A call that fails, or is not answered within the deadline, gives the fallback score with its
    reason: the job goes on.

    Args:
        options: The client's; its channel opens with the first call.
        output: Gives the fallback, and the rows to explain.
        rollout: The file that sends a share of the keys elsewhere, see ``rollout``; or none.
        version_dir: Where the output's preparation is from; those of other versions lie beside it.
        lookups: Stores that are asked for features first, within the client's deadline.
    """

    COPIES = 4
    """Calls that a shadow has open at most; what comes meanwhile is not copied."""

    def __init__(
        self,
        options: ClientOptions,
        output: Outputs,
        rollout: Path | None,
        version_dir: Path | None,
        lookups: tuple[LookupSpec, ...],
    ) -> None:
        self._model_name = options.model_name
        self._output = output
        self._lookups = open_lookups(lookups)
        self._preparations = Preparations(output.preparation, version_dir)
        self._arms = Arms(options, rollout, known=self._preparations.of)
        self._following = run(self._arms.follow())
        self._copies: set[asyncio.Task[None]] = set()
        self._shadows: deque[Answered] = deque()

    def close(self) -> None:
        """Close the connections."""
        self._following.cancel()
        wait_closed(self._arms.close(), self._lookups.close())

    @property
    def breaker_state(self) -> int:
        """State of the stable arm's circuit breaker."""
        return self._arms.breaker_state

    @property
    def lookup_counts(self) -> list[LookupCounts]:
        """What the look-ups have done, in their order."""
        return self._lookups.counts

    async def answer(self, batch: FeatureBatch) -> list[Answered]:
        """Scores for a batch, and reasons for its alerts: a part for each arm."""
        begun_s = time.monotonic()
        batch = await self._lookups.enrich(batch)
        self._copy(batch)
        parts = self._arms.parts(batch)
        return await asyncio.gather(*(self._answer_of(arm, part, begun_s) for arm, part in parts))

    def shadow_answers(self) -> Iterator[Answered]:
        """What a shadow has answered since the last look."""
        while self._shadows:
            yield self._shadows.popleft()

    def wait_for_shadow(self) -> None:
        """Wait until the shadow's copies are answered."""
        run(self._copies_done()).result()

    async def _copies_done(self) -> None:
        await asyncio.gather(*self._copies, return_exceptions=True)

    async def _answer_of(self, arm: Arm, batch: FeatureBatch, begun_s: float) -> Answered:
        verdict, answer = await self._verdict(arm, batch, _left_ms(arm, begun_s))
        left_ms = _left_ms(arm, begun_s)
        rows = self._output.rows_to_explain(batch, verdict)
        return Answered(batch, verdict, await self._explain(arm, answer, rows, left_ms))

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
            verdict = self._output.fallback(batch, self._model_name, exc.reason, arm.name)
            return verdict, None
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
        self._shadows.append(Answered(batch, verdict, None))

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
