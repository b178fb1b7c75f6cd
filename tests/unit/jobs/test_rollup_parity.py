"""Parity of a job with a roll-up: its readings in a topic, rolled up as its operator does it."""

from __future__ import annotations

from collections import Counter

import orjson
import pytest

from jobs.environment import ROOT
from jobs.features.parity import compare
from jobs.features.replay import silent
from jobs.features.topics import collect
from jobs.settings import Settings, load
from tests.support.flink import Subtask
from tests.support.machines import arrivals
from tests.support.recorded import ArrayJob, Topics
from udfs.batches.routing import Routing
from udfs.rollup.operator import RollupStage

BEGIN_MS = 1_750_000_000_000


@pytest.fixture(scope="module")
def settings() -> Settings:
    return load(ROOT / "conf" / "iot.yaml", {"batch.buckets": 1})


def recorded(settings: Settings) -> tuple[Topics, Counter[str]]:
    """The topics after a job that read them to their end."""
    topics, codes = Topics(), Counter[str]()
    job = ArrayJob(settings, topics)
    rollup = Subtask(RollupStage(settings.schema_, Routing((0,)), "readings", 3_600, 1_000))
    frames = []
    for n, one in enumerate(arrivals(5, 90, BEGIN_MS)):
        partition, raw = int(one["machine"][1:]) % 2, orjson.dumps(one)
        message = topics.append(settings.topics.events, partition, raw, BEGIN_MS + 200 * n)
        text = raw.decode("latin-1")
        frames.append(f"{partition} {message.offset()} {message.time_ms} {len(text)} {text}")
    batches = [" ".join(frames[start : start + 25]) for start in range(0, len(frames), 25)]
    rows = rollup.run_all((0, batch) for batch in batches)
    for _, made in rows + rollup.end():
        codes.update(orjson.loads(record)["code"] for _, record in made.dead_letters)
        if made.events is not None:
            job.take_events(made.events, BEGIN_MS)
    return topics, codes


def test_every_value_of_every_window_is_the_same(settings: Settings) -> None:
    topics, codes = recorded(settings)
    found = compare(settings, collect(settings, topics), None, silent)
    assert found.first == []
    assert found.is_equal and found.unscored == 0
    assert found.compared == len(topics.records[settings.topics.predictions])
    assert codes["late"] and codes["id_conflict"]
    assert found.compared > 40


def test_readings_that_are_gone_show(settings: Settings) -> None:
    topics, _ = recorded(settings)
    del topics.records[settings.topics.events][40:50]
    found = compare(settings, collect(settings, topics), None, silent)
    assert not found.is_equal
