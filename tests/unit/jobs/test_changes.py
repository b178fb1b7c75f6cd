"""What new settings do to a job's state, and from what a job starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from jobs import cli, manifest, settings
from jobs.environment import ROOT, NotReadyError
from jobs.exit_codes import ExitCode
from jobs.features.changes import Change, compare, needs_drain
from jobs.manifest import Manifest
from jobs.settings import Settings
from jobs.starting import Position, Start

CONFIG = ROOT / "conf" / "fraud.yaml"
runner = CliRunner(env={"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "250"})

CARD, TERMINAL, RATE = 0, 1, 2
"""Places in features.windows."""


def document() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    return loaded


def fraud(folder: Path, changed: dict[str, Any] | None = None, **overrides: Any) -> Settings:
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(changed or document()), encoding="utf-8")
    return settings.load(path, {k.replace("__", "."): v for k, v in overrides.items()})


def of(changes: Sequence[Change], name: str) -> Change:
    (found,) = (c for c in changes if c.feature == name)
    return found


def test_the_same_settings_keep_everything(tmp_path: Path) -> None:
    changes = compare(fraud(tmp_path), fraud(tmp_path))
    assert {(c.kind, c.effect) for c in changes} == {("unchanged", "keeps")}
    assert len(changes) == len(fraud(tmp_path).schema_.columns)


def test_windows_within_what_is_kept_are_complete_and_longer_ones_start(tmp_path: Path) -> None:
    changed = document()
    changed["features"]["windows"][CARD]["windows"] = ["2h", "24h", "30d"]
    changes = compare(fraud(tmp_path), fraud(tmp_path, changed))
    assert of(changes, "card_sum_24h") == Change(
        "unchanged", "card_sum_24h", "keeps", "its history is there"
    )
    assert (of(changes, "card_sum_2h").kind, of(changes, "card_sum_2h").effect) == (
        "added",
        "keeps",
    )
    longer = of(changes, "card_sum_30d")
    assert (longer.kind, longer.effect) == ("added", "starts")
    assert "go back 169h" in longer.reason  # the lateness of an hour included
    assert of(changes, "card_sum_5m").effect == "lost"


def test_another_value_under_the_same_name_starts(tmp_path: Path) -> None:
    changed = document()
    changed["features"]["windows"][TERMINAL]["value"] = "amount / 100"
    changed["features"]["formulas"] = [{"name": "f", "formula": "terminal_mean_7d / amount"}]
    changes = compare(fraud(tmp_path), fraud(tmp_path, changed))
    mean = of(changes, "terminal_mean_7d")
    assert (mean.kind, mean.effect) == ("altered", "starts")
    assert "no history has 'amount / 100'" in mean.reason
    assert (of(changes, "f").effect, of(changes, "f").reason) == (
        "starts",
        "reads terminal_mean_7d",
    )


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"batch.buckets": 4}, "batch.buckets", "was 2, now 4"),
        ({"event.id": "type"}, "event.id", "duplicates are known by it"),
        ({"labels.id": "type"}, "labels", "stored labels are known by these fields"),
    ],
)
def test_what_cannot_be_read_is_refused(
    tmp_path: Path, change: dict[str, Any], kind: str, words: str
) -> None:
    (found,) = compare(settings.load(CONFIG), settings.load(CONFIG, change))
    assert (found.kind, found.effect) == (kind, "refused")
    assert words in found.reason


def test_another_key_is_refused(tmp_path: Path) -> None:
    changed = document()
    changed["key"] = "terminal_id"
    changed["features"]["windows"] = changed["features"]["windows"][:2]
    (found,) = compare(fraud(tmp_path), fraud(tmp_path, changed))
    assert (found.kind, found.effect) == ("key", "refused")


def test_a_stage_that_goes_or_comes(tmp_path: Path) -> None:
    changed = document()
    changed["features"]["windows"] = changed["features"]["windows"][:1]
    more, less = fraud(tmp_path), fraud(tmp_path, changed)
    assert needs_drain(more, less)
    fewer = compare(more, less)
    assert "stop the job with drain" in fewer[0].reason
    assert of(fewer, "terminal_id").effect == "lost"
    wider = compare(less, more)
    assert [c.effect for c in wider if c.kind == "stage"] == ["starts"]
    assert of(wider, "terminal_mean_7d").effect == "starts"
    assert of(wider, "card_sum_7d").effect == "keeps"


def test_the_command_says_it_and_fails_where_it_is_refused(tmp_path: Path) -> None:
    changed = document()
    changed["batch"]["buckets"] = 4
    path = tmp_path / "new.yaml"
    path.write_text(yaml.safe_dump(changed), encoding="utf-8")
    command = ["features", "check-change"]
    done = runner.invoke(cli.app, [*command, str(path), "--old", str(CONFIG)])
    assert done.exit_code == ExitCode.FAILED
    assert "batch.buckets" in done.stdout
    done = runner.invoke(cli.app, [*command, str(CONFIG), "--old", str(CONFIG), "--json"])
    assert done.exit_code == ExitCode.OK
    assert runner.invoke(cli.app, [*command, str(CONFIG)]).exit_code == ExitCode.USAGE


# -- the start ----------------------------------------------------------------------------------


@pytest.fixture
def savepoint(tmp_path: Path) -> Path:
    folder = tmp_path / "savepoint-1"
    folder.mkdir()
    (folder / "_metadata").write_bytes(b"")
    return folder


def test_a_made_savepoint_says_where_to_go_on(savepoint: Path) -> None:
    chosen = settings.load(CONFIG)
    positions = {"transactions": Position({0: 7, 1: 9}), "fraud-labels": Position(time_ms=5)}
    Manifest.of(chosen, positions=positions, made=True).write(savepoint)
    begin = manifest.from_savepoint(chosen, str(savepoint))
    assert begin == Start(savepoint.as_uri(), True, positions)
    assert begin.options["execution.state-recovery.path"] == savepoint.as_uri()
    assert positions["transactions"].options == {
        "scan.startup.mode": "specific-offsets",
        "scan.startup.specific-offsets": "partition:0,offset:7;partition:1,offset:9",
    }
    assert positions["fraud-labels"].options["scan.startup.timestamp-millis"] == "5"


def test_a_savepoint_of_other_settings_is_refused_before_flink_is_asked(savepoint: Path) -> None:
    Manifest.of(settings.load(CONFIG, {"batch.buckets": 4})).write(savepoint)
    with pytest.raises(NotReadyError, match=r"batch\.buckets was 4, now 2"):
        manifest.from_savepoint(settings.load(CONFIG), savepoint.as_uri())


def test_state_is_lost_only_when_asked_for(savepoint: Path, tmp_path: Path) -> None:
    Manifest.of(settings.load(CONFIG)).write(savepoint)
    changed = document()
    changed["features"]["windows"] = changed["features"]["windows"][:1]
    less = fraud(tmp_path, changed)
    with pytest.raises(NotReadyError, match="terminal_id; name --drop-state"):
        manifest.from_savepoint(less, str(savepoint))
    assert manifest.from_savepoint(less, str(savepoint), drops=True).drops


def test_what_is_no_savepoint(tmp_path: Path, savepoint: Path) -> None:
    with pytest.raises(NotReadyError, match="no savepoint"):
        manifest.from_savepoint(settings.load(CONFIG), str(tmp_path))
    plain = manifest.from_savepoint(settings.load(CONFIG), str(savepoint))
    assert plain == Start(savepoint.as_uri())
    far = manifest.from_savepoint(settings.load(CONFIG), "s3://bucket/savepoint-1")
    assert far == Start("s3://bucket/savepoint-1")
    (savepoint / manifest.MANIFEST).write_text("{}", encoding="utf-8")
    with pytest.raises(NotReadyError, match="is broken"):
        manifest.from_savepoint(settings.load(CONFIG), str(savepoint))
