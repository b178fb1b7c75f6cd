"""`streamscore submit --target application`: a cluster for one job, from start to savepoint."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import yaml
from typer.testing import CliRunner, Result

from jobs import cli
from jobs.cluster import savepoints
from jobs.cluster.savepoints import local
from jobs.cluster.standalone import ClusterError, StandaloneCluster
from jobs.exit_codes import ExitCode
from jobs.ports import HOST
from jobs.settings import load
from tests.support import cards, hidden
from tests.support.checks import check_accounts
from tests.support.fixtures import CONFIG, own_overrides
from tests.support.kafka import Traffic

pytestmark = [pytest.mark.cluster, pytest.mark.kafka, pytest.mark.timeout(300)]

EVENTS = 200
commands = CliRunner(env={"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "250"})


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[StandaloneCluster]:
    found = StandaloneCluster(tmp_path / "flink")
    yield found
    found.down()


def run(*words: str) -> Result:
    return commands.invoke(cli.app, [*words])


def file_of(path: Path, overrides: dict[str, Any]) -> Path:
    """conf/fraud.yaml with overrides written into it."""
    document = yaml.safe_load(CONFIG.read_text())
    for name, value in overrides.items():
        section, _, last = name.rpartition(".")
        (document.setdefault(section, {}) if section else document)[last] = value
    path.write_text(yaml.safe_dump(document))
    return path


def test_from_start_to_savepoint(
    cluster: StandaloneCluster,
    bootstrap: str,
    models: Path,
    demo: pd.DataFrame,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SECRET_OF_TEST", hidden.TOKEN)
    own = {"model.embedded": True, "batch.buckets": 1, "model.token": "${SECRET_OF_TEST}"}
    conf = file_of(tmp_path / "job.yaml", own_overrides(bootstrap, models, tmp_path) | own)
    words = [str(conf), "--folder", str(cluster.folder)]
    settings = load(conf)
    with Traffic(settings) as traffic:
        done = run("submit", *words, "--target", "application")
        assert done.exit_code == ExitCode.OK, (done.output, done.exception)
        traffic.send(*cards.event_records(demo.head(EVENTS), settings.topics.partitions))
        traffic.wait_accounted()
        check_accounts(traffic)
    state = cluster.running()
    parents = [psutil.Process(one.pid) for one in state.processes.values()]
    processes = parents + [child for one in parents for child in one.children(recursive=True)]
    check_reach(processes)
    check_secrets(cluster.folder, processes)
    for change in (["submit", *words], ["rescale", *words, "1"]):
        refused = run(*change).exception
        assert isinstance(refused, ClusterError) and "savepoint take --stop" in refused.fix
    stopped = run("savepoint", "take", *words, "--stop")
    assert stopped.exit_code == ExitCode.OK, (stopped.output, stopped.exception)
    (taken,) = savepoints.listed(savepoints.folder_of(settings))
    assert local(stopped.stdout.strip()) == local(taken.path)
    assert not any(is_alive(process) for process in processes)


def check_reach(processes: list[psutil.Process]) -> None:
    """Flink listens for this machine alone."""
    listening = [c for p in processes for c in p.net_connections() if c.status == "LISTEN"]
    assert {c.laddr.ip.removeprefix("::ffff:") for c in listening} == {HOST}


def check_secrets(folder: Path, processes: list[psutil.Process]) -> None:
    """They are in no argument, and variables in what is packed; logs are looked at in the end."""
    (packed,) = (folder / "packages").glob("*.zip")
    with zipfile.ZipFile(packed) as archive:
        shown = [archive.read(name).decode() for name in archive.namelist() if ".jar" not in name]
    assert any("${SECRET_OF_TEST}" in text for text in shown)
    shown += [word for process in processes for word in process.cmdline()]
    assert not any(hidden.TOKEN in text for text in shown)


def is_alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
