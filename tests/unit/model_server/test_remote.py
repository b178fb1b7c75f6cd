"""Models in a process of their own, whatever happens to it. The library is the test's."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_server.backends import remote
from model_server.backends.remote import RemoteModel
from model_server.errors import InvalidRows, ModelError, ServableNotReady
from tests.support.waiting import wait_until

PATIENCE_S = 60.0
ONE = {"x": np.ones(2, np.float32)}


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Callable[..., RemoteModel]]:
    """Load a model whose folder says how its library behaves; see ``tests.support.worker``."""
    loaded: list[RemoteModel] = []

    def run(behaviour: str = "double", python: str = sys.executable) -> RemoteModel:
        (tmp_path / "behaviour").write_text(behaviour)
        loaded.append(RemoteModel.load("serving", "test", tmp_path, 1, python))
        return loaded[-1]

    yield run
    for model in loaded:
        model.close()


@pytest.fixture(autouse=True)
def worker_of_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start the test's worker in the place of a library's."""
    real = subprocess.Popen

    def popen(command: list[str], **given: Any) -> subprocess.Popen[bytes]:
        given["cwd"] = Path(__file__).parents[3]
        return real([command[0], "-m", "tests.support.worker", *command[3:]], **given)

    monkeypatch.setattr(remote.subprocess, "Popen", popen)  # type: ignore[attr-defined]


def run(model: RemoteModel) -> list[float]:
    return list(model.run("serving_default", ONE, ["y"])["y"])


def test_it_answers_and_refuses(load: Any) -> None:
    model = load()
    assert run(model) == [2.0, 2.0]
    with pytest.raises(InvalidRows, match="too large"):
        model.run("serving_default", {"x": np.full(1, 1e9, np.float32)}, ["y"])
    with pytest.raises(ModelError, match="KeyError"):
        model.run("serving_default", ONE, ["z"])
    assert run(model) == [2.0, 2.0]


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [("broken", "ValueError: broken"), ("exits", "ended while it loaded the model, with 3")],
)
def test_a_model_that_cannot_be_loaded(load: Any, behaviour: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load(behaviour)


@pytest.mark.parametrize("python", ["/nowhere/python", "./nowhere/python"])
def test_an_interpreter_that_is_not_there(load: Any, python: str) -> None:
    with pytest.raises(ModelError, match=r"cannot start /.*nowhere/python: No such file"):
        load(python=python)


def test_a_relative_interpreter_is_found(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "py").symlink_to(sys.executable)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    monkeypatch.setattr(remote, "_environment", lambda _: dict(remote.os.environ))  # type: ignore[attr-defined]
    assert run(load(python="./py")) == [2.0, 2.0]


def until_it_answers(model: RemoteModel) -> None:
    def answers() -> bool:
        with suppress(ServableNotReady):
            return run(model) == [2.0, 2.0]
        return False

    wait_until(answers, PATIENCE_S, "an answer")


def test_it_is_started_again_even_if_that_fails_at_first(
    load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load()
    real, failures = (
        subprocess.Popen,
        [BlockingIOError("no process left"), ValueError("a bad frame")],
    )

    def popen(*command: Any, **given: Any) -> Any:
        if failures:
            raise failures.pop()
        return real(*command, **given)

    monkeypatch.setattr(remote.subprocess, "Popen", popen)  # type: ignore[attr-defined]
    model._worker.kill()
    with pytest.raises(ServableNotReady, match="ended during the call"):
        while True:
            run(model)
    until_it_answers(model)
    assert not failures


def test_a_call_that_hangs_ends_the_process(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load()
    with (
        monkeypatch.context() as impatient,
        pytest.raises(ServableNotReady, match="ended during the call"),
    ):
        impatient.setattr(remote, "_CALL_S", 0.2)
        model.run("serving_default", {"x": np.full(1, -1.0, np.float32)}, ["y"])
    until_it_answers(model)


def test_a_load_that_hangs_ends_in_time(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_LOAD_S", 0.5)
    with pytest.raises(ModelError, match=r"not loaded after 0\.5 s"):
        load("hangs")


def test_without_a_connection_the_process_is_not_blamed(
    load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load()
    before = model._worker
    monkeypatch.setattr(remote, "_END_S", 0.1)

    def refuse(request: bytes) -> bytes:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(before, "call", refuse)
    with pytest.raises(ServableNotReady, match="Too many open files"):
        run(model)
    monkeypatch.undo()
    assert model._worker is before and run(model) == [2.0, 2.0]
