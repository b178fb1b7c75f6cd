"""`streamscore demo` as a user runs it, on a part of the data: it accounts for every record."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from jobs import jars
from jobs.demo import data as demo_data
from jobs.environment import BUILD, ROOT

pytestmark = [pytest.mark.kafka, pytest.mark.minicluster, pytest.mark.timeout(1_200)]

LIMIT = 20_000
COMMAND = ["demo", "--no-live", "--seconds", "20", "--limit", str(LIMIT)]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build folder of its own with the jars and the data of the real one."""
    jars.fetch()
    demo_data.load("small")
    folder = tmp_path_factory.mktemp("build")
    for shared in ("jars", "data"):
        (folder / shared).symlink_to(BUILD.absolute() / shared)
    return folder


@pytest.fixture(scope="module")
def done(build: Path) -> subprocess.CompletedProcess[str]:
    """The finished demo."""
    return subprocess.run(
        [sys.executable, "-m", "jobs.cli", *COMMAND],
        cwd=ROOT,
        env={**os.environ, "STREAMSCORE_BUILD": str(build)},
        capture_output=True,
        text=True,
        timeout=1_100,
    )


def processes_of(build: Path) -> Iterator[psutil.Process]:
    """Processes that were started with a path or a variable of that build folder."""
    for process in psutil.process_iter():
        try:
            told = [*process.cmdline(), process.environ().get("STREAMSCORE_BUILD", "")]
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if process.pid != os.getpid() and any(str(build) in text for text in told):
            yield process


def test_it_accounts_for_every_record(build: Path, done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((build / "demo" / "report.json").read_text())
    assert found["predictions"] == LIMIT
    assert found["duplicates"] == 500
    assert found["dead_letters"] == 200
    assert found["input"] == LIMIT + 700
    assert found["unaccounted"] == 0


def test_the_outage_gives_fallbacks_for_a_time(
    build: Path, done: subprocess.CompletedProcess[str]
) -> None:
    found = json.loads((build / "demo" / "report.json").read_text())
    assert len(found["outages_ms"]) == 1
    assert 0 < found["fallbacks"] < found["predictions"]
    assert found["alerts"] > 0


def test_it_says_where_the_report_is_and_shows_no_errors(
    build: Path, done: subprocess.CompletedProcess[str]
) -> None:
    report = build / "demo" / "report.html"
    assert str(report) in done.stdout
    assert "unaccounted for" in done.stdout
    assert "streamscore run" in done.stdout
    assert "Traceback" not in done.stderr
    assert "rdkafka" not in done.stderr
    assert "streamscore report" in report.read_text()


def test_nothing_is_left_running(build: Path, done: subprocess.CompletedProcess[str]) -> None:
    left = [p for p in processes_of(build)]
    psutil.wait_procs(left, timeout=20)
    assert [p.cmdline() for p in processes_of(build)] == []
    assert not (build / "demo" / "stack").exists()
