"""A submission's zip depends on its contents alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from jobs.cluster import package
from jobs.environment import ROOT

CONF = ROOT / "conf" / "fraud.yaml"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The project somewhere else, with other times."""
    folder = tmp_path / "elsewhere"
    for part in ("jobs", "udfs", "model_server"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "conf").mkdir()
    for path in (ROOT / "conf").glob("*"):
        if path.is_file():
            shutil.copy(path, folder / "conf")
    for path in folder.rglob("*"):
        os.utime(path, (1, 1))
    return folder


def test_equal_inputs_give_equal_bytes(project: Path, tmp_path: Path) -> None:
    one = package.make(CONF, {"batch.buckets": 1, "alerts.threshold": 0.9}, folder=tmp_path / "one")
    other = package.make(
        CONF, {"alerts.threshold": 0.9, "batch.buckets": 1}, root=project, folder=tmp_path / "other"
    )
    assert one.archive.read_bytes() == other.archive.read_bytes()
    assert one.sha256 == other.sha256


def test_settings_change_the_package_and_not_its_code(tmp_path: Path) -> None:
    one = package.make(CONF, folder=tmp_path)
    other = package.make(CONF, {"batch.buckets": 4}, folder=tmp_path)
    assert one.sha256 != other.sha256
    assert one.code == other.code


def test_a_change_in_python_changes_both(project: Path, tmp_path: Path) -> None:
    one = package.make(CONF, root=project, folder=tmp_path)
    (project / "udfs" / "runtime.py").write_text("# another\n")
    other = package.make(CONF, root=project, folder=tmp_path)
    assert one.sha256 != other.sha256
    assert one.code != other.code
    assert (other.code / "udfs" / "runtime.py").read_text() == "# another\n"


def test_it_holds_no_byte_code_and_nothing_of_this_machine(tmp_path: Path) -> None:
    made = package.make(CONF, folder=tmp_path)
    with zipfile.ZipFile(made.archive) as archive:
        assert not [name for name in archive.namelist() if "__pycache__" in name]
        assert {entry.date_time[0] for entry in archive.infolist()} == {1980}


def test_its_code_runs_from_where_it_is_unpacked(tmp_path: Path) -> None:
    made = package.make(CONF, folder=tmp_path)
    say = "import jobs.environment as e; print(e.ROOT)"
    done = subprocess.run(
        [sys.executable, "-c", say],
        env=os.environ | {"PYTHONPATH": str(made.code)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(made.code)
