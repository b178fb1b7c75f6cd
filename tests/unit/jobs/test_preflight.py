"""What is missing is said before the job is submitted, with the command that helps."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from jobs import preflight, settings
from jobs.environment import ROOT, NotReadyError
from jobs.kafka_topics import StackError, partitions_of
from jobs.settings import Settings

CONF = ROOT / "conf" / "fraud.yaml"


def chosen(folder: Path, **overrides: Any) -> Settings:
    given = {"model.path": str(folder), "kafka.bootstrap_servers": "127.0.0.1:9092"}
    return settings.load(CONF, given | {k.replace("__", "."): v for k, v in overrides.items()})


@pytest.fixture
def models(tmp_path: Path) -> Path:
    (tmp_path / "fraud" / "1").mkdir(parents=True)
    return tmp_path


@pytest.fixture
def kafka(monkeypatch: pytest.MonkeyPatch, models: Path) -> dict[str, int]:
    topics = dict(partitions_of(chosen(models).topics))
    monkeypatch.setattr(preflight, "topic_partitions", lambda *_, **__: topics)
    return topics


@pytest.fixture
def no_kafka(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(bootstrap: str, **_: float) -> dict[str, int]:
        raise StackError(f"no broker answers at {bootstrap}", "other")

    monkeypatch.setattr(preflight, "topic_partitions", refuse)


def fix_of(given: Settings) -> str:
    with pytest.raises(NotReadyError) as found:
        preflight.check(given, CONF)
    return found.value.fix


def test_no_model(tmp_path: Path, kafka: dict[str, int]) -> None:
    assert "streamscore train --config" in fix_of(chosen(tmp_path / "none"))


def test_no_such_version(models: Path, kafka: dict[str, int]) -> None:
    assert "streamscore train" in fix_of(chosen(models, model__version=7))


def test_no_local_broker(models: Path, no_kafka: None) -> None:
    assert "streamscore stack up --config" in fix_of(chosen(models))


def test_no_distant_broker(models: Path, no_kafka: None) -> None:
    given = chosen(models, kafka__bootstrap_servers="kafka.example:9092")
    assert fix_of(given) == "correct kafka.bootstrap_servers"


def test_missing_topics_are_named(models: Path, kafka: dict[str, int]) -> None:
    del kafka["fraud-labels"], kafka["fraud-alerts"]
    with pytest.raises(NotReadyError, match="missing: fraud-labels, fraud-alerts") as found:
        preflight.check(chosen(models), CONF)
    assert found.value.fix.startswith("streamscore stack up")


def test_a_cluster_with_a_login_is_not_asked(models: Path, no_kafka: None) -> None:
    properties = {"security.protocol": "SASL_SSL"}
    given = chosen(models, kafka__properties=properties, model__embedded=True)
    assert preflight.check(given, CONF) == []


def test_no_model_server_is_a_warning(models: Path, kafka: dict[str, int]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but nobody listens
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        (warning,) = preflight.check(chosen(models, model__server=address), CONF)
    assert "streamscore serve" in warning
    assert "fallback" in warning


def test_all_is_there(models: Path, kafka: dict[str, int]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert preflight.check(chosen(models, model__server=address), CONF) == []


def test_an_embedded_model_needs_no_server(models: Path, kafka: dict[str, int]) -> None:
    assert preflight.check(chosen(models, model__embedded=True), CONF) == []
