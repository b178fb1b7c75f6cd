"""Which preparation a version is asked with, whatever the server does between two calls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np
import orjson
import pytest

from model_server.client import ClientOptions, Scores
from model_server.errors import BadResponse, Rejected, RepositoryError, Timeout
from udfs.batches.categories import code_of
from udfs.preparation.encoders import Matrix, Ordinal
from udfs.preparation.preparation import Input, Preparation
from udfs.preparation.preparations import Preparations

OPTIONS = ClientOptions("server:1", "fraud", deadline_ms=10_000.0)
SHOPS = np.array([[code_of("a")], [code_of("b")]], np.float64)


def shops(*texts: str, indicator: bool = False) -> Preparation:
    """A category whose ranks are those of the texts."""
    encoding = Ordinal(texts=texts, codes=tuple(map(code_of, texts)))
    return Preparation([Input(name="shop", indicator=indicator, encoding=encoding)])


def plain(impute: float) -> Preparation:
    return Preparation([Input(name="shop", impute=impute)])


class Server:
    """Answers with what it was asked, by the version that its script says next.

    It refuses a matrix of another width than the version's, as a server does.
    """

    def __init__(self, *versions: int, widths: dict[int, int] | None = None) -> None:
        self._versions = list(versions)
        self._widths = widths or {}
        self.asked: list[list[float]] = []

    async def __call__(self, matrix: Matrix) -> Scores:
        self.asked.append(matrix[:, 0].tolist())
        version = self._versions.pop(0)
        if matrix.shape[1] != self._widths.get(version, matrix.shape[1]):
            raise Rejected("inputs must be of another shape")
        return Scores(matrix[:, 0].astype(np.float64), "fraud", version)


@pytest.fixture
def stored(tmp_path: Path) -> Callable[..., Path]:
    """Write a version's folder."""

    def write(version: int, preparation: Preparation) -> Path:
        folder = tmp_path / "fraud" / str(version)
        folder.mkdir(parents=True)
        (folder / "features.json").write_bytes(orjson.dumps(preparation.document()))
        return folder

    return write


@pytest.fixture
def two(stored: Callable[..., Path]) -> Preparations:
    """A job that began with version 1; in version 2 the ranks are the other way round."""
    first = stored(1, shops("a", "b"))
    stored(2, shops("b", "a"))
    return Preparations(shops("a", "b"), first)


async def test_the_version_at_the_start_is_asked_once(two: Preparations) -> None:
    server = Server(1)
    answer = await two.predict(server, OPTIONS, SHOPS)
    assert server.asked == [[0.0, 1.0]] == [answer.matrix[:, 0].tolist()]


async def test_another_version_that_answered_is_asked_anew_and_expected_then(
    two: Preparations,
) -> None:
    server = Server(2, 2, 2)
    for _ in range(2):
        answer = await two.predict(server, OPTIONS, SHOPS)
        assert answer.scores.values.tolist() == [1.0, 0.0]
        assert answer.preparation == shops("b", "a")
    assert server.asked == [[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]


async def test_versions_that_answer_by_turns_give_no_wrong_score(two: Preparations) -> None:
    with pytest.raises(BadResponse, match="by turns"):
        await two.predict(Server(2, 1), OPTIONS, SHOPS)


async def test_each_address_has_its_own_version(two: Preparations) -> None:
    server = Server(2, 2, 1)
    await two.predict(server, OPTIONS, SHOPS)
    other = ClientOptions("other:1", "fraud")
    assert (await two.predict(server, other, SHOPS)).preparation == shops("a", "b")


async def test_a_pinned_version_is_known_before_it_is_asked(two: Preparations) -> None:
    server, pinned = Server(2), ClientOptions("server:1", "fraud", model_version=2)
    assert (await two.predict(server, pinned, SHOPS)).preparation == shops("b", "a")
    assert len(server.asked) == 1


async def test_a_version_of_other_width_refuses_and_is_asked_anew(
    stored: Callable[..., Path],
) -> None:
    preparations = Preparations(shops("a"), stored(1, shops("a")))
    stored(5, shops("b", indicator=True))
    server = Server(5, 5, widths={5: 2})
    answer = await preparations.predict(server, OPTIONS, SHOPS)
    assert (answer.scores.model_version, answer.matrix.shape) == (5, (2, 2))


async def test_what_is_refused_for_another_reason_stays_refused(two: Preparations) -> None:
    server, pinned = Server(1, widths={1: 9}), ClientOptions("s:1", "fraud", model_version=1)
    with pytest.raises(Rejected, match="another shape"):
        await two.predict(server, pinned, SHOPS)
    assert len(server.asked) == 1


async def test_the_second_call_ends_with_the_deadline_of_the_first(two: Preparations) -> None:
    calls = 0

    async def slow(matrix: Matrix) -> Scores:
        nonlocal calls
        calls += 1
        if calls > 1:
            await asyncio.Event().wait()
        return Scores(np.zeros(len(matrix)), "fraud", 2)

    with pytest.raises(Timeout):
        await two.predict(slow, ClientOptions("s:1", "fraud", deadline_ms=20.0), SHOPS)
    assert calls == 2


@pytest.mark.parametrize("version", [7, 8])
async def test_unknown_columns_are_no_answer(
    two: Preparations, stored: Callable[..., Path], version: int
) -> None:
    stored(8, Preparation([Input(name="other")]))
    with pytest.raises(BadResponse, match=f"{version}"):
        await two.predict(Server(version), OPTIONS, SHOPS)
    with pytest.raises(RepositoryError):
        two.of(version)
    with pytest.raises(Rejected):
        pinned = ClientOptions("server:1", "fraud", model_version=version)
        await two.predict(Server(version), pinned, SHOPS)


async def test_other_imputed_values_are_no_other_columns(
    stored: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    missing = np.array([[np.nan]])
    preparations = Preparations(plain(1.0), stored(1, plain(1.0)))
    stored(2, plain(2.0))
    server = Server(2, 2, 9, 9)
    for _ in range(4):
        await preparations.predict(server, OPTIONS, missing)
    assert server.asked == [[1.0], [2.0], [2.0], [1.0]]
    assert caplog.text.count("version 9 gets the start's imputed values") == 1


async def test_a_server_that_names_no_version_has_the_start_s(two: Preparations) -> None:
    assert (await two.predict(Server(0), OPTIONS, SHOPS)).preparation == shops("a", "b")


async def test_a_single_preparation_serves_every_version() -> None:
    server = Server(3, 4)
    preparations = Preparations(shops("a"), None)
    for _ in range(2):
        await preparations.predict(server, OPTIONS, SHOPS)
    assert server.asked == [[0.0, 1.0]] * 2
