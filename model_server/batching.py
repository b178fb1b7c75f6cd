"""Calls of several clients as one call of the model.

A call waits at most ``max_delay_us`` for others, and while a batch of the same signature is at
work; what has gathered meanwhile goes next, up to ``max_rows``. So at a delay of 0 a model that
keeps up is called for each request alone, and one that does not is called for many at once.

A caller never harms another: one that is gone or out of time is left out of the batch, and if the
model refuses a batch, each of its requests is tried alone.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from model_server.backends.base import Arrays, Signature
from model_server.errors import DeadlineExceeded, InvalidRows, ModelError

__all__ = ["Batcher", "BatchingOptions", "can_batch"]

Run = Callable[[Arrays], Awaitable[Arrays]]


@dataclass(frozen=True)
class BatchingOptions:
    """How calls are put together.

    Attributes:
        max_rows: Most rows of a batch; 1 for no batching. A request of more rows goes alone.
        max_delay_us: Longest that a call waits for others, in microseconds.

    Raises:
        ValueError: A setting is out of range.
    """

    max_rows: int = 1
    max_delay_us: int = 0

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        if self.max_rows < 1:
            raise ValueError(f"max_rows must be at least 1, is {self.max_rows}")
        if self.max_delay_us < 0:
            raise ValueError(f"max_delay_us must be at least 0, is {self.max_delay_us}")


def can_batch(signature: Signature) -> bool:
    """Whether every tensor of a signature has a row per row of the others."""
    return all(spec.shape and spec.shape[0] is None for spec in signature.inputs) and all(
        spec.shape is None or (spec.shape and spec.shape[0] is None) for spec in signature.outputs
    )


@dataclass
class _Waiting:
    """A call that waits for its batch."""

    inputs: Arrays
    rows: int
    deadline_s: float
    answer: asyncio.Future[Arrays] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Batcher:
    """Batches the calls of one signature with one set of outputs. One event loop owns it."""

    def __init__(self, run: Run, options: BatchingOptions, *, at_once: int = 1) -> None:
        """Call ``run`` with batches, at most ``at_once`` of them at a time."""
        self._run = run
        self._options = options
        self._at_once = at_once
        self._queue: deque[_Waiting] = deque()
        self._queued_rows = 0
        self._workers: set[asyncio.Task[None]] = set()
        self._full = asyncio.Event()

    @property
    def waiting(self) -> int:
        """Calls that no batch has taken yet."""
        return len(self._queue)

    async def call(self, inputs: Arrays, rows: int, deadline_s: float) -> Arrays:
        """Return the model's outputs for these inputs.

        Args:
            inputs: Tensors of ``rows`` rows each.
            rows: At least 1.
            deadline_s: The event loop's time at which the caller does not want it any more.

        Raises:
            DeadlineExceeded: The caller's time ran out before the model was asked.
            InvalidRows: The values are none that the model takes.
        """
        waiting = _Waiting(inputs, rows, deadline_s)
        self._queue.append(waiting)
        self._queued_rows += rows
        if self._queued_rows >= self._options.max_rows:
            self._full.set()
        if len(self._workers) < self._at_once:
            worker = asyncio.create_task(self._work())
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)
        return await waiting.answer

    async def _work(self) -> None:
        while self._queue:
            await self._gather()
            for batch in self._groups():
                await self._answer(batch)

    async def _gather(self) -> None:
        """Wait for others, unless the batch is full."""
        if not self._options.max_delay_us or self._full.is_set():
            return
        try:
            async with asyncio.timeout(self._options.max_delay_us / 1e6):
                await self._full.wait()
        except TimeoutError:
            pass

    def _groups(self) -> Iterator[list[_Waiting]]:
        """Take what is queued for one batch, by what can stand in one array."""
        self._full.clear()
        now_s = asyncio.get_running_loop().time()
        groups: dict[object, list[_Waiting]] = {}
        rows = 0
        while self._queue and (not rows or rows + self._queue[0].rows <= self._options.max_rows):
            waiting = self._queue.popleft()
            self._queued_rows -= waiting.rows
            if waiting.answer.done():  # the caller is gone
                continue
            if waiting.deadline_s <= now_s:
                waiting.answer.set_exception(DeadlineExceeded("the deadline passed in the queue"))
                continue
            rows += waiting.rows
            kind = tuple((n, a.shape[1:], a.dtype.str) for n, a in sorted(waiting.inputs.items()))
            groups.setdefault(kind, []).append(waiting)
        yield from groups.values()

    async def _answer(self, batch: list[_Waiting]) -> None:
        try:
            answers = _split(await self._run(_joined(batch)), [w.rows for w in batch])
        except InvalidRows as exc:
            if len(batch) == 1:
                _fail(batch[0], exc)
                return
            for waiting in batch:
                await self._answer([waiting])
            return
        except Exception as exc:
            for waiting in batch:
                _fail(waiting, exc)
            return
        for waiting, answer in zip(batch, answers, strict=True):
            if not waiting.answer.done():
                waiting.answer.set_result(answer)


def _fail(waiting: _Waiting, exc: Exception) -> None:
    if not waiting.answer.done():
        waiting.answer.set_exception(exc)


def _joined(batch: Sequence[_Waiting]) -> Arrays:
    if len(batch) == 1:
        return batch[0].inputs
    return {
        name: np.concatenate([waiting.inputs[name] for waiting in batch])
        for name in batch[0].inputs
    }


def _split(outputs: Arrays, rows: Sequence[int]) -> list[Arrays]:
    if len(rows) == 1:
        return [outputs]
    total, ends = sum(rows), np.cumsum(rows)[:-1]
    parts: dict[str, list[npt.NDArray[Any]]] = {}
    for name, values in outputs.items():
        if not values.ndim or len(values) != total:
            raise ModelError(f"output {name} has not one row per row of the batch")
        parts[name] = np.split(values, ends)
    return [{name: parts[name][index] for name in outputs} for index in range(len(rows))]
