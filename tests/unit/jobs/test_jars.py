"""Jars are used only when they are the ones the checksums name."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from jobs import jars

CONTENTS = {"flink/a.jar": b"a", "kafka/b.jar": b"b", "kafka/c.jar": b"c"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three jars with their checksums, all present."""
    sums = tmp_path / "jars.sha256"
    rows = [f"{hashlib.sha256(data).hexdigest()}  {path}" for path, data in CONTENTS.items()]
    sums.write_text("\n".join(rows) + "\n", encoding="ascii")
    monkeypatch.setattr(jars, "SUMS", sums)
    for path in CONTENTS:
        write(tmp_path / "jars", path)
    return tmp_path / "jars"


def write(folder: Path, path: str) -> None:
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_bytes(CONTENTS[path])


@pytest.fixture
def maven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Maven that writes its arguments and runs a script that a test may replace."""
    script = tmp_path / "bin" / "mvn"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\necho "$@" >> "{tmp_path}/calls"\n. "{tmp_path}/does"\n')
    script.chmod(0o755)
    (tmp_path / "does").write_text("")
    monkeypatch.setenv("PATH", str(script.parent), prepend=os.pathsep)
    return tmp_path


def test_the_real_checksums_name_both_groups() -> None:
    assert {path.split("/")[0] for path in jars.expected()} == set(jars.POMS)
    assert all(len(digest) == 64 for digest in jars.expected().values())


def test_nothing_is_fetched_when_all_is_right(folder: Path, maven: Path) -> None:
    assert jars.damaged(folder) == []
    assert jars.fetch(folder=folder) is False
    assert not (maven / "calls").exists()


def test_missing_and_changed_jars_are_found(folder: Path) -> None:
    (folder / "flink/a.jar").write_bytes(b"other")
    (folder / "kafka/c.jar").unlink()
    assert jars.damaged(folder) == ["flink/a.jar", "kafka/c.jar"]


def test_only_the_damaged_group_is_fetched(folder: Path, maven: Path) -> None:
    (folder / "flink/a.jar").unlink()
    (maven / "does").write_text(f'mkdir -p "{folder}/flink" && printf a > "{folder}/flink/a.jar"\n')
    steps: list[str] = []
    assert jars.fetch(steps.append, folder) is True
    assert steps == ["fetching the flink jars"]
    assert str(jars.POMS["flink"]) in (maven / "calls").read_text()


def test_a_jar_of_an_older_version_does_not_stay(folder: Path, maven: Path) -> None:
    (folder / "flink/a.jar").unlink()
    (folder / "flink/old.jar").write_bytes(b"old")
    (maven / "does").write_text(f'mkdir -p "{folder}/flink" && printf a > "{folder}/flink/a.jar"\n')
    jars.fetch(folder=folder)
    assert [path.name for path in (folder / "flink").iterdir()] == ["a.jar"]


def test_a_fetched_jar_with_other_contents_is_refused(folder: Path, maven: Path) -> None:
    (folder / "flink/a.jar").unlink()
    (maven / "does").write_text(f'mkdir -p "{folder}/flink" && printf x > "{folder}/flink/a.jar"\n')
    with pytest.raises(jars.JarsError, match=r"flink/a\.jar: SHA-256 differs"):
        jars.fetch(folder=folder)


def test_mavens_first_error_is_passed_on(folder: Path, maven: Path) -> None:
    (folder / "kafka/b.jar").unlink()
    (maven / "does").write_text('echo "[INFO] x"; echo "[ERROR] no route"; exit 1\n')
    with pytest.raises(jars.JarsError, match="Maven failed: no route") as caught:
        jars.fetch(folder=folder)
    assert caught.value.fix


def test_no_maven(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "kafka/b.jar").unlink()
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(jars.JarsError, match="mvn is not on the path"):
        jars.fetch(folder=folder)


def test_users_get_paths_or_the_fix(folder: Path) -> None:
    assert jars.flink_jars(folder) == [folder / "flink/a.jar"]
    both = [str(folder / "kafka/b.jar"), str(folder / "kafka/c.jar")]
    assert jars.broker_classpath(folder).split(os.pathsep) == both
    (folder / "flink/a.jar").unlink()
    (folder / "kafka/c.jar").unlink()
    for use in (jars.flink_jars, jars.broker_classpath):
        with pytest.raises(jars.JarsError, match="is missing") as caught:
            use(folder)
        assert caught.value.fix == "run: make jars"


def test_the_command_line_ends_with_not_ready(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(progress: jars.Progress) -> bool:
        raise jars.JarsError("mvn is not on the path", "install it")

    monkeypatch.setattr(jars, "fetch", fail)
    assert jars.main() == 4
    assert "install it" in capsys.readouterr().err
