"""The loops' machine code is kept, survives damage, and boosters are read elsewhere."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from model_server.backends.trees import isolated, native
from model_server.backends.xgboost import XGBoostModel
from model_server.errors import ModelError, RepositoryError
from tests.support.models import xgboost_folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(native, "_folders", lambda: iter([tmp_path / "a", tmp_path / "b"]))
    return tmp_path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    xgboost_folder(tmp_path / "1")
    return tmp_path / "1"


def test_the_code_is_compiled_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = native._code()
    monkeypatch.setattr(native, "_compile", lambda: pytest.fail("compiled again"))
    assert native._code() == made
    assert [path.parent.name for path in cache.rglob("*.bin")] == ["a"]


@pytest.mark.parametrize("keep", [0, 40, -1])
def test_damaged_code_is_compiled_again(cache: Path, keep: int) -> None:
    native._code()
    (path,) = cache.rglob("*.bin")
    path.write_bytes(path.read_bytes()[:keep])
    made = native._code()
    assert native._load(made).add_leaves
    assert native._read(path) == made


def test_where_the_first_folder_cannot_be_written_the_next_is(cache: Path) -> None:
    (cache / "a").write_text("not a folder")
    native._code()
    assert [path.parent.name for path in cache.rglob("*.bin")] == ["b"]


def test_without_any_folder_it_says_what_to_set(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in "ab":
        (cache / name).write_text("not a folder")
    assert native._load(native._code()).add_leaves
    assert "set XDG_CACHE_HOME" in caplog.text


def test_another_process_reads_the_same_model(folder: Path) -> None:
    here, there = (
        XGBoostModel.load(folder),
        XGBoostModel.load(folder, isolated=True),
    )
    rows = np.random.default_rng(0).normal(size=(300, 5)).astype(np.float32)
    rows[::7, 2] = np.nan
    assert np.array_equal(here.predict(rows), there.predict(rows))
    assert np.array_equal(here.explain(rows), there.explain(rows))


def test_neither_a_compiler_nor_xgboost_is_loaded_to_answer(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from model_server import backends\n"
        f"backends.load(Path({str(folder)!r}), 1).warm_up()\n"
        "print(sys.modules.keys() & {'numba', 'llvmlite', 'xgboost', 'pandas', 'scipy'})"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "set()\n"


def test_its_errors_are_raised_here(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(RepositoryError, match=r"model\.ubj"):
        isolated.compile_in_child(tmp_path)
    (folder / "model.ubj").write_bytes(b"broken")
    with pytest.raises(ModelError, match="not an XGBoost model"):
        isolated.compile_in_child(folder)


def test_a_crash_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "crashing.py").write_text(
        f"import os; os.kill(os.getpid(), {int(signal.SIGSEGV)})\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with (
        native.Run("crashing") as run,
        pytest.raises(ModelError, match=r"crashing failed.*exit code -11"),
    ):
        run.output()
