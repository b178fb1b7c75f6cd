"""Canary, shadow, promotion and an automatic abort while one job runs, with two real servers."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import orjson
import pytest

from jobs.settings import load
from tests.support.checks import check_accounts, check_schemas
from tests.support.fixtures import CONFIG, own_overrides
from tests.support.kafka import Out, Record, Traffic
from tests.support.running import restarts, running
from tests.support.servers import FaultyServerProcess, ModelServerProcess
from udfs.scoring.rollout import Address, Limits, Rollout

pytestmark = [pytest.mark.minicluster, pytest.mark.kafka, pytest.mark.timeout(600)]

CARDS = 40
PATIENCE_S = 120
LIMITS = Limits(min_rows=60, latency_ratio=1_000.0)
LOOSE = Limits(min_rows=10**9)

_numbers = count()


class Bench:
    """The job, and the rollout file that it follows."""

    def __init__(self, traffic: Traffic, path: Path) -> None:
        self.traffic = traffic
        self.path = path

    def round(self) -> list[Out]:
        """Send an event of each card; their predictions, in that order."""
        records = []
        for card in range(CARDS):
            value: dict[str, Any] = {
                "transaction_id": f"t{next(_numbers)}",
                "event_time_ms": time.time_ns() // 1_000_000,
                "card_id": f"c{card}",
                "terminal_id": f"m{card}",
                "amount": float(card),
                "type": "CP",
            }
            records.append(Record(0, value["card_id"].encode(), orjson.dumps(value)))
        places = self.traffic.send(*records)
        self.traffic.poll_until(lambda: self.traffic.accounted.issuperset(places), 60)
        predictions = self.traffic.predictions()
        return [predictions[place] for place in places]

    def until(self, so: Callable[[list[Out]], bool]) -> list[Out]:
        """Send rounds until one is as wanted: the job looks at the file each second."""
        deadline_s = time.monotonic() + PATIENCE_S
        while not so(outs := self.round()):
            if time.monotonic() > deadline_s:
                raise AssertionError(f"never so: {self.path.read_text()}, {models(outs)[:3]}")
        return outs


def models(outs: list[Out]) -> list[dict[str, Any]]:
    return [out.document["model"] for out in outs]


def canary_keys(outs: list[Out]) -> set[bytes]:
    return {out.key for out in outs if out.document["model"].get("arm") == "canary"}


def all_marked(outs: list[Out]) -> bool:
    """Whether a rollout was in force for each of them: one may begin within a round."""
    return all("arm" in model for model in models(outs))


def none_running(outs: list[Out]) -> bool:
    return all("arm" not in model for model in models(outs))


@pytest.fixture(scope="module")
def two_versions(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The session's model a second time, as version 2."""
    folder = tmp_path_factory.mktemp("two") / "models"
    for version in ("1", "2"):
        shutil.copytree(models / "fraud" / "1", folder / "fraud" / version)
    return folder


@pytest.fixture(scope="module")
def bench(
    bootstrap: str,
    models: Path,
    two_versions: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Bench, int, FaultyServerProcess]]:
    folder = tmp_path_factory.mktemp("rollout")
    own = own_overrides(bootstrap, models, folder)
    path = folder / "rollout.json"
    with (
        ModelServerProcess(models, folder / "stable.log") as stable,
        ModelServerProcess(two_versions, folder / "canary.log") as canary,
        FaultyServerProcess(folder / "faulty.log") as faulty,
    ):
        overrides = {
            "model.server": f"127.0.0.1:{stable.port}",
            "model.deadline": "5s",
            "model.rollout": str(path),
            "topics.shadow": f"{own['name']}-shadow",
            "batch.buckets": 1,
        }
        settings = load(CONFIG, own | overrides)
        with Traffic(settings) as traffic, running(settings) as job:
            yield Bench(traffic, path), canary.port, faulty
            traffic.wait_accounted()
            assert restarts(job) == 0
            check_accounts(traffic)
            check_schemas(traffic.outputs)


def test_a_canary_grows_is_promoted_and_ends(bench: Any) -> None:
    at, port, _ = bench
    assert none_running(at.round())
    canary = Address(f"127.0.0.1:{port}", 2, 30.0)
    Rollout("grows", "running", canary, None, LOOSE).write(at.path)
    first = at.until(all_marked)
    few = canary_keys(first)
    assert 0 < len(few) < CARDS
    for out in first + at.round() + at.round():  # a card never changes version
        model = out.document["model"]
        expected = ("canary", 2) if out.key in few else ("stable", 1)
        assert (model["arm"], model["version"]) == expected
    Rollout("grows", "running", Address(canary.server, 2, 70.0), None, LOOSE).write(at.path)
    many = canary_keys(at.until(lambda outs: canary_keys(outs) > few))
    assert many > few
    Rollout("grows", "promoted", canary, None, LOOSE).write(at.path)
    promoted = at.until(none_running)
    assert {model["version"] for model in models(promoted)} == {2}
    at.path.unlink()
    at.until(lambda outs: {model["version"] for model in models(outs)} == {1})


def test_a_shadow_is_recorded_and_a_hung_one_harms_nobody(bench: Any) -> None:
    at, port, faulty = bench
    shadows = at.traffic.outputs["shadow"]
    shadow = Address(f"127.0.0.1:{port}", 2, 100.0)
    Rollout("shadow", "running", None, shadow, LOOSE).write(at.path)
    at.until(lambda outs: len(shadows) >= CARDS)
    for out in shadows:
        assert out.document["model"] == {"name": "fraud", "version": 2, "arm": "shadow"}
    by_place = {out.place: out.document["score"] for out in shadows}
    predictions = at.traffic.predictions()
    assert all(predictions[place].document["score"] == score for place, score in by_place.items())
    faulty.behave("slow")
    before = len(shadows)
    Rollout("hung", "running", None, Address(f"127.0.0.1:{faulty.port}"), LOOSE).write(at.path)
    outs = at.until(lambda outs: len(shadows) > before)
    assert none_running(outs)
    assert {out.document["fallback_reason"] for out in outs} == {None}
    at.until(lambda outs: any(o.document["fallback_reason"] == "timeout" for o in shadows[before:]))
    at.path.unlink()
    faulty.behave("well")


@pytest.mark.parametrize(
    ("behaviour", "words"), [("broken", "got no answer"), ("well", "population stability")]
)
def test_a_bad_canary_ends_by_itself(bench: Any, behaviour: str, words: str) -> None:
    at, _, faulty = bench
    faulty.behave(behaviour)
    canary = Address(f"127.0.0.1:{faulty.port}", None, 50.0)
    Rollout(f"bad {behaviour}", "running", canary, None, LIMITS).write(at.path)
    at.until(lambda outs: bool(canary_keys(outs)))
    at.until(none_running)
    ended = Rollout.read(at.path)
    assert ended is not None
    assert (ended.state, words in ended.reason) == ("aborted", True), ended
    after = at.round()
    assert {
        (m["version"], out.document["fallback_reason"])
        for m, out in zip(models(after), after, strict=True)
    } == {(1, None)}
    at.path.unlink()
