"""A Kinesis stream in place of the events' topic: settings and wiring; there is no connector."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs import inputs, job_jars, sources
from jobs.environment import ROOT, NotReadyError
from jobs.settings import Settings, load, masked
from jobs.settings_file import MASK, SettingsError

KINESIS: dict[str, Any] = {
    "kinesis.stream_arn": "arn:aws:kinesis:eu-central-1:123456789012:stream/readings",
    "kinesis.region": "eu-central-1",
    "kinesis.jar": "jars/flink-sql-connector-aws-kinesis-streams.jar",
    "kafka.keyed_by_record_key": False,
}


def settings_with(**changes: Any) -> Settings:
    return load(ROOT / "conf" / "iot.yaml", KINESIS | changes)


def test_the_source_is_the_stream_s_table() -> None:
    options = inputs._events_options(settings_with(**{"kinesis.start": "latest"}), None)
    sql = sources.source_table("events", options)
    for part in (
        "'connector' = 'kinesis'",
        "'stream.arn' = 'arn:aws:kinesis:eu-central-1:123456789012:stream/readings'",
        "'aws.region' = 'eu-central-1'",
        "'source.init.position' = 'LATEST'",
        "'format' = 'raw'",
        "METADATA FROM 'shard-id' VIRTUAL",
        "METADATA FROM 'sequence-number' VIRTUAL",
        "METADATA FROM 'timestamp' VIRTUAL",
    ):
        assert part in sql
    for column in ("payload", "kafka_partition", "kafka_offset", "kafka_time", "arrival"):
        assert f"`{column}`" in sql, "the view of the micro-batches reads it"
    assert "record_key" not in sql


def test_without_it_the_source_is_the_topic() -> None:
    options = inputs._events_options(load(ROOT / "conf" / "iot.yaml"), None)
    assert options["connector"] == "kafka"
    assert "`record_key` BYTES" in sources.source_table("events", options)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"kafka.keyed_by_record_key": True}, "kafka.keyed_by_record_key: the connector"),
        ({"kafka.stop_at_end": True}, "kafka.stop_at_end: a Kinesis stream has no end"),
        ({"kinesis.options": {"aws.secretKey": "x"}}, "a secret in the file"),
    ],
)
def test_what_the_connector_cannot_do_is_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint):
        settings_with(**changes)


def test_a_secret_of_the_connector_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET", "hidden")
    chosen = settings_with(**{"kinesis.options": {"aws.secretKey": "${AWS_SECRET}"}})
    assert masked(chosen)["kinesis"]["options"] == {"aws.secretKey": MASK}


def test_the_jar_goes_with_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_jars, "flink_jars", lambda: [])
    jar = tmp_path / "kinesis.jar"
    settings = settings_with(**{"kinesis.jar": str(jar)})
    with pytest.raises(NotReadyError, match="there is no"):
        job_jars.jars_of(settings)
    jar.touch()
    assert job_jars.jars_of(settings) == [jar]
