"""A profile's settings are a file's, unless the file has its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from jobs import pipeline, profiles, settings
from jobs.environment import ROOT
from jobs.settings_file import SettingsError

FRAUD = ROOT / "conf" / "fraud.yaml"
NAMES = ("latency", "throughput", "large-state")


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    """conf/fraud.yaml without its own Flink settings and window."""
    document = yaml.safe_load(FRAUD.read_text())
    del document["flink"], document["batch"]["window"]
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def test_the_settings_name_the_profiles_that_there_are() -> None:
    assert tuple(profiles.section("profiles")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_profile_is_taken_whole(conf: Path, name: str) -> None:
    loaded = settings.load(conf, {"flink.profile": name})
    profile = profiles.section("profiles")[name]
    assert loaded.flink.options == profile["options"]
    written = yaml.safe_load(settings.as_yaml(loaded))
    for dotted, value in profile["settings"].items():
        part, _, field = dotted.partition(".")
        expected = settings.load(conf, {dotted: value})
        assert written[part][field] == yaml.safe_load(settings.as_yaml(expected))[part][field]


def test_own_settings_and_options_win(conf: Path) -> None:
    own = {
        "flink.profile": "large-state",
        "flink.state_backend": "hashmap",
        "batch.window": "5ms",
        "flink.options": {"execution.checkpointing.timeout": "1 min", "my.own": "1"},
    }
    loaded = settings.load(conf, own)
    assert loaded.flink.state_backend == "hashmap"
    assert loaded.batch.window == 5
    assert loaded.flink.checkpoint_interval == 300_000
    assert loaded.flink.options["execution.checkpointing.timeout"] == "1 min"
    assert loaded.flink.options["my.own"] == "1"
    assert "execution.checkpointing.incremental" in loaded.flink.options


def test_flink_gets_the_options(conf: Path) -> None:
    pytest.importorskip("pyflink")
    loaded = settings.load(conf, {"flink.profile": "throughput"})
    options = loaded.flink.options
    assert options["execution.buffer-timeout.interval"] == "20 ms"
    assert pipeline.flink_options(loaded)["execution.buffer-timeout.interval"] == "20 ms"
    assert pipeline.flink_options(loaded)["execution.checkpointing.unaligned.enabled"] == "true"


def test_an_unknown_profile_is_refused(conf: Path) -> None:
    with pytest.raises(SettingsError, match=r"flink\.profile"):
        settings.load(conf, {"flink.profile": "quick"})


def test_a_transaction_outlives_two_checkpoints(conf: Path) -> None:
    given = {"flink.delivery": "exactly_once", "flink.checkpoint_interval": "10m"}
    with pytest.raises(SettingsError, match=r"flink\.transaction_timeout: must be at least"):
        settings.load(conf, given)
    settings.load(conf, given | {"flink.transaction_timeout": "20m"})
