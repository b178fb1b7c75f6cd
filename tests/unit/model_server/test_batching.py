"""Calls that are put together, and that none harms another."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_server.backends.base import Arrays, Signature, TensorSpec
from model_server.batching import Batcher, BatchingOptions, can_batch
from model_server.calls import Caller
from model_server.errors import DeadlineExceeded, InvalidRows, ModelError, Overloaded
from model_server.servables import Servable, Servables

NEVER_S = float("inf")


class Doubling:
    """Doubles its input; waits until told to go on."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.entered = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def __call__(self, inputs: Arrays) -> Arrays:
        values = inputs["x"]
        self.batches.append(len(values))
        self.entered.set()
        await self.go_on.wait()
        if np.isinf(values).any():
            raise InvalidRows("infinite")
        return {"y": values * 2}


def of(*values: float) -> Arrays:
    return {"x": np.array(values, np.float32)}


def call(batcher: Batcher, *values: float, deadline_s: float = NEVER_S) -> asyncio.Task[Arrays]:
    return asyncio.create_task(batcher.call(of(*values), len(values), deadline_s))


async def test_what_gathers_while_a_batch_is_at_work_goes_together() -> None:
    model = Doubling()
    model.go_on.clear()
    batcher = Batcher(model, BatchingOptions(max_rows=4))
    first = call(batcher, 1)
    await model.entered.wait()
    others = [call(batcher, value, value) for value in (2, 3, 4)]
    await asyncio.sleep(0)
    model.go_on.set()
    answers = [(await task)["y"].tolist() for task in (first, *others)]
    assert answers == [[2], [4, 4], [6, 6], [8, 8]]
    assert model.batches == [1, 4, 2]


@settings(max_examples=50)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=20), st.integers(1, 3))
def test_everybody_gets_their_own_rows(sizes: list[int], at_once: int) -> None:
    async def run() -> None:
        model = Doubling()
        batcher = Batcher(model, BatchingOptions(max_rows=8, max_delay_us=100), at_once=at_once)
        tasks = [call(batcher, *([float(i)] * size)) for i, size in enumerate(sizes)]
        for index, (task, size) in enumerate(zip(tasks, sizes, strict=True)):
            assert (await task)["y"].tolist() == [2.0 * index] * size
        assert sum(model.batches) == sum(sizes)
        assert max(model.batches) <= 8

    asyncio.run(run())


async def test_full_batch_does_not_wait() -> None:
    model = Doubling()
    batcher = Batcher(model, BatchingOptions(max_rows=2, max_delay_us=600_000_000))
    async with asyncio.timeout(60):
        await asyncio.gather(call(batcher, 1), call(batcher, 2))
    assert model.batches == [2]


async def test_one_bad_request_harms_no_other() -> None:
    model = Doubling()
    batcher = Batcher(model, BatchingOptions(max_rows=8, max_delay_us=1_000))
    good, bad, also_good = call(batcher, 1), call(batcher, np.inf), call(batcher, 3)
    assert (await good)["y"].tolist() == [2]
    assert (await also_good)["y"].tolist() == [6]
    with pytest.raises(InvalidRows):
        await bad


async def test_callers_that_are_gone_or_late_are_left_out() -> None:
    model = Doubling()
    model.go_on.clear()
    batcher = Batcher(model, BatchingOptions(max_rows=8))
    first = call(batcher, 0)
    await model.entered.wait()
    gone, stays = call(batcher, 1), call(batcher, 2)
    late = call(batcher, 3, deadline_s=asyncio.get_running_loop().time())
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.sleep(0)
    model.go_on.set()
    assert (await stays)["y"].tolist() == [4]
    with pytest.raises(DeadlineExceeded):
        await late
    await first
    assert model.batches == [1, 1]


async def test_unequal_shapes_do_not_meet_in_one_array() -> None:
    model = Doubling()
    batcher = Batcher(model, BatchingOptions(max_rows=8, max_delay_us=1_000))
    narrow = {"x": np.zeros((1, 2), np.float32)}
    wide = {"x": np.zeros((1, 3), np.float32)}
    calls = [batcher.call(inputs, 1, NEVER_S) for inputs in (narrow, wide, narrow)]
    shapes = [answer["y"].shape for answer in await asyncio.gather(*calls)]
    assert shapes == [(1, 2), (1, 3), (1, 2)]


async def test_model_that_loses_rows_fails_its_callers() -> None:
    async def lossy(inputs: Arrays) -> Arrays:
        return {"y": inputs["x"][:1]}

    batcher = Batcher(lossy, BatchingOptions(max_rows=8, max_delay_us=1_000))
    results = await asyncio.gather(call(batcher, 1), call(batcher, 2), return_exceptions=True)
    assert [type(result) for result in results] == [ModelError, ModelError]


@pytest.mark.parametrize("wrong", [{"max_rows": 0}, {"max_delay_us": -1}])
def test_options_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        BatchingOptions(**wrong)


def spec(shape: Any) -> TensorSpec:
    return TensorSpec("x", np.dtype(np.float32), shape)


@pytest.mark.parametrize(
    ("inputs", "outputs", "expected"),
    [
        ([(None, 5)], [(None,)], True),
        ([(None, 5), (None,)], [None], True),
        ([(1, 5)], [(None,)], False),
        ([None], [(None,)], False),
        ([(None, 5)], [()], False),
    ],
)
def test_only_signatures_of_rows_can_be_batched(inputs: Any, outputs: Any, expected: bool) -> None:
    signature = Signature(tuple(map(spec, inputs)), tuple(map(spec, outputs)))
    assert can_batch(signature) is expected


class Slow:
    """Takes one second of a clock that only it moves, and waits until told to go on."""

    platform = "test"
    signatures: Mapping[str, Signature] = {
        "serving_default": Signature((spec((None,)),), (spec((None,)),))
    }

    def __init__(self) -> None:
        self.now_s = 0.0
        self.go_on = threading.Event()
        self.go_on.set()

    def clock(self) -> float:
        return self.now_s

    def warm_up(self) -> None: ...

    def close(self) -> None: ...

    def is_quick(self, signature_name: str, rows: int) -> bool:
        return False

    def run(self, signature_name: str, inputs: Arrays, wanted: Any) -> Arrays:
        assert self.go_on.wait(60)
        self.now_s += 1.0
        return inputs


async def test_call_that_would_wait_longer_than_its_caller_is_refused() -> None:
    model = Slow()
    servable = Servable("m", 1, model)
    with ThreadPoolExecutor(1) as pool:
        caller = Caller(pool, threads=1, max_queued=3, clock=model.clock)

        def ask(remaining_s: float | None = None) -> Any:
            return caller.run(servable, "serving_default", of(1), ["x"], remaining_s=remaining_s)

        await ask()  # how long it takes is known from now on
        model.go_on.clear()
        waiting = [asyncio.create_task(ask()) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="2000 ms"):
            await ask(remaining_s=1.5)
        third = asyncio.create_task(ask(remaining_s=2.5))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="3 calls"):
            await ask()
        model.go_on.set()
        await asyncio.gather(*waiting, third)


async def test_a_withdrawn_version_is_not_kept_by_its_batches() -> None:
    servables = Servables()
    servables.declare("m", {})
    model = Slow()
    gone = weakref.ref(model)
    servables.publish(Servable("m", 1, model, BatchingOptions(max_rows=8)))
    with ThreadPoolExecutor(1) as pool:
        caller = Caller(pool)
        with servables.use("m") as servable:
            await caller.run(servable, "serving_default", of(1), ["x"])
        await servables.withdraw("m", 1)
        del model, servable
    gc.collect()
    assert gone() is None
