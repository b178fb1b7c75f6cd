"""What operators do to their interpreter."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Iterator

import pytest

from udfs.runtime import calm_garbage_collector, drop_garbage, share_interpreter_fairly


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    thresholds = gc.get_threshold()
    interval_s = sys.getswitchinterval()
    yield
    sys.setswitchinterval(interval_s)
    gc.set_threshold(*thresholds)
    gc.unfreeze()


class Node:
    def __init__(self) -> None:
        self.itself = self


def test_what_is_loaded_is_looked_at_no_more() -> None:
    calm_garbage_collector()
    assert gc.get_freeze_count() > 1_000
    assert len(gc.get_objects()) < 1_000


def test_it_may_be_called_again() -> None:
    calm_garbage_collector()
    thresholds = gc.get_threshold()
    calm_garbage_collector()
    assert gc.get_threshold() == thresholds


def test_what_an_ended_attempt_has_left_is_dropped() -> None:
    node = Node()
    calm_garbage_collector()
    ended = weakref.ref(node)
    del node
    calm_garbage_collector()
    assert ended() is not None
    drop_garbage()
    assert ended() is None
    assert gc.get_freeze_count() > 1_000


def test_cycles_are_still_collected() -> None:
    calm_garbage_collector()
    assert gc.isenabled()
    cycle = weakref.ref(Node())
    made = [[] for _ in range(gc.get_threshold()[0] + 1_000)]
    assert cycle() is None, f"kept through {len(made)} new containers"


def test_garbage_is_dropped_before_the_rest_is_kept() -> None:
    gc.disable()
    try:
        cycle = weakref.ref(Node())
        calm_garbage_collector()
        assert cycle() is None
    finally:
        gc.enable()


def test_a_thread_that_waits_gets_the_interpreter_soon() -> None:
    before_s = sys.getswitchinterval()  # another test may have opened an operator
    try:
        sys.setswitchinterval(0.005)
        share_interpreter_fairly()
        assert sys.getswitchinterval() <= 0.001
    finally:
        sys.setswitchinterval(before_s)
