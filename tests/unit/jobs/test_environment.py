"""What is found on the machine, on machines made up for the purpose."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

import pytest

from jobs import environment
from jobs.environment import ROOT, NotReadyError


def make_java(home: Path, output: str = "", exit_code: int = 0) -> Path:
    executable = home / "bin" / "java"
    executable.parent.mkdir(parents=True)
    executable.write_text(f"#!/bin/sh\necho '{output}' >&2\nexit {exit_code}\n")
    executable.chmod(0o755)
    return executable


def test_java_home_wins_over_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_path, at_home = make_java(tmp_path / "a"), make_java(tmp_path / "b")
    monkeypatch.setenv("PATH", str(on_path.parent))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    assert environment.java() == on_path
    monkeypatch.setenv("JAVA_HOME", str(at_home.parents[1]))
    assert environment.java() == at_home


def test_a_java_home_without_java_is_not_papered_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(make_java(tmp_path / "a").parent))
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "gone"))
    assert environment.find_java() is None
    with pytest.raises(NotReadyError, match="no java found; install Java 17"):
        environment.java()


@pytest.mark.parametrize(
    ("output", "major"),
    [
        ('openjdk version "17.0.12" 2024-07-16', 17),
        ('openjdk version "21" 2023-09-19', 21),
        ('java version "1.8.0_392"', 1),
        ("no such thing", None),
    ],
)
def test_java_major(output: str, major: int | None, tmp_path: Path) -> None:
    assert environment.java_major(make_java(tmp_path, output)) == major


def test_a_command_that_cannot_be_run_has_no_output(tmp_path: Path) -> None:
    assert environment.first_output([str(tmp_path / "none")]) == ""


def test_a_command_that_hangs_has_no_output() -> None:
    assert environment.first_output(["sleep", "60"], timeout_s=0.05) == ""


def test_thread_mode_finds_the_packages_and_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = sysconfig.get_path("purelib")
    java = make_java(tmp_path)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["mine", packages]))
    variables = environment.thread_mode_env()
    assert variables["PYTHONPATH"].split(os.pathsep) == [packages, str(ROOT), "mine"]
    assert variables["PATH"].split(os.pathsep)[0] == sysconfig.get_path("scripts")
    assert variables["JAVA_HOME"] == str(java.resolve().parents[1])


def test_an_error_has_its_fix() -> None:
    error = NotReadyError("it is broken", "mend it")
    assert (str(error), error.fix) == ("it is broken; mend it", "mend it")
