"""The clients of a job's model: the stable one, and those of a rollout while there is one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from model_server.breaker import BreakerState
from model_server.client import ClientOptions, PredictClient, Scores
from model_server.errors import PredictError, RepositoryError
from udfs.batches.batch import FeatureBatch
from udfs.scoring.rollout import Address, Guard, Rollout, RolloutError

__all__ = ["Arm", "Arms"]

logger = logging.getLogger(__name__)

POLL_S = 1.0

Name = Literal["stable", "canary", "shadow"]


@dataclass(frozen=True)
class Arm:
    """One client, and whose calls it makes.

    Attributes:
        name: What its predictions are marked with; none while there is no rollout.
        client: Makes the calls.
        deadline_ms: Of a call.
    """

    name: Name | None
    client: PredictClient
    deadline_ms: float


@dataclass(frozen=True)
class _Active:
    """What is in force."""

    rollout: Rollout | None
    stable: Arm
    canary: Arm | None = None
    shadow: Arm | None = None
    guard: Guard | None = None


class Arms:
    """Follows a rollout file. Belongs to one event loop, but for ``breaker_state`` and ``open``."""

    def __init__(
        self,
        options: ClientOptions,
        path: Path | None,
        *,
        known: Callable[[int], object] = lambda version: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make the stable client, and read the file if there is one.

        Args:
            options: The stable client's.
            path: The rollout file; none for no rollouts.
            known: Raises ``RepositoryError`` for a version that the job cannot ask; a rollout of
                such a one is ignored.
            clock: Monotonic seconds.
        """
        self._known = known
        self._options = options
        self._path = path
        self._clock = clock
        self._active = _Active(None, Arm(None, PredictClient(options), options.deadline_ms))
        self._retired: list[PredictClient] = []
        self._seen: object = None
        self._look()

    @property
    def breaker_state(self) -> int:
        """State of the stable client's circuit breaker; any thread may read it."""
        return int(self._active.stable.client.breaker_state)

    async def follow(self) -> None:
        """Look at the file each second until cancelled."""
        while self._path is not None:
            await asyncio.sleep(POLL_S)
            self._look()
            for client in self._retired:
                await client.close()
            self._retired.clear()

    async def close(self) -> None:
        """Close every client."""
        active = self._active
        arms = (active.stable, active.canary, active.shadow)
        for client in (*self._retired, *(arm.client for arm in arms if arm)):
            await client.close()

    def parts(self, batch: FeatureBatch) -> list[tuple[Arm, FeatureBatch]]:
        """Cut a batch by whose keys its rows have; refused records stay with the first part."""
        active = self._active
        if active.canary is None or active.rollout is None:
            return [(active.stable, batch)]
        chosen = active.rollout.in_canary(batch.keys).tolist()
        arms = (active.stable, active.canary)
        return [(arms[group], part) for group, part in batch.split(chosen).items()]

    def copies(self, batch: FeatureBatch, at_work: int) -> tuple[Arm, FeatureBatch] | None:
        """The shadow and the rows it gets copies of, if any.

        One that does not answer gets no copies while its circuit breaker is open, and one at a time
        until it is closed: what it cannot answer would only be written down as that, for nothing.

        Args:
            batch: What is scored.
            at_work: Copies that are not answered yet.
        """
        active = self._active
        if active.shadow is None or active.rollout is None:
            return None
        state = active.shadow.client.breaker_state
        if state is BreakerState.OPEN or (state is BreakerState.HALF_OPEN and at_work):
            return None
        rows = np.flatnonzero(active.rollout.in_shadow(batch.keys))
        return (active.shadow, batch.select(rows)) if len(rows) else None

    async def predict(
        self, arm: Arm, matrix: npt.NDArray[np.float32], deadline_ms: float | None = None
    ) -> Scores:
        """Score rows by an arm, and judge the canary by how that went.

        Args:
            arm: Whose client asks.
            matrix: float32 (n, columns).
            deadline_ms: What is left of the arm's deadline; all of it when None.

        Raises:
            PredictError: One of its subclasses.
        """
        active, begun_s = self._active, self._clock()
        try:
            scores = await arm.client.predict(matrix, deadline_ms=deadline_ms)
        except PredictError:
            self._judge(active, arm, len(matrix), None, begun_s)
            raise
        self._judge(active, arm, len(matrix), scores, begun_s)
        return scores

    def _judge(
        self, active: _Active, arm: Arm, rows: int, scores: Scores | None, begun_s: float
    ) -> None:
        """Tell the guard of a call, and end the canary if it says so."""
        if active.guard is None or arm.name not in ("stable", "canary"):
            return
        took_ms = (self._clock() - begun_s) * 1_000.0
        values = None if scores is None else scores.values
        reason = active.guard.observe(arm.name, rows, values, took_ms)
        if reason is not None and self._active is active:
            self._abort(reason)

    def _look(self) -> None:
        """Read the file if it has changed; a wrong one changes nothing."""
        if self._path is None:
            return
        seen: object = None
        with contextlib.suppress(OSError):
            stat = self._path.stat()
            seen = stat.st_mtime_ns, stat.st_size, stat.st_ino
        if seen == self._seen:
            return
        self._seen = seen
        try:
            rollout = Rollout.read(self._path)
            for address in (rollout.canary, rollout.shadow) if rollout is not None else ():
                if address is not None and address.version is not None:
                    self._known(address.version)
        except (RolloutError, RepositoryError) as exc:
            logger.warning("rollout ignored: %s", exc)
            return
        if rollout != self._active.rollout:
            self._follow(rollout)

    def _follow(self, rollout: Rollout | None) -> None:
        """Put a rollout into force; clients that stay the same go on."""
        old = self._active
        state = None if rollout is None else rollout.state
        canary = rollout.canary if rollout is not None and state == "running" else None
        shadow = None if rollout is None else rollout.shadow
        promoted = rollout.canary if rollout is not None and state == "promoted" else None
        running = canary is not None
        stable = self._arm("stable" if running else None, promoted, old.stable)
        same = rollout is not None and old.rollout is not None and rollout.id == old.rollout.id
        self._active = _Active(
            rollout,
            stable,
            None if canary is None else self._arm("canary", canary, old.canary),
            None if shadow is None else self._arm("shadow", shadow, old.shadow),
            (old.guard if same and old.guard else Guard(rollout.limits))
            if rollout is not None and running
            else None,
        )
        kept = {a.client for a in (stable, self._active.canary, self._active.shadow) if a}
        for arm in (old.stable, old.canary, old.shadow):
            if arm is not None and arm.client not in kept:
                self._retired.append(arm.client)
        logger.info("rollout in force: %s", rollout)

    def _arm(self, name: Name | None, address: Address | None, old: Arm | None) -> Arm:
        options = self._options
        if address is not None:
            server = address.server or options.target
            options = replace(options, target=server, model_version=address.version)
        if name == "shadow":  # nobody waits for it: nothing is worth a second call
            options = replace(options, max_attempts=1, hedge_ms=0.0)
        if old is not None and old.client.options == options:
            return replace(old, name=name)
        return Arm(name, PredictClient(options), options.deadline_ms)

    def _abort(self, reason: str) -> None:
        """End the canary here at once, and everywhere if the file can be written."""
        rollout = self._active.rollout
        assert rollout is not None and self._path is not None
        ended = rollout.aborted(reason)
        logger.warning("rollout %s aborted: %s", rollout.id, reason)
        self._follow(ended)
        try:
            ended.write(self._path)
        except RolloutError as exc:
            logger.warning("the rollout is aborted by this operator only: %s", exc)
