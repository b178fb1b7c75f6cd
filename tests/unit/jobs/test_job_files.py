"""The job files wire: settings in, a built pipeline executed. Flink is not started."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from jobs import anomaly, fraud, job_file
from jobs.environment import ROOT
from jobs.settings import Settings
from jobs.settings_file import SettingsError


class Environment:
    """Records what is done to it."""

    def __init__(self) -> None:
        self.done: list[tuple[str, Any]] = []

    def execute(self, name: str) -> None:
        self.done.append(("execute", name))


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Environment:
    made = Environment()

    def configure(settings: Settings) -> tuple[str, Settings]:
        return "configuration of", settings

    def get(configuration: tuple[str, Settings]) -> Environment:
        made.done.append(configuration)
        return made

    def build(env: Environment, settings: Settings) -> None:
        env.done.append(("build", settings))

    monkeypatch.setattr(job_file.pipeline, "flink_configuration", configure)
    monkeypatch.setattr(job_file.pipeline, "build", build)
    monkeypatch.setattr(job_file.StreamExecutionEnvironment, "get_execution_environment", get)
    return made


@pytest.mark.parametrize(
    ("job", "arguments", "path"),
    [
        (fraud, [], ROOT / "conf" / "fraud.yaml"),
        (anomaly, [], ROOT / "conf" / "iot.yaml"),
        (
            fraud,
            ["--config", str(ROOT / "conf" / "examples" / "payments.yaml")],
            ROOT / "conf" / "examples" / "payments.yaml",
        ),
    ],
)
def test_it_builds_the_settings_and_executes_under_their_name(
    environment: Environment, job: ModuleType, arguments: list[str], path: Path
) -> None:
    assert job.main(arguments) == 0
    chosen = job_file.settings.load(path)
    assert environment.done == [
        ("configuration of", chosen),
        ("build", chosen),
        ("execute", chosen.name),
    ]


def test_wrong_settings_never_reach_flink(environment: Environment, tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text("name: x\n", encoding="utf-8")
    with pytest.raises(SettingsError):
        fraud.main(["--config", str(path)])
    assert environment.done == []


@pytest.mark.parametrize("fails", ["build", "execute"])
def test_a_failure_is_not_swallowed(
    environment: Environment, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no")

    target: Any = job_file.pipeline if fails == "build" else environment
    monkeypatch.setattr(target, fails, fail)
    with pytest.raises(RuntimeError, match="no"):
        fraud.main([])


def test_unknown_arguments_are_refused(
    environment: Environment, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        fraud.main(["--speed", "11"])
    assert ended.value.code == 2
    assert "--speed" in capsys.readouterr().err
    assert environment.done == []
