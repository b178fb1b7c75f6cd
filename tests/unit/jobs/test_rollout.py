"""`streamscore rollout`, which writes the file that a job follows."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from jobs import cli, settings
from jobs.exit_codes import ExitCode
from jobs.settings_file import SettingsError
from udfs.scoring.rollout import Address, Rollout

ROOT = Path(__file__).parents[3]


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    document = yaml.safe_load((ROOT / "conf" / "fraud.yaml").read_text())
    document["model"]["rollout"] = str(tmp_path / "rollouts" / "fraud.json")
    path = tmp_path / "fraud.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def run(conf: Path, *words: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli.app, ["rollout", *words, "--config", str(conf)])
    return done.exit_code, done.output


def test_a_rollout_from_its_start_to_its_end(conf: Path, tmp_path: Path) -> None:
    file = tmp_path / "rollouts" / "fraud.json"
    assert run(conf, "status") == (0, "no rollout\n")
    code, text = run(conf, "start", "--version", "4", "--percent", "5", "--max-psi", "0.1")
    assert (code, "version 4 at the job's own server, 5 % of the keys" in text) == (0, True), text
    begun = Rollout.read(file)
    assert begun is not None and begun.limits.psi == 0.1
    assert begun.canary == Address("", 4, 5.0)
    code, text = run(conf, "start", "--version", "5")
    assert (code, "is running" in text) == (ExitCode.FAILED, True)
    assert run(conf, "set", "--percent", "50")[0] == 0
    changed = Rollout.read(file)
    assert changed is not None and changed.canary == Address("", 4, 50.0)
    assert changed.id == begun.id
    assert run(conf, "promote")[0] == 0
    assert "promoted" in run(conf, "status")[1]
    code, text = run(conf, "start", "--version", "5")
    assert (code, "set model.version" in text) == (ExitCode.FAILED, True)
    assert run(conf, "abort")[0] == 0
    assert "reason: by hand" in run(conf, "status")[1]
    code, text = run(conf, "start", "--shadow-server", "b:8500", "--shadow-percent", "20")
    assert (code, "shadow: the newest version at b:8500, 20 %" in text) == (0, True), text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["start"], "a canary, a shadow or both"),
        (["set", "--percent", "5"], "there is no rollout"),
        (["promote"], "there is no rollout"),
        (["abort"], "there is no rollout"),
    ],
)
def test_what_cannot_be_done_is_refused(conf: Path, words: list[str], said: str) -> None:
    code, text = run(conf, *words)
    assert (code, said in text) == (ExitCode.FAILED, True), text


def test_a_job_without_a_file_says_so() -> None:
    code, text = run(ROOT / "conf" / "fraud.yaml", "status")
    assert (code, "model.rollout is not set" in text) == (ExitCode.CONFIG_REFUSED, True)


def test_an_embedded_model_has_none() -> None:
    with pytest.raises(SettingsError, match="an embedded model has no rollout"):
        settings.load(
            ROOT / "conf" / "fraud.yaml", {"model.embedded": True, "model.rollout": "x.json"}
        )
