"""Scoring whose answers can be held back, and that fails once when told to.

It is told by files, so that it may be in another process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pyflink.common import Row
from pyflink.datastream import RuntimeContext
from pyflink.datastream.timerservice import TimerService

from udfs.batches.batch import FeatureBatch
from udfs.scoring.calls import Answered
from udfs.scoring.served import ServedScoring

Answer = Callable[[FeatureBatch], Awaitable[list[Answered]]]
_POLL_S = 0.005


class Switch:
    """What a ``HeldScoring`` is told.

    Args:
        folder: For the files that say it.
    """

    def __init__(self, folder: Path) -> None:
        self._hold = folder / "hold"
        self._fail = folder / "fail"

    def hold(self) -> None:
        """From now on batches are asked for, but the server is not called."""
        self._hold.touch()

    def let_go(self) -> None:
        """Call the server for all that was held back."""
        self._hold.unlink(missing_ok=True)

    def fail(self) -> None:
        """Fail with the next batch, its call and those before it being held back."""
        self.hold()
        self._fail.touch()

    @property
    def is_held(self) -> bool:
        return self._hold.exists()

    def fails_now(self) -> bool:
        """Whether to fail; says so once, and lets go."""
        if not self._fail.exists():
            return False
        self._fail.unlink()
        self.let_go()
        return True


class HeldScoring(ServedScoring):
    """The job's own, but for what the switch says."""

    def __init__(self, switch: Switch, *settings: Any) -> None:
        super().__init__(*settings)
        self._switch = switch

    def open(self, runtime_context: RuntimeContext) -> None:
        """See the base class."""
        super().open(runtime_context)
        self._calls.answer = partial(self._held, self._calls.answer)  # type: ignore[method-assign]

    def take(self, bucket: int, batch: FeatureBatch, timers: TimerService) -> Iterator[Row]:
        """See the base class."""
        yield from super().take(bucket, batch, timers)
        if self._switch.fails_now():
            raise RuntimeError("told to fail")

    async def _held(self, answer: Answer, batch: FeatureBatch) -> list[Answered]:
        while self._switch.is_held:
            await asyncio.sleep(_POLL_S)
        return await answer(batch)
