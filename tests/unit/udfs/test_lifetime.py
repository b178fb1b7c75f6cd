"""What is closed when the thread state of an operator's interpreter goes, here that of a thread."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from threading import Event, Thread

import pytest

from tests.support.waiting import wait_until
from udfs.lifetime import close_at_end
from udfs.runtime import calm_garbage_collector


@pytest.fixture(autouse=True)
def embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("udfs.lifetime.is_embedded", lambda: True)


class Attempt:
    """An operator in a thread, until it is told to end."""

    def __init__(self, *closes: Callable[[], None]) -> None:
        self._opened, self._told = Event(), Event()
        self._closes = closes
        self._thread = Thread(target=self._run)
        self._thread.start()
        assert self._opened.wait(30)

    def end(self) -> None:
        self._told.set()
        self._thread.join(30)
        self._closes = ()

    def _run(self) -> None:
        for close in self._closes:
            close_at_end(close)
        self._opened.set()
        self._told.wait(30)


def test_what_has_ended_is_closed_and_nothing_else() -> None:
    closed: list[str] = []
    first = Attempt(lambda: closed.append("a"), lambda: closed.append("b"))
    second = Attempt(lambda: closed.append("c"))
    first.end()
    wait_until(lambda: sorted(closed) == ["a", "b"], 30, "the first one's are closed")
    assert len(closed) == 2
    second.end()
    wait_until(lambda: closed[2:] == ["c"], 30, "the second one's is closed")


def test_one_that_cannot_be_closed_is_logged_and_the_others_are_closed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    closed = Event()

    def refuse() -> None:
        raise OSError("it is gone")

    Attempt(refuse, closed.set).end()
    assert closed.wait(30)
    wait_until(lambda: "it is gone" in caplog.text, 30, "it says so")


def test_elsewhere_than_in_thread_mode_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr("udfs.lifetime.is_embedded", lambda: False)
        Attempt(lambda: closed.append("a")).end()
    last = Event()
    Attempt(last.set).end()
    assert last.wait(30)
    assert not closed


class Operator:
    def __init__(self) -> None:
        self.itself = self

    def close(self) -> None:
        pass


def test_what_it_leaves_in_cycles_goes_though_it_was_frozen() -> None:
    operator = Operator()
    there = weakref.ref(operator)
    attempt = Attempt(operator.close)
    calm_garbage_collector()
    try:
        del operator
        attempt.end()
        wait_until(lambda: there() is None, 30, "it is gone")
        wait_until(lambda: gc.get_freeze_count() > 0, 30, "the rest is frozen again")
    finally:
        gc.unfreeze()
