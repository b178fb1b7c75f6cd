"""A replay to topics of its own, and a reader that follows a cutover there and back."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from pathlib import Path

import orjson
import pandas as pd
import pytest
from typer.testing import CliRunner

from jobs import cli, runner
from jobs.exit_codes import ExitCode
from jobs.settings import Settings, as_yaml
from jobs.versions.naming import control_topic, versioned
from jobs.versions.reader import Prediction, VersionReader
from jobs.versions.topics import make_topics
from tests.support import cards
from tests.support.fixtures import MakeSettings
from tests.support.kafka import Traffic
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.minicluster, pytest.mark.kafka, pytest.mark.timeout(300)]

PARTITIONS = 2
BATCH = 300
commands = CliRunner(env={"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "250"})


class Following(threading.Thread):
    """A reader that commits after each poll and takes what comes, until it is told to stop."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(daemon=True)
        self.found: list[Prediction] = []
        self.ending = threading.Event()
        topics = settings.topics.predictions, control_topic(settings)
        options = {"bootstrap.servers": settings.kafka.bootstrap_servers}
        self._reader = VersionReader(options, *topics, group=f"{settings.name}-reader")
        self.start()

    def run(self) -> None:
        with self._reader as reader:
            while not self.ending.is_set():
                self.found += reader.poll(0.05)
                reader.commit()

    def stop(self) -> None:
        self.ending.set()
        self.join(30)

    @property
    def versions(self) -> dict[str, str]:
        return {p.document["event_id"]: p.version for p in self.found}


def cutover(conf: Path, *words: str) -> tuple[int, dict[str, object]]:
    done = commands.invoke(cli.app, ["cutover", str(conf), *words, "--json"])
    assert done.exit_code in (ExitCode.OK, ExitCode.FAILED), done.output
    return done.exit_code, orjson.loads(done.stdout)


def test_readers_move_to_a_replayed_version_and_back(
    make_settings: MakeSettings, demo: pd.DataFrame, tmp_path: Path
) -> None:
    settings = make_settings({"model.embedded": True, "topics.partitions": PARTITIONS})
    conf = tmp_path / "job.yaml"
    conf.write_text(as_yaml(settings), encoding="utf-8")
    frame = demo[demo["terminal_id"] < "m00060"].head(4 * BATCH)
    records = cards.event_records(frame, PARTITIONS)
    ids = frame["transaction_id"].tolist()
    own = versioned(settings, "v2")
    with ExitStack() as stack:
        traffic = stack.enter_context(Traffic(settings))
        make_topics(settings, own, {"bootstrap.servers": settings.kafka.bootstrap_servers})
        job = runner.start(settings)
        stack.callback(job.cancel)
        job.wait_running()
        reader = Following(settings)
        stack.callback(reader.stop)
        traffic.send(*records[:BATCH])
        traffic.wait_accounted()
        wait_until(lambda: len(reader.found) == BATCH, 60, "the first version's predictions")

        code, seen = cutover(conf, "--to", "v2", "--wait", "0")
        assert code == ExitCode.FAILED  # nobody has replayed yet
        assert seen["seen"]["new_missing"] == BATCH  # type: ignore[index]

        replayed = runner.start(own)
        stack.callback(replayed.cancel)
        replayed.wait_running()
        traffic.send(*records[BATCH : 2 * BATCH])
        traffic.wait_accounted()
        code, seen = cutover(conf, "--to", "v2")
        assert code == ExitCode.OK, seen
        compared = seen["seen"]
        assert isinstance(compared, dict)
        assert (compared["both"], compared["new_missing"]) == (2 * BATCH, 0)
        assert compared["largest_difference"] < 1.0
        traffic.send(*records[2 * BATCH : 3 * BATCH])
        wait_until(lambda: len(reader.found) == 3 * BATCH, 60, "the second version's predictions")

        reader.stop()  # a restart in between loses nothing either
        code, _ = cutover(conf, "--back")
        assert code == ExitCode.OK
        again = Following(settings)
        stack.callback(again.stop)
        traffic.send(*records[3 * BATCH :])
        wait_until(lambda: len(again.found) == BATCH, 60, "the first version's predictions again")
    expected = ["base"] * 2 * BATCH + ["v2"] * BATCH + ["base"] * BATCH
    assert reader.versions | again.versions == dict(zip(ids, expected, strict=True))
    assert len(reader.found) + len(again.found) == len(ids)
