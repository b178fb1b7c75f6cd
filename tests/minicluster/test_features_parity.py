"""``streamscore features parity`` and ``explain`` after a real job on a real broker.

The input comes in disorder over four partitions, with events too late to be exact, repeats and
spoilt records; each fault that is put into the topics afterwards is found and named.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import orjson
import pandas as pd
import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from typer.testing import CliRunner, Result

from jobs import cli
from jobs.exit_codes import ExitCode
from jobs.settings import Settings, as_yaml
from tests.support import cards
from tests.support.cards import MINUTE_MS, Mixture
from tests.support.fixtures import MakeSettings
from tests.support.kafka import Out, Traffic
from tests.support.running import learn, running

pytestmark = [pytest.mark.minicluster, pytest.mark.kafka, pytest.mark.timeout(600)]

PARTITIONS = 4
runner = CliRunner(env={"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "250"})


def features(*words: str) -> Result:
    return runner.invoke(cli.app, ["features", *words])


def parity(conf: str) -> dict[str, Any]:
    done = features("parity", conf, "--json")
    found: dict[str, Any] = json.loads(done.stdout)
    assert done.exit_code == (ExitCode.OK if found["is_equal"] else ExitCode.FAILED)
    return found


def scored(settings: Settings, frame: pd.DataFrame) -> list[Out]:
    """Run the job over the frame, disturbed; its predictions."""
    mixture = Mixture(frame, seed=4, partitions=PARTITIONS, disorder_ms=40 * MINUTE_MS, each=50)
    with Traffic(settings) as traffic:
        with running(settings) as job:
            learn(job, traffic, cards.label_records(frame, PARTITIONS))
            traffic.pump(mixture.records, mixture.needed(60 * MINUTE_MS))
            traffic.wait_accounted()
        traffic.read_to_end()
        return traffic.outputs["predictions"]


def write(settings: Settings, topic: str, out: Out, document: dict[str, Any]) -> None:
    """Write a prediction again, where its first is."""
    producer = Producer({"bootstrap.servers": settings.kafka.bootstrap_servers})
    producer.produce(topic, orjson.dumps(document), out.key)
    assert producer.flush(30) == 0


def test_a_job_s_predictions_are_what_its_topics_give(
    make_settings: MakeSettings, demo: pd.DataFrame, tmp_path: Path
) -> None:
    frame = demo[demo["terminal_id"] < "m00060"]
    assert len(frame) > 3_000
    settings = make_settings(
        {
            "model.embedded": True,
            "batch.buckets": 2,
            "flink.parallelism": 2,
            "event.time.allowed_lateness": "5m",
        }
    )
    predictions = scored(settings, frame)
    conf = tmp_path / "job.yaml"
    conf.write_text(as_yaml(settings), encoding="utf-8")

    found = parity(str(conf))
    assert found["first"] == []
    assert found["is_equal"]
    columns = len(settings.schema_.columns)
    assert found["compared"] == found["predictions"] == len(frame)
    assert found["values"] == len(frame) * columns
    assert found["late"] > 10
    assert found["unscored"] == 100  # 50 repeats, 50 contradictions

    chosen = predictions[len(predictions) // 2]
    document = chosen.document
    explained = features("explain", str(conf), document["event_id"], "--json")
    assert explained.exit_code == ExitCode.OK
    for feature in json.loads(explained.stdout)["features"]:
        name = feature["feature"]["name"]
        assert feature["predicted"] == document["features"][name]
        if feature["feature"]["aggregate"] == "count":
            assert len(feature["entries"]) == document["features"][name]

    check_a_changed_prediction(settings, str(conf), chosen)
    check_a_dropped_event(settings, str(conf), predictions)


def check_a_changed_prediction(settings: Settings, conf: str, chosen: Out) -> None:
    document = chosen.document
    changed = document["features"] | {"card_sum_24h": document["features"]["card_sum_24h"] + 0.01}
    topic = settings.topics.predictions
    write(settings, topic, chosen, document | {"features": changed})
    found = parity(conf)
    assert found["by_feature"] == {"card_sum_24h": 1}
    (first,) = found["first"]
    assert first["event_id"] == document["event_id"]
    assert first["feature"] == "card_sum_24h"
    shown = features("parity", conf)
    assert shown.exit_code == ExitCode.FAILED
    assert f"{document['event_id']} (" in shown.stdout
    write(settings, topic, chosen, document)
    assert parity(conf)["is_equal"]


def check_a_dropped_event(settings: Settings, conf: str, predictions: list[Out]) -> None:
    """Kafka can drop the first records of a partition only: up to one that has a prediction."""
    first = min(out.place[1] for out in predictions if out.place[0] == 0)
    admin = AdminClient({"bootstrap.servers": settings.kafka.bootstrap_servers})
    place = TopicPartition(settings.topics.events, 0, first + 1)
    for future in admin.delete_records([place]).values():
        future.result()
    found = parity(conf)
    assert not found["is_equal"]
    assert found["without_event"] == 1
    (gone,) = [d for d in found["first"] if not d["feature"]]
    assert (gone["partition"], gone["offset"]) == (0, first)
    assert f"the topic begins at {first + 1}" in gone["cause"]
    assert all(
        f"0/{first} is gone by retention" in d["cause"] for d in found["first"] if d["feature"]
    )
