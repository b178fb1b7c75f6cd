"""``streamscore chaos`` itself: a job that is hurt loses nothing, and what was started is ended."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from jobs.environment import QUICK_JVM, ROOT
from tests.support.fixtures import CONFIG

pytestmark = [pytest.mark.cluster, pytest.mark.kafka, pytest.mark.timeout(900)]


def left_of(folder: Path) -> list[str]:
    """Processes that have to do with a folder and still run."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if str(folder) in " ".join(process.info["cmdline"] or ()):
            found.append(str(process))
    return found


def test_four_faults(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JVM_ARGS", QUICK_JVM)
    at = tmp_path / "chaos"
    command = [sys.executable, "-m", "jobs.cli", "chaos", str(CONFIG), "--folder", str(at)]
    kinds = ["clock-jump", "cut-broker", "kill-taskmanager", "poison"]
    if shutil.which("cc") is None:  # as chaos does
        kinds.remove("clock-jump")
    # The seed sets the clock back.
    command += ["--faults", ",".join(kinds), "--count", str(len(kinds)), "--seed", "4"]
    command += ["--minutes", "10", "--rate", "300", "--set", f"model.path={models}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=840)
    assert done.returncode == 0, done.stdout[-3_000:] + done.stderr[-3_000:]
    found = json.loads((at / "report.json").read_bytes())
    assert (found["lost"], found["wrong"], found["unrecovered"]) == (0, 0, 0)
    assert found["events"] > 1_000
    assert found["poison"] >= 50
    assert found["values_compared"] > 20_000
    assert sorted(found["recovery_s"]) == kinds
    logs = (at / "flink" / "logs").glob("tm-*")
    told = any("ClockSetBackError" in path.read_text(errors="replace") for path in logs)
    assert told == ("clock-jump" in kinds)
    assert (at / "report.html").is_file()
    assert left_of(at) == []
