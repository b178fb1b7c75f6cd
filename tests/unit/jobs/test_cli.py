"""The command line: every help teaches, every failure has its exit code and its text on stderr."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner

from jobs import cli, doctor, settings
from jobs.environment import ROOT, NotReadyError
from jobs.exit_codes import ExitCode

FRAUD = str(ROOT / "conf" / "fraud.yaml")
runner = CliRunner(env={"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "200"})


def commands(command: object, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    children = getattr(command, "commands", None)
    if children is None:
        yield words
        return
    for name, child in children.items():
        yield from commands(child, (*words, name))


COMMANDS = list(commands(typer.main.get_command(cli.app)))


@pytest.fixture
def wrong_config(tmp_path: Path) -> str:
    path = tmp_path / "wrong.yaml"
    path.write_text("name: x\nkey: y\nkafak: {}\n", encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_help_teaches_by_an_example_that_parses(words: tuple[str, ...]) -> None:
    done = runner.invoke(cli.app, [*words, "--help"])
    assert done.exit_code == 0
    assert f"streamscore {' '.join(words)}" in " ".join(done.stdout.split("Example:")[1].split())


def test_the_help_documents_every_exit_code() -> None:
    text = " ".join(runner.invoke(cli.app, ["--help"]).stdout.split())
    assert all(f"{code.value} {code.meaning}" in text for code in ExitCode)


@pytest.mark.parametrize("words", [[], ["stack"], ["config"]])
def test_a_group_alone_shows_its_commands(words: list[str]) -> None:
    done = runner.invoke(cli.app, words)
    assert "Usage:" in done.output
    assert done.exit_code == ExitCode.USAGE


@pytest.mark.parametrize("words", [["nonsense"], ["data", "--size", "huge"], ["serve", "--port"]])
def test_a_wrong_command_line(words: list[str]) -> None:
    done = runner.invoke(cli.app, words)
    assert done.exit_code == ExitCode.USAGE
    assert done.stderr and not done.stdout


def takes_config(words: tuple[str, ...]) -> bool:
    command = typer.main.get_command(cli.app)
    for word in words:
        command = command.commands[word]  # type: ignore[attr-defined]
    return any(p.name == "config" for p in command.params)


@pytest.mark.parametrize("words", [w for w in COMMANDS if takes_config(w)], ids=" ".join)
def test_a_refused_settings_file_stops_every_command(
    words: tuple[str, ...], wrong_config: str
) -> None:
    needed = ["--percent", "5"] if words == ("rollout", "set") else []
    done = runner.invoke(cli.app, [*words, *needed, "--config", wrong_config])
    assert done.exit_code == ExitCode.CONFIG_REFUSED
    assert "kafak: unknown setting; did you mean 'kafka'?" in done.stderr
    assert not done.stdout


class TestConfig:
    def test_check_of_a_right_file_is_one_line(self) -> None:
        done = runner.invoke(cli.app, ["config", "check", FRAUD])
        assert done.exit_code == ExitCode.OK
        loaded = settings.load(FRAUD)
        assert done.stdout == (
            f"{FRAUD}: ok; {len(loaded.schema_.columns)} features, 2 keyed stages, "
            f"features hash {loaded.features_hash[:12]}\n"
        )

    @pytest.mark.parametrize("command", ["check", "show"])
    def test_a_wrong_file_is_refused(self, command: str, wrong_config: str) -> None:
        done = runner.invoke(cli.app, ["config", command, wrong_config])
        assert done.exit_code == ExitCode.CONFIG_REFUSED
        assert done.stderr.startswith(f"{wrong_config}: 3 settings refused\n")
        assert not done.stdout

    def test_show_prints_yaml_with_the_defaults(self) -> None:
        shown = yaml.safe_load(runner.invoke(cli.app, ["config", "show", FRAUD]).stdout)
        assert shown["model"]["breaker"] == {"failures": 5, "open_for": "1s", "trial_calls": 1}

    def test_show_reference_needs_no_file(self, wrong_config: str) -> None:
        done = runner.invoke(cli.app, ["config", "show", "--reference", wrong_config])
        assert done.stdout == settings.reference()


class TestDoctor:
    @pytest.mark.parametrize(
        ("verdict", "code"),
        [("ok", ExitCode.OK), ("warning", ExitCode.OK), ("failed", ExitCode.NOT_READY)],
    )
    def test_the_exit_code_says_whether_the_machine_is_ready(
        self, verdict: doctor.Verdict, code: ExitCode, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        findings = [doctor.Finding("Java 17", verdict, "none", "install it")]
        monkeypatch.setattr(doctor, "examine", lambda: findings)
        for words in (["doctor"], ["doctor", "--json"]):
            done = runner.invoke(cli.app, words)
            assert done.exit_code == code
            assert "Java 17" in done.stdout


def test_what_is_missing_ends_in_one_line_with_the_fix(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise NotReadyError("no java found", "install one")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == ExitCode.NOT_READY
    assert capsys.readouterr().err == "no java found\nfix: install one\n"


def test_help_does_not_wait_for_flink() -> None:
    check = "import sys, jobs.cli; print(sorted({'pyflink', 'pandas', 'grpc'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
