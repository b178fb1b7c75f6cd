"""The doctor's verdicts, each on a machine that lacks one thing."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import orjson
import psutil
import pytest

from jobs import doctor
from jobs.console import console, findings_table
from jobs.doctor import GIB, Finding, Verdict


def test_python_is_the_locked_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.check_python().verdict == "ok"
    newer = SimpleNamespace(version_info=SimpleNamespace(major=3, minor=12, micro=1))
    newer.version_info = type("V", (tuple,), {"major": 3, "minor": 12, "micro": 1})((3, 12, 1))
    monkeypatch.setattr(doctor, "sys", newer)
    finding = doctor.check_python()
    assert (finding.verdict, finding.found) == ("failed", "3.12.1")


@pytest.mark.parametrize(
    ("line", "verdict"),
    [
        (f"orjson=={metadata.version('orjson')} \\", "ok"),
        ("orjson==0.0.1 \\", "failed"),
        ("no-such-package==1.0 \\", "failed"),
        ("# orjson==0.0.1", "ok"),
    ],
)
def test_packages_are_as_locked(line: str, verdict: Verdict, tmp_path: Path) -> None:
    lock = tmp_path / "requirements.lock"
    lock.write_text(f"{line}\n    --hash=sha256:00\n")
    finding = doctor.check_packages(lock)
    assert finding.verdict == verdict
    assert (finding.fix == "run: make setup") == (verdict == "failed")


@pytest.mark.parametrize(
    ("major", "verdict", "found"),
    [(17, "ok", "17 at"), (11, "failed", "11 at"), (None, "failed", "broken at")],
)
def test_java(
    major: int | None, verdict: Verdict, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "find_java", lambda: Path("java"))
    monkeypatch.setattr(doctor, "java_major", lambda _: major)
    finding = doctor.check_java()
    assert finding.verdict == verdict
    assert finding.found.startswith(found)


def test_no_java(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_java", lambda: None)
    finding = doctor.check_java()
    assert (finding.verdict, finding.found) == ("failed", "none")
    assert "JAVA_HOME" in finding.fix


@pytest.mark.parametrize(
    ("output", "damaged", "verdict"),
    [
        ("Apache Maven 3.9.9 (x)", ["a.jar"], "ok"),
        ("Apache Maven 3.10.0", ["a.jar"], "ok"),
        ("Apache Maven 3.5.4", ["a.jar"], "failed"),
        ("", ["a.jar"], "failed"),
        ("", [], "warning"),
    ],
)
def test_maven_is_needed_only_for_missing_jars(
    output: str, damaged: list[str], verdict: Verdict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "first_output", lambda _: output)
    monkeypatch.setattr(doctor.jars, "damaged", lambda: damaged)
    assert doctor.check_maven().verdict == verdict


def test_damaged_jars_are_named_but_not_all_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.jars, "damaged", lambda: ["a", "b", "c", "d"])
    finding = doctor.check_jars()
    assert (finding.verdict, finding.found) == ("failed", "missing or damaged: a, b, c ...")
    monkeypatch.setattr(doctor.jars, "damaged", lambda: [])
    assert doctor.check_jars().verdict == "ok"


def test_thread_mode_needs_pemja(monkeypatch: pytest.MonkeyPatch) -> None:
    find = doctor.importlib.util.find_spec
    monkeypatch.setattr(
        doctor.importlib.util, "find_spec", lambda name: None if name == "pemja" else find(name)
    )
    finding = doctor.check_thread_mode()
    assert finding.verdict == "failed"
    assert "pemja" in finding.found


@pytest.mark.parametrize("check", [doctor.check_kafka_port, doctor.check_model_server_port])
def test_a_taken_port_is_a_warning(
    check: Callable[[int], Finding], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor.kafka_broker.KafkaBroker, "status", lambda _: None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        finding = check(port)
    assert (finding.verdict, finding.found) == ("warning", "taken")
    assert "STREAMSCORE_" in finding.fix
    assert check(port).found == "free"


def test_the_local_brokers_own_port_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    state = doctor.kafka_broker.BrokerState(1, 0.0, "127.0.0.1:9092")
    monkeypatch.setattr(doctor.kafka_broker.KafkaBroker, "status", lambda _: state)
    finding = doctor.check_kafka_port(9092)
    assert (finding.verdict, finding.found) == ("ok", "the local broker's")


@pytest.mark.parametrize(("free_gib", "verdict"), [(4, "ok"), (3.9, "failed")])
def test_memory(free_gib: float, verdict: Verdict, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = SimpleNamespace(available=free_gib * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    assert doctor.check_memory().verdict == verdict


@pytest.mark.parametrize(("free_gib", "verdict"), [(5, "ok"), (4.9, "failed")])
def test_disk_of_a_folder_that_is_not_made_yet(
    free_gib: float, verdict: Verdict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def usage(folder: Path) -> SimpleNamespace:
        asked.append(folder)
        return SimpleNamespace(free=free_gib * GIB)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    assert doctor.check_disk(tmp_path / "not" / "yet").verdict == verdict
    assert asked == [tmp_path]


def test_a_clock_before_the_demos_events_fails() -> None:
    assert doctor.check_clock(lambda: 0.0).verdict == "failed"
    assert doctor.check_clock(lambda: 1_900_000_000.0).verdict == "ok"


def test_only_a_failure_makes_a_machine_unready() -> None:
    ok, warning = Finding("a", "ok", "x"), Finding("b", "warning", "y", "z")
    assert doctor.is_ready(doctor.examine((lambda: ok, lambda: warning)))
    assert not doctor.is_ready([ok, Finding("c", "failed", "y", "z")])


def test_findings_as_json_and_as_a_table() -> None:
    findings = [Finding("a", "ok", "x"), Finding("b", "failed", "y", "do this")]
    document = orjson.loads(orjson.dumps(doctor.as_json(findings)))
    assert document["ready"] is False
    assert document["checks"][1] == {
        "name": "b",
        "verdict": "failed",
        "found": "y",
        "fix": "do this",
    }
    with console.capture() as shown:
        console.print(findings_table(findings))
    assert "do this" in shown.get()
