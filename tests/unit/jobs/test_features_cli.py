"""``streamscore features``: what each command prints, and its exit code."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs import cli, kafka_topics, settings
from jobs.console import console
from jobs.environment import ROOT
from jobs.exit_codes import ExitCode
from jobs.features import topics as feature_topics
from jobs.features.columns import Source
from jobs.settings import Settings
from tests.support.recorded_case import Case, make_case

FRAUD = str(ROOT / "conf" / "fraud.yaml")
COLUMNS = settings.load(FRAUD).schema_.columns
runner = CliRunner(env={"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "250"})


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """The console has the width that it was made with, by whichever test came first."""
    monkeypatch.setattr(console, "width", 250)


def test_list_has_a_row_for_each_feature() -> None:
    done = runner.invoke(cli.app, ["features", "list", FRAUD])
    assert done.exit_code == 0
    assert all(f" {column} " in done.stdout for column in COLUMNS)
    as_json = json.loads(runner.invoke(cli.app, ["features", "list", FRAUD, "--json"]).stdout)
    assert tuple(row["name"] for row in as_json) == COLUMNS
    assert as_json[-1] | {"meaning": "", "unit": "", "missing": "", "cost": ""} == {
        "name": "terminal_fraud_rate_mean_30d",
        "kind": "window",
        "stage": "terminal_id",
        "stream": "labels",
        "aggregate": "mean",
        "window": "30d",
        "reads": "is_fraud",
        "where": "",
        "delay": "7d",
        "meaning": "",
        "unit": "",
        "missing": "",
        "cost": "",
    }


def test_docs_are_printed_or_written(tmp_path: Path) -> None:
    done = runner.invoke(cli.app, ["features", "docs", FRAUD])
    assert done.stdout.startswith("# Features of fraud\n")
    page = tmp_path / "features.html"
    done = runner.invoke(
        cli.app, ["features", "docs", FRAUD, "--format", "html", "--out", str(page)]
    )
    assert done.exit_code == 0
    assert page.read_text().startswith("<!doctype html>")
    nowhere = str(tmp_path / "no" / "folder.md")
    done = runner.invoke(cli.app, ["features", "docs", FRAUD, "--out", nowhere])
    assert done.exit_code == ExitCode.USAGE


def test_size_prints_both_tables_or_json() -> None:
    words = ["features", "size", FRAUD, "--keys", "1000", "--events-per-day-per-key", "1"]
    done = runner.invoke(cli.app, words)
    assert done.exit_code == 0
    assert "Histories of 1,000 keys" in done.stdout and "Journals" in done.stdout
    document = json.loads(runner.invoke(cli.app, [*words, "--json"]).stdout)
    assert document["keys"] == 1_000
    assert len(document["histories"]) == 3


@pytest.mark.parametrize("command", ["list", "docs", "size", "parity"])
def test_a_refused_settings_file(command: str, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("name: x\nkafak: {}\n", encoding="utf-8")
    done = runner.invoke(cli.app, ["features", command, str(wrong)])
    assert done.exit_code == ExitCode.CONFIG_REFUSED
    assert "kafak" in done.stderr


@pytest.fixture
def case(monkeypatch: pytest.MonkeyPatch) -> Case:
    """The commands read its topics, and have its settings."""
    found = make_case(200)

    def read(chosen: Settings, _properties: object, _progress: object) -> Source:
        return feature_topics.collect(chosen, found.topics)

    monkeypatch.setattr(feature_topics, "read", read)
    monkeypatch.setattr(settings, "load", lambda *_: found.settings)
    return found


def test_parity_s_exit_code_is_its_verdict(case: Case) -> None:
    done = runner.invoke(cli.app, ["features", "parity", FRAUD])
    assert done.exit_code == 0
    assert "200 predictions" in done.stdout and ": 0 differences" in done.stdout
    document = case.predictions()[120]
    features = document["features"] | {"amount": -1.0}
    case.write_prediction(document | {"features": features})
    done = runner.invoke(cli.app, ["features", "parity", FRAUD])
    assert done.exit_code == ExitCode.FAILED
    assert f"{document['event_id']} (" in done.stdout
    found = json.loads(runner.invoke(cli.app, ["features", "parity", FRAUD, "--json"]).stdout)
    assert found["by_feature"] == {"amount": 1}


def test_explain_shows_the_entries(case: Case) -> None:
    document = case.predictions()[150]
    words = ["features", "explain", FRAUD, document["event_id"]]
    done = runner.invoke(cli.app, words)
    assert done.exit_code == 0
    assert all(column in done.stdout for column in case.settings.schema_.columns)
    done = runner.invoke(cli.app, [*words, "--feature", "card_count_24h"])
    assert done.stdout.count(document["event_id"]) >= 2
    done = runner.invoke(cli.app, [*words, "--feature", "nothing"])
    assert done.exit_code == ExitCode.USAGE
    done = runner.invoke(cli.app, [*words[:3], "nobody"])
    assert done.exit_code == ExitCode.FAILED
    assert "nobody" in done.stderr


def test_without_a_broker_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    soon = partial(kafka_topics.topic_partitions, timeout_s=1.0)
    monkeypatch.setattr(feature_topics, "topic_partitions", soon)
    chosen = settings.load(FRAUD, {"kafka.bootstrap_servers": "127.0.0.1:1"})
    with pytest.raises(feature_topics.TopicError, match=r"no broker answers at 127\.0\.0\.1:1"):
        feature_topics.read(chosen, {}, lambda *_: None)


def test_a_property_has_a_name() -> None:
    done = runner.invoke(cli.app, ["features", "parity", FRAUD, "--kafka-property", "nonsense"])
    assert done.exit_code == ExitCode.USAGE
