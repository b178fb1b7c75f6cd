"""The model server as a child process; a small script plays the server."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from jobs.demo import model_process
from jobs.demo.model_process import ModelProcess, ModelServerError

SERVES = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
port = int(sys.argv[sys.argv.index("--port") + 1]) or 4711
print("warming up", flush=True)
print(f"ready port={port}", flush=True)
time.sleep(60)
"""
ENDS = "import sys; print('no such model', file=sys.stderr); sys.exit(1)"
HANGS = "import time; time.sleep(60)"


@pytest.fixture
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelProcess:
    """A server whose program is tmp_path/model_server.py."""
    monkeypatch.setattr(model_process, "ROOT", tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    play(tmp_path, SERVES)
    return ModelProcess(tmp_path, "fraud", 1, tmp_path / "logs" / "server.log")


def play(folder: Path, program: str) -> None:
    (folder / "model_server.py").write_text(program)


def children() -> list[psutil.Process]:
    return [p for p in psutil.Process().children() if sys.executable in p.cmdline()[:1]]


def test_it_serves_while_it_is_entered(played: ModelProcess) -> None:
    with played:
        assert played.is_serving
        assert played.address == "127.0.0.1:4711"
    assert not played.is_serving
    assert not children()


def test_a_restart_takes_the_same_port(played: ModelProcess) -> None:
    with played:
        played.port = 4712  # as if 0 had given that one
        played.stop()
        assert not played.is_serving
        played.start()
        assert played.address == "127.0.0.1:4712"


def test_one_that_ends_at_once_is_told_with_its_log(played: ModelProcess, tmp_path: Path) -> None:
    play(tmp_path, ENDS)
    with pytest.raises(ModelServerError, match="ended at its start") as found:
        played.start()
    assert str(tmp_path / "logs" / "server.log") in found.value.fix
    assert "no such model" in (tmp_path / "logs" / "server.log").read_text()


def test_one_that_is_never_ready_is_ended(
    played: ModelProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_process, "START_TIMEOUT_S", 0.5)
    play(tmp_path, HANGS)
    with pytest.raises(ModelServerError, match="not ready"):
        played.start()
    assert not children()


def test_a_stop_during_a_start_leaves_nothing_running(played: ModelProcess) -> None:
    starting = threading.Thread(target=played.start)
    starting.start()
    while not children():
        time.sleep(0.01)
    played.stop()
    starting.join()
    assert not played.is_serving
    assert not children()


def test_a_stop_without_a_start_does_nothing(played: ModelProcess) -> None:
    played.stop()
