"""Which version a request means, and that one in use is not closed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from model_server.errors import InvalidRequest, ServableNotFound, ServableNotReady
from model_server.servables import Servable, Servables, ServableState


class FakeModel:
    """Only knows whether it was closed."""

    closed = False

    def close(self) -> None:
        self.closed = True


def servables(*versions: int, labels: dict[str, int] | None = None) -> tuple[Servables, Any]:
    known, models = Servables(), {}
    known.declare("fraud", labels or {})
    for version in versions:
        models[version] = FakeModel()
        model: Any = models[version]
        known.publish(Servable("fraud", version, model))
    return known, models


async def test_newest_given_and_labelled_versions() -> None:
    known, _ = servables(2, 10, labels={"stable": 2})
    for choice, expected in (((), 10), ((2,), 2), ((None, "stable"), 2)):
        with known.use("fraud", *choice) as servable:
            assert servable.version == expected


@pytest.mark.parametrize(
    ("choice", "error", "words"),
    [
        (("other",), ServableNotFound, r"Latest\(other\)"),
        (("fraud", 3), ServableNotFound, r"Specific\(fraud, 3\)"),
        (("fraud", None, "canary"), InvalidRequest, "label: canary"),
        (("fraud", None, "gone"), ServableNotFound, r"Specific\(fraud, 7\)"),
        (("fraud", 4), ServableNotReady, "still loading"),
        (("fraud", 5), ServableNotFound, r"Specific\(fraud, 5\)"),
    ],
)
async def test_what_is_not_there_is_refused(choice: Any, error: Any, words: str) -> None:
    known, _ = servables(2, labels={"gone": 7})
    known.note("fraud", 4, ServableState.LOADING)
    known.note("fraud", 5, ServableState.END, "broken")
    with pytest.raises(error, match=words), known.use(*choice):
        pass


async def test_model_without_a_version_yet_is_loading_then_not_there() -> None:
    known, _ = servables()
    known.note("fraud", 1, ServableState.LOADING)
    assert not known.all_ready
    with pytest.raises(ServableNotReady), known.use("fraud"):
        pass
    known.note("fraud", 1, ServableState.END, "broken")
    with pytest.raises(ServableNotFound), known.use("fraud"):
        pass


async def test_version_in_use_is_closed_after_its_last_call() -> None:
    known, models = servables(1, 2)
    with known.use("fraud", 1), known.use("fraud", 1):
        leaving = asyncio.create_task(known.withdraw("fraud", 1))
        await asyncio.sleep(0)
        assert not models[1].closed
        assert known.statuses("fraud", 1)[1].state is ServableState.UNLOADING
        with pytest.raises(ServableNotFound), known.use("fraud", 1):
            pass
    await leaving
    assert models[1].closed and not models[2].closed
    assert known.statuses("fraud", 1)[1].state is ServableState.END


async def test_statuses_tell_why_and_come_newest_first() -> None:
    known, _ = servables(2, 10, labels={"stable": 2})
    known.note("fraud", 11, ServableState.END, "no model file")
    assert list(known.statuses("fraud")) == [11, 10, 2]
    assert known.statuses("fraud")[11].error == "no model file"
    assert list(known.statuses("fraud", label="stable")) == [2]
