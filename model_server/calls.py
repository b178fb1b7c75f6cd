"""One call of a model, whichever protocol it came by."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import partial

from model_server.backends.base import Arrays, Model, Signature
from model_server.batching import Batcher, can_batch
from model_server.errors import InvalidRequest, Overloaded
from model_server.servables import Servable

__all__ = ["Caller", "check_outputs"]

_SMOOTHING = 0.1
"""Weight of the newest call in the estimate of how long a call takes."""


class Caller:
    """Runs models: quick calls on the event loop, others in a pool of threads.

    A call that would have to wait in the pool longer than its caller does is refused at once: work
    that nobody waits for any more would only delay the others.
    """

    def __init__(
        self,
        executor: Executor,
        *,
        threads: int = 1,
        max_queued: int = 1_000,
        on_run: Callable[[str, int], None] = lambda _model, _rows: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Run what is not quick in ``executor``.

        Args:
            executor: A pool of threads.
            threads: How many it has.
            max_queued: Calls in the pool or waiting for it; more are refused.
            on_run: Is told a model's name and the rows of each of its runs.
            clock: Seconds.
        """
        self._executor = executor
        self._threads = threads
        self._max_queued = max_queued
        self._on_run = on_run
        self._clock = clock
        self._queued = 0

    @property
    def queued(self) -> int:
        """Runs in the pool or waiting for it."""
        return self._queued

    async def run(
        self,
        servable: Servable,
        signature_name: str,
        inputs: Arrays,
        wanted: Sequence[str],
        *,
        remaining_s: float | None = None,
    ) -> Arrays:
        """Call a signature of a servable that the caller holds.

        Args:
            servable: The model's version.
            signature_name: One it has.
            inputs: Checked against the signature.
            wanted: Outputs, checked too.
            remaining_s: Seconds that the caller waits for it; for ever if None.

        Raises:
            Overloaded: It would wait too long.
            DeadlineExceeded: The caller's time ran out in the queue.
            InvalidRows: The values are none that the model takes.
        """
        signature = servable.signature(signature_name)
        options = servable.batching
        rows = _row_count(inputs)
        patience_s = math.inf if remaining_s is None else remaining_s
        if 0 < rows < options.max_rows and can_batch(signature):
            batcher = self._batcher(servable, signature_name, wanted)
            if batcher.waiting >= self._max_queued:
                raise Overloaded(f"{batcher.waiting} calls wait: try later or elsewhere")
            deadline_s = asyncio.get_running_loop().time() + patience_s
            return await batcher.call(inputs, rows, deadline_s)
        return await self._run_at_once(servable, signature_name, wanted, inputs, patience_s)

    def _batcher(
        self,
        servable: Servable,
        signature_name: str,
        wanted: Sequence[str],
    ) -> Batcher:
        batchers = servable.calls.batchers
        key = signature_name, tuple(wanted)
        if key not in batchers:
            run = partial(self._run_at_once, servable, signature_name, tuple(wanted))
            batchers[key] = Batcher(run, servable.batching, at_once=self._threads)
        return batchers[key]

    async def _run_at_once(
        self,
        servable: Servable,
        signature_name: str,
        wanted: Sequence[str],
        inputs: Arrays,
        patience_s: float = math.inf,
    ) -> Arrays:
        model, rows = servable.model, _row_count(inputs)
        self._on_run(servable.name, rows)
        if model.is_quick(signature_name, rows):
            return model.run(signature_name, inputs, wanted)
        return await self._run_in_pool(servable, signature_name, inputs, wanted, patience_s)

    async def _run_in_pool(
        self,
        servable: Servable,
        signature_name: str,
        inputs: Arrays,
        wanted: Sequence[str],
        patience_s: float,
    ) -> Arrays:
        times_s = servable.calls.times_s
        wait_s = max(self._queued - self._threads + 1, 0) / self._threads
        wait_s *= times_s.get(signature_name, 0.0)
        if self._queued >= self._max_queued or wait_s > patience_s:
            raise Overloaded(
                f"{self._queued} calls are queued, which takes about {wait_s * 1e3:.0f} ms: "
                "try later or elsewhere"
            )
        self._queued += 1
        try:
            loop = asyncio.get_running_loop()
            took_s, outputs = await loop.run_in_executor(
                self._executor, self._timed, servable.model, signature_name, inputs, wanted
            )
        finally:
            self._queued -= 1
        known_s = times_s.get(signature_name, took_s)
        times_s[signature_name] = known_s + _SMOOTHING * (took_s - known_s)
        return outputs

    def _timed(
        self, model: Model, signature_name: str, inputs: Arrays, wanted: Sequence[str]
    ) -> tuple[float, Arrays]:
        begun_s = self._clock()
        outputs = model.run(signature_name, inputs, wanted)
        return self._clock() - begun_s, outputs


def _row_count(inputs: Arrays) -> int:
    return max((len(array) for array in inputs.values() if array.ndim), default=1)


def check_outputs(signature: Signature, wanted: Sequence[str]) -> Sequence[str]:
    """Return the outputs to compute: those asked for, or all.

    Raises:
        InvalidRequest: The signature has no such output, or one is asked for twice.
    """
    names = [spec.name for spec in signature.outputs]
    for alias in wanted:
        if alias not in names:
            raise InvalidRequest(
                f"output tensor alias not found in signature: {alias} "
                f"Outputs expected to be in the set {{{','.join(sorted(names))}}}."
            )
    if len(set(wanted)) < len(wanted):
        twice = next(alias for alias in wanted if wanted.count(alias) > 1)
        raise InvalidRequest(f"duplicate output tensor alias: {twice}")
    return wanted or names
