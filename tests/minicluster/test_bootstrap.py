"""A job that begins with a history's state has the features of one that had seen all of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from jobs import manifest, runner
from jobs.features import history
from jobs.features.bootstrap import bootstrap
from jobs.features.history import Past
from jobs.settings import Settings
from tests.support import cards, oracle
from tests.support.checks import accepted, check_schemas, own_order
from tests.support.fixtures import MakeSettings
from tests.support.kafka import Record, Traffic
from tests.support.running import learn
from udfs.offline.history import silent

pytestmark = [pytest.mark.minicluster, pytest.mark.kafka, pytest.mark.timeout(300)]

PARTITIONS = 4
LATENESS_D = 30
JOB = {
    "model.embedded": True,
    "batch.buckets": 2,
    "flink.parallelism": 2,
    "event.time.allowed_lateness": f"{LATENESS_D}d",  # partitions are read out of step
    "topics.partitions": PARTITIONS,
}


def from_kafka(settings: Settings, _known: pd.DataFrame, _folder: Path) -> Past:
    return history.of_topics(settings, {}, silent)


def from_file(settings: Settings, known: pd.DataFrame, folder: Path) -> Past:
    data = folder / "history.parquet"
    known.to_parquet(data)
    return history.of_file(settings, data, None, silent)


def records(frame: pd.DataFrame) -> list[Record]:
    """Events that Kafka has got at their own time."""
    made = cards.event_records(frame, PARTITIONS)
    times = frame["event_time_ms"].tolist()
    return [r._replace(time_ms=time_ms) for r, time_ms in zip(made, times, strict=True)]


@pytest.mark.parametrize("read", [from_kafka, from_file])
def test_a_bootstrapped_job_has_seen_it_all(
    read: Callable[[Settings, pd.DataFrame, Path], Past],
    make_settings: MakeSettings,
    demo: pd.DataFrame,
    tmp_path: Path,
) -> None:
    frame = demo[demo["terminal_id"] < "m00060"].sort_values("event_time_ms", kind="stable")
    cut = int(len(frame) * 0.7)
    known, rest = frame.iloc[:cut], frame.iloc[cut:]
    settings = make_settings(JOB)
    labels = cards.label_records(frame, PARTITIONS)
    with Traffic(settings) as traffic:
        traffic.send(*records(known))
        if read is from_kafka:
            traffic.send_labels(labels)
        steps: dict[str, float] = {}
        past = read(settings, known, tmp_path)
        done = bootstrap(settings, past, tmp_path / "savepoints", steps.__setitem__)
        assert steps == {"Making histories": 1.0, "Writing the savepoint": pytest.approx(0.9)}
        assert (done.events, done.repeats, done.refused) == (len(known), 0, 0)
        begin = manifest.from_savepoint(settings, str(done.savepoint))
        job = runner.start(settings, None, begin)
        try:
            job.wait_running()
            overlap = 0
            if read is from_file:
                learn(job, traffic, labels)
                overlap = count_after(known, done.until_ms - LATENESS_D * cards.DAY_MS)
            places = traffic.send(*records(rest))
            traffic.poll_until(lambda: traffic.accounted >= set(places), 120)
        finally:
            job.cancel()
        traffic.read_to_end()
    check_schemas(traffic.outputs, every=20)
    predictions = traffic.outputs["predictions"]
    assert len(predictions) == len(rest)
    assert len(traffic.outputs["duplicates"]) == overlap
    refused = [out.document["source"]["topic"] for out in traffic.outputs["dead_letters"]]
    assert settings.topics.events not in refused
    assert not any("warming" in out.document for out in predictions)  # 52 days are known
    seen = [r.value or b"" for r in records(known)] + accepted(traffic.sent, predictions)
    early = pd.DataFrame({key: np.arange(-len(known), 0) for key in ("card_id", "terminal_id")})
    order = pd.concat([early, own_order(predictions)], ignore_index=True)
    expected = oracle.recompute(seen, order, cards.documents(labels))
    tail = expected.iloc[len(known) :].reset_index(drop=True)
    assert oracle.differences(tail, [out.document["features"] for out in predictions]) == []
    assert (tail["card_count_7d"] > tail["card_count_24h"]).mean() > 0.3
    assert tail["terminal_fraud_rate_mean_30d"].notna().mean() > 0.8


def count_after(frame: pd.DataFrame, time_ms: int) -> int:
    return int((frame["event_time_ms"] >= time_ms).sum())
