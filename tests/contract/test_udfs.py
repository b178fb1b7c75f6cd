"""What every Flink function must keep: shipping, restarts, input purity, independence.

``tests.support.flink`` stands for Flink; the real engine is under test in tests/minicluster and
tests/cluster.
"""

from __future__ import annotations

import copy
import gc
import json
import pickle
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import psutil
import pytest
import xgboost
from pyflink.common import Row
from pyflink.datastream import OutputTag
from skl2onnx import to_onnx
from sklearn.linear_model import LogisticRegression

from model_server.client import ClientOptions
from tests.support.flink import END_MS, EVENT_TIME, PROCESSING_TIME, Stored, Subtask
from tests.support.held import HeldScoring, Switch
from tests.support.models import write_features
from tests.support.purchases import small_index
from tests.support.servers import ModelServerProcess
from tests.support.waiting import wait_until
from udfs.alerting.operator import EpisodeOperator
from udfs.alerting.scored import ScoredBatch
from udfs.batches.batch import FeatureBatch, LabelBatch
from udfs.batches.buckets import sql_buckets
from udfs.batches.categories import code_of
from udfs.batches.records import RecordWriter
from udfs.definition.episode import EpisodeSpec
from udfs.definition.overload import OverloadSpec
from udfs.definition.schema import Schema
from udfs.features.layouts import StateFormatError
from udfs.feedback.join import FeedbackOptions
from udfs.feedback.operator import FeedbackStage
from udfs.operators import FirstStage, LabelReader, NextStage, Routing
from udfs.overload.shedding import is_kept
from udfs.overload.valve import SHED
from udfs.preparation.encoders import OneHot
from udfs.preparation.preparation import Input, Preparation
from udfs.ranking.item_stage import ItemStage
from udfs.ranking.live_popularity import ItemPopularity
from udfs.scoring.embedded import EmbeddedScoring
from udfs.scoring.scoring import Output, Scoring, ServedScoring

BUCKETS = (3, 8)
ROUTING = Routing(BUCKETS)
KAFKA_MS = 1_700_000_000_000
DOCUMENT: dict[str, Any] = {
    "event": {
        "id": "id",
        "time": {"field": "t"},
        "dedupe_within": "1h",
        "fields": [
            *({"name": n, "type": "string"} for n in ("id", "card", "terminal", "kind")),
            {"name": "t", "type": "int"},
            {"name": "amount", "type": "float", "min": 0},
            {"name": "lat", "type": "float", "required": False},
        ],
    },
    "key": "card",
    "labels": {"id": "id", "time": "t", "key": "terminal", "value": "fraud"},
    "features": {
        "expressions": [
            {"name": "amount", "type": "value", "fields": ["amount"]},
            {"name": "lat", "type": "value", "fields": ["lat"]},
            {"name": "kind", "type": "one_hot", "fields": ["kind"], "categories": ["CP"]},
            {"name": "at", "type": "category", "fields": ["terminal"], "encoding": "one_hot"},
        ],
        "windows": [
            {
                "prefix": "card",
                "key": "card",
                "value": "amount",
                "windows": ["1m", "10m"],
                "aggregates": ["count", "sum", "ratio_to_mean"],
            },
            {
                "prefix": "terminal",
                "key": "terminal",
                "value": "amount",
                "windows": ["10m"],
                "aggregates": ["count", "mean"],
            },
            {
                "prefix": "rate",
                "key": "terminal",
                "stream": "labels",
                "value": "fraud",
                "windows": ["1h"],
                "delay": "1m",
                "aggregates": ["count", "mean"],
            },
        ],
    },
}
SCHEMA = Schema.model_validate(DOCUMENT)
ONE_KEY = Schema.model_validate(
    {k: v for k, v in DOCUMENT.items() if k != "labels"}
    | {"features": DOCUMENT["features"] | {"windows": DOCUMENT["features"]["windows"][:1]}}
)
"""The same with one stage, which is the last too."""


@pytest.fixture(scope="module", autouse=True)
def garbage_collector() -> Iterator[None]:
    """Opened functions change how this process collects garbage; other tests get it back."""
    thresholds = gc.get_threshold()
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()


class PassOn:
    """Scores nothing: the last stage's batches as they are, with their bucket."""

    def open(self, runtime_context: Any) -> None:
        pass

    def close(self) -> None:
        pass

    def take(self, bucket: int, batch: FeatureBatch, timers: Any) -> Iterator[Row]:
        yield Row(bucket, batch)

    def on_timer(self, bucket: int, timestamp_ms: int, timers: Any) -> Iterator[Row]:
        raise AssertionError("no timer was set")

    def queue(self, bucket: int) -> float:
        return 0.0


def plain(value: Any) -> Any:
    """Anything that flows between functions as plain values that ``==`` compares; NaN as None."""
    if isinstance(value, FeatureBatch | LabelBatch | ScoredBatch):
        return {name: plain(getattr(value, name)) for name in type(value).__dataclass_fields__}
    if isinstance(value, OutputTag):
        return value.tag_id
    if isinstance(value, np.ndarray):
        return [value.shape, str(value.dtype), plain(value.tolist())]
    if isinstance(value, float):
        return None if value != value else value
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, Row):
        bucket_and_batch = len(value) == 2  # else records, of each sink
        return [plain(v) if bucket_and_batch else [*map(record_of, v)] for v in value]
    return value


def record_of(pair: list[bytes]) -> tuple[str, Any]:
    """A Kafka record: its key, and its JSON without the wall-clock time."""
    assert [type(pair), *map(type, pair)] == [list, bytes, bytes], "not what Flink's types hold"
    key, value = pair
    return key.decode(), untimed(json.loads(value))


TIMED = ("scored_time_ms", "told_time_ms", "shed_time_ms")


def untimed(document: dict[str, Any]) -> dict[str, Any]:
    if "prediction" in document:
        return document | {"prediction": untimed(document["prediction"])}
    return {k: v for k, v in document.items() if k not in TIMED}


# -- streams ------------------------------------------------------------------------------------


def micro_batch(bucket: int, records: list[bytes], first_offset: int) -> tuple[int, str]:
    """What the JVM makes of records; see ``split_batch``."""
    frames = [
        f"0 {first_offset + i} {KAFKA_MS} {len(r)} {r.decode('latin-1')}"
        for i, r in enumerate(records)
    ]
    return bucket, " ".join(frames)


def offsets_of(element: tuple[int, str]) -> list[int]:
    """The offsets of the records in a micro-batch."""
    rest, offsets = element[1], []
    while rest:
        _, offset, _, length, rest = rest.split(" ", 4)
        offsets.append(int(offset))
        rest = rest[int(length) + 1 :]
    return offsets


def a_record(rng: random.Random, number: int, card: str) -> bytes:
    document = {
        "id": f"e{number}",
        "t": KAFKA_MS - 600_000 + number * 1_000 - rng.choice([0, 0, 0, 30_000]),
        "card": card,
        "terminal": f"t{rng.randrange(6)}",
        "kind": rng.choice(["CP", "CNP"]),
        "amount": rng.choice([0.01, 5.0, 99.9, 1e9]),
    }
    if rng.random() < 0.5:
        document["lat"] = 48.5
    return json.dumps(document).encode()


def raw_batches(seed: int, *, batches: int = 14, rows: int = 9) -> list[tuple[int, list[bytes]]]:
    """Buckets and their records: bad ones, repeats and conflicts among the good ones."""
    rng = random.Random(seed)
    sent: dict[int, list[bytes]] = {bucket: [] for bucket in BUCKETS}
    result = []
    for step in range(batches):
        bucket = BUCKETS[step % 2]
        records = []
        for row in range(rows):
            card = f"c{bucket}-{rng.randrange(4)}"
            record = a_record(rng, step * rows + row, card)
            kind = rng.random()
            if kind < 0.1:
                record = rng.choice(
                    [b"", b"\xff\x1e\xfe", b" 0 9 1 2 {} ", record[:-3], b'{"id":"x"}']
                )
            elif kind < 0.25 and sent[bucket]:
                record = rng.choice(sent[bucket])
            elif kind < 0.3 and sent[bucket]:
                record = rng.choice(sent[bucket]).replace(b'"kind"', b'"extra": 1, "kind"')
            else:
                sent[bucket].append(record)
            records.append(record)
        result.append((bucket, records))
    return result


def events(seed: int = 1) -> list[Any]:
    """The first stage's input, with batches of which nothing is left to score."""
    batches = raw_batches(seed)
    bucket, records = batches[0]
    batches.insert(6, (bucket, [r for r in records if r.startswith(b'{"id": "e')][:3]))  # repeats
    batches.insert(9, (bucket, [b"", b"nonsense"]))
    batches.insert(11, (bucket, []))
    return [micro_batch(b, r, 100 * n) for n, (b, r) in enumerate(batches)]


def labels(seed: int = 1) -> list[Any]:
    rng = random.Random(seed)
    result = []
    for step in range(8):
        records = [
            json.dumps(
                {
                    "id": f"e{rng.randrange(40)}",
                    "t": KAFKA_MS - 600_000 + rng.randrange(40) * 1_000,
                    "terminal": f"t{rng.randrange(6)}",
                    "fraud": rng.randrange(2),
                }
            ).encode()
            for _ in range(5)
        ]
        if step % 3 == 1:
            records[rng.randrange(5)] = b'{"id": "late", "fraud": 2}'
        result.append(micro_batch(BUCKETS[0], [] if step == 5 else records, 100 * step))
    return result


def first_stage(**changes: Any) -> FirstStage:
    return FirstStage(**stage_settings("card", **changes))


def next_stage(scoring: Scoring | None = None, **changes: Any) -> NextStage:
    return NextStage(**stage_settings("terminal", scoring=scoring or PassOn(), **changes))


def stage_settings(key: str, **changes: Any) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "key": key,
        "routing": ROUTING,
        "topic": "events",
        "idle_ms": 3_600_000,
        "cached_entries": 1 << 40,
        "journal_events": 20,
    } | changes


def overload(before: str) -> OverloadSpec:
    """Sheds from the first batch on: the records' Kafka time is years ago."""
    formula = "amount < 50 and kind == 'CP'"
    return OverloadSpec(low_priority=formula, keep=0.3, before=before, sustained=0, warm_up=0)


EPISODES = EpisodeSpec(
    entity="card", open_at=2, of_last=3, close_after=300_000, lateness=60_000, last_scores=4
)


def episodes() -> EpisodeOperator:
    return EpisodeOperator(EPISODES, "events", 3_600)


def scored(seed: int = 1) -> list[Any]:
    """Scores of some cards, late ones and fallbacks among them."""
    rng = random.Random(seed)
    batches = []
    for step in range(24):
        n = rng.randrange(1, 9)
        times = [KAFKA_MS + 20_000 * step - rng.choice([0, 0, 30_000, 90_000]) for _ in range(n)]
        values = [rng.choice([0.1, 0.7, 0.9, float("nan")]) for _ in range(n)]
        batch = ScoredBatch(
            [f"c{rng.randrange(3)}" for _ in range(n)],
            np.array(times),
            np.array([(0, 100 * step + row) for row in range(n)]),
            np.array(values),
            np.full(n, 0.5),
            np.full(n, -1),
            np.zeros(n),
            {0: b'[{"feature":"amount","value":1.5,"contribution":0.5}]'},
        )
        batches.append((BUCKETS[step % 2], batch))
    return batches


def label_reader() -> LabelReader:
    return LabelReader(SCHEMA, ROUTING, "labels")


def routed(seed: int = 1) -> list[Any]:
    """The next stage's input: events, labels, and batches without rows."""
    batches = [micro_batch(b, r, 100 * n) for n, (b, r) in enumerate(raw_batches(seed))]
    batches.insert(3, micro_batch(BUCKETS[0], [b"", b"nonsense"], 9_000))
    stream = Subtask(first_stage()).run_all(batches)
    learned = Subtask(label_reader()).run_all(labels(seed))
    rng = random.Random(seed)
    for element in learned:
        stream.insert(rng.randrange(len(stream)), element)
    none = next(b for _, b in stream if isinstance(b, LabelBatch)).select([])
    return [*stream[:5], (BUCKETS[1], none), *stream[5:]]


def scorable(seed: int = 1) -> list[Any]:
    """The scorers' input: batches with all their features, some without rows."""
    return Subtask(next_stage()).run_all(routed(seed))


# -- the functions ------------------------------------------------------------------------------


def prepared(schema: Schema = SCHEMA) -> Preparation:
    """Each feature has its own imputed value; some terminals are known."""
    texts = ("t0", "t1", "t2")
    known = OneHot(texts=texts, codes=tuple(map(code_of, texts)), other=True)
    inputs = [
        Input(name=name, impute=float(n), indicator=name == "lat")
        for n, name in enumerate(schema.columns)
    ]
    at = schema.columns.index("at")
    inputs[at] = Input(name="at", encoding=known, indicator=True)
    return Preparation(inputs)


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with one version of a small model over the schema's columns."""
    return write_model(tmp_path_factory.mktemp("models"), prepared())


def write_model(models_dir: Path, preparation: Preparation) -> Path:
    columns = list(preparation.columns)
    rows = np.random.default_rng(2).random((300, len(columns))).astype(np.float32) * 20
    target = (rows[:, 0] > 5).astype(int)
    matrix = xgboost.DMatrix(rows, target, feature_names=columns)
    params = {"objective": "binary:logistic", "max_depth": 2, "nthread": 1, "eta": 1.0}
    folder = models_dir / "fraud" / "7"
    folder.mkdir(parents=True)
    xgboost.train(params, matrix, num_boost_round=3).save_model(folder / "model.ubj")
    (folder / "features.json").write_text(json.dumps(preparation.document()))
    return models_dir


@pytest.fixture(scope="module")
def output(models_dir: Path) -> Output:
    return output_of(SCHEMA, models_dir)


def output_of(schema: Schema, models_dir: Path) -> Output:
    columns = schema.columns
    preparation = Preparation.load(models_dir / "fraud" / "7")
    writer = RecordWriter("events", columns, schema.stages, 0.5, bool(schema.lookups))
    return Output(writer, preparation, 0.25, True)


@pytest.fixture(scope="module")
def server_port(models_dir: Path) -> Iterator[int]:
    with ModelServerProcess(models_dir, models_dir / "server.log") as server:
        yield server.port


def served(
    port: int, output: Output, *, deadline_ms: float = 20_000.0, switch: Switch | None = None
) -> ServedScoring:
    """At most 4 rows a call, 3 calls in flight."""
    target = f"127.0.0.1:{port}"
    options = ClientOptions(target, "fraud", deadline_ms=deadline_ms, max_attempts=1)
    if switch is not None:
        return HeldScoring(switch, options, output, 4, 3)
    return ServedScoring(options, output, 4, 3)


@dataclass
class Case:
    """A function under the contract: how to make one, and a stream for it by seed.

    What a model server has answered comes in no certain order, and in no certain batches.
    """

    make: Callable[..., Any]
    stream: Callable[[int], list[Any]]
    in_order: bool = True
    opened: list[Subtask] = field(default_factory=list)

    def open(self, stored: Stored | None = None, function: Any = None) -> Subtask:
        subtask = Subtask(self.make() if function is None else function, stored)
        self.opened.append(subtask)
        return subtask

    def plain(self, outputs: list[Any]) -> list[Any]:
        found: list[Any] = plain(outputs)
        if self.in_order:
            return found
        return [sorted((r for row in found for r in row[sink]), key=repr) for sink in range(4)]

    def run_whole(self, subtask: Subtask, seed: int = 1) -> list[Any]:
        return self.plain(subtask.run_all(self.stream(seed)) + subtask.end())

    def expected(self, seed: int = 1) -> list[Any]:
        """What an uninterrupted run gives."""
        return self.run_whole(self.open(), seed)


def feedback_stage() -> FeedbackStage:
    return FeedbackStage(FeedbackOptions(1_000, 200, 5_000), frozenset({"click", "purchase"}))


def feedback(seed: int) -> list[Any]:
    """Impressions, what was shown of them and clicks, of the events and the impressions topic."""
    rng = random.Random(seed)
    elements, offset = [], 0
    for batch in range(12):
        records = []
        for _ in range(6):
            time_ms = KAFKA_MS + 300 * batch + rng.randrange(600)
            request_id = f"r{rng.randrange(2 * batch + 2)}"
            kind = rng.choice(["impression", "shown", "click", "purchase", "request"])
            document = {"kind": kind, "event_time_ms": time_ms, "request_id": request_id}
            document |= {"user": "u", "item": rng.choice("abc")}
            if kind == "impression":
                document["items"] = [{"item": item, "features": [0.5]} for item in "ab"]
            records.append(json.dumps(document).encode())
        records.append(b"{")
        elements.append(micro_batch(rng.choice(BUCKETS), records, offset))
        offset += len(records)
    return elements


KEYED = ["FirstStage", "NextStage"]
SCORING = ["EmbeddedScoring", "ServedScoring"]
SHEDDING = ["FirstStage that sheds", "NextStage that sheds"]


@pytest.fixture(
    params=[*KEYED, "LabelReader", "EpisodeOperator", "FeedbackStage", *SCORING, *SHEDDING]
)
def case(
    request: pytest.FixtureRequest, models_dir: Path, output: Output, server_port: int
) -> Iterator[Case]:
    embedded = EmbeddedScoring(models_dir / "fraud" / "7", "fraud", output)
    made = {
        "FirstStage": Case(first_stage, events),
        "NextStage": Case(next_stage, routed),
        SHEDDING[0]: Case(lambda: first_stage(overload=overload("features")), events),
        SHEDDING[1]: Case(lambda: next_stage(overload=overload("scoring")), routed),
        "LabelReader": Case(label_reader, labels),
        "FeedbackStage": Case(feedback_stage, feedback),
        "EpisodeOperator": Case(episodes, scored),
        "EmbeddedScoring": Case(lambda: next_stage(copy.copy(embedded)), routed),
        "ServedScoring": Case(
            lambda: next_stage(served(server_port, output)), routed, in_order=False
        ),
    }[request.param]
    yield made
    for subtask in made.opened:
        subtask.close()


class TestEveryFunction:
    def test_it_is_shipped_as_pyflink_ships_it(self, case: Case) -> None:
        shipped = cloudpickle.loads(cloudpickle.dumps(case.make()))
        twice = pickle.loads(cloudpickle.dumps(shipped))  # the TaskManager knows no cloudpickle
        expected = case.expected()
        assert expected
        for function in (shipped, twice):
            assert case.run_whole(case.open(function=function)) == expected

    @pytest.mark.parametrize("part", [0.0, 0.25, 0.5, 0.75, 1.0])
    def test_a_restart_changes_no_output(self, case: Case, part: float) -> None:
        stream = case.stream(1)
        cut = int(part * len(stream))
        before = case.open()
        first = before.run_all(stream[:cut])
        after = case.open(before.snapshot())
        rest = after.run_all(stream[cut:]) + after.end()
        assert case.plain(first + rest) == case.expected()

    def test_a_restart_after_every_element_changes_no_output(self, case: Case) -> None:
        stored: Stored = {}
        got = []
        for element in case.stream(1):
            subtask = case.open(stored)
            got += subtask.run(element)
            stored = subtask.snapshot()
        got += case.open(stored).end()
        assert case.plain(got) == case.expected()

    def test_input_is_left_alone(self, case: Case) -> None:
        stream = case.stream(1)
        before = plain(copy.deepcopy(stream))
        subtask = case.open()
        subtask.run_all(stream)
        subtask.end()
        assert plain(stream) == before

    def test_output_given_away_never_changes(self, case: Case) -> None:
        subtask = case.open()
        outputs, at_once = [], []
        for step in (*(lambda e=e: subtask.run(e) for e in case.stream(1)), subtask.end):
            given = step()
            at_once.append(copy.deepcopy(plain(given)))
            outputs.append(given)
        assert plain(outputs) == at_once

    def test_two_instances_share_nothing(self, case: Case) -> None:
        one, other = case.open(), case.open()
        streams = case.stream(1), case.stream(2)
        got: tuple[list[Any], list[Any]] = ([], [])
        for n in range(max(map(len, streams))):
            for subtask, stream, outputs in zip((one, other), streams, got, strict=True):
                outputs.extend(subtask.run_all(stream[n : n + 1]))
        assert case.plain(got[0] + one.end()) == case.expected(1)
        assert case.plain(got[1] + other.end()) == case.expected(2)
        alone = case.open()
        case.run_whole(alone)
        counted = [
            {n: c.value for n, c in s.context.metrics.counters.items() if n != "lag_ms"}
            for s in (one, alone)
        ]
        assert counted[0] == counted[1]

    def test_the_same_input_gives_the_same_output(self, case: Case) -> None:
        assert case.expected() == case.expected()


# -- the keyed stages ---------------------------------------------------------------------------


@pytest.fixture(params=KEYED)
def keyed(request: pytest.FixtureRequest) -> Case:
    return {
        "FirstStage": Case(first_stage, events),
        "NextStage": Case(next_stage, routed),
    }[request.param]


class TestKeyedStages:
    def test_buckets_may_part_ways(self, keyed: Case) -> None:
        """A rescale: half of the stream on one subtask, then a subtask for each bucket."""
        stream = keyed.stream(1)
        cut = len(stream) // 2
        before = keyed.open()
        got = [(e[0], plain(before.run(e))) for e in stream[:cut]]
        whole = before.snapshot()
        for bucket in BUCKETS:
            mine: Stored = {name: {bucket: of.get(bucket, {})} for name, of in whole.items()}
            subtask = keyed.open(mine)
            got += [(bucket, plain(subtask.run(e))) for e in stream[cut:] if e[0] == bucket]
        uninterrupted = keyed.open()
        expected = [(e[0], plain(uninterrupted.run(e))) for e in stream]
        for bucket in BUCKETS:
            assert [o for b, o in got if b == bucket] == [o for b, o in expected if b == bucket]

    @pytest.mark.parametrize("changed", [{"cached_entries": 1}, {"journal_events": 0}])
    def test_how_state_is_kept_changes_no_output(self, keyed: Case, changed: Any) -> None:
        other = keyed.open(function=keyed.make(**changed))
        assert keyed.run_whole(other) == keyed.expected()

    def test_state_is_plain_bytes_of_each_bucket_alone(self, keyed: Case) -> None:
        subtask = keyed.open()
        subtask.run_all(keyed.stream(1))
        assert subtask.context.stored
        for buckets in subtask.context.stored.values():
            assert set(buckets) <= set(BUCKETS)
            assert not set.intersection(*({k for k in b if k[0] in "el"} for b in buckets.values()))


def identity(key: str, record: bytes) -> int:
    return int(json.loads(record)["source"]["offset"])


class TestFirstStage:
    def test_every_record_ends_in_exactly_one_place(self) -> None:
        subtask = Subtask(first_stage())
        stream = events()
        for element in stream:
            batches = [batch for _, batch in subtask.run(element)]
            offsets = [o for b in batches for o in b.positions[:, 1].tolist()]
            offsets += [identity(*r) for b in batches for r in (*b.dead_letters, *b.duplicates)]
            assert sorted(offsets) == offsets_of(element)

    def test_it_counts_what_it_does(self) -> None:
        subtask = Subtask(first_stage())
        batches = [batch for _, batch in subtask.run_all(events())]
        counted = {name: c.value for name, c in subtask.context.metrics.counters.items()}
        assert (counted.pop("table_records"), counted.pop("table_rejects")) == (0, 0)
        assert counted == {
            "events": sum(map(len, batches)),
            "dead_letters": sum(len(b.dead_letters) for b in batches),
            "duplicates": sum(len(b.duplicates) for b in batches),
        }
        assert min(counted.values()) > 0

    def test_a_batch_of_nothing_but_repeats(self) -> None:
        """As after a failure that replays what was processed already."""
        subtask = Subtask(first_stage())
        rng = random.Random(3)
        records = [a_record(rng, n, "c") for n in range(4)]
        subtask.run(micro_batch(BUCKETS[0], records, 0))
        [(_, batch)] = subtask.run(micro_batch(BUCKETS[0], records, 50))
        assert len(batch) == 0
        assert [identity(*d) for d in batch.duplicates] == [50, 51, 52, 53]

    def test_a_repeat_with_another_content_is_a_dead_letter(self) -> None:
        subtask = Subtask(first_stage())
        record = a_record(random.Random(3), 1, "c")
        subtask.run(micro_batch(BUCKETS[0], [record], 0))
        again = [record.replace(b"{", b"{ "), record]
        [(_, batch)] = subtask.run(micro_batch(BUCKETS[0], again, 50))
        [(key, letter)] = batch.dead_letters
        assert (key, json.loads(letter)["code"]) == ("0-50", "id_conflict")
        assert [identity(*d) for d in batch.duplicates] == [51]

    def test_after_a_change_new_windows_say_since_when(self) -> None:
        before = Subtask(first_stage())
        batch = micro_batch(BUCKETS[0], [a_record(random.Random(3), 9, "c")], 0)
        [(_, first)] = before.run(batch)
        wider = json.loads(json.dumps(DOCUMENT))
        wider["features"]["windows"][0]["windows"] = ["10m", "30d"]
        wider["features"]["windows"][0]["where"] = "amount > 1"
        changed = first_stage(schema=Schema.model_validate(wider))
        after = Subtask(changed, before.snapshot())
        [(_, second)] = after.run(
            micro_batch(BUCKETS[0], [a_record(random.Random(3), 10, "c")], 50)
        )
        assert not first.warming
        since_ms = int(first.times[0])
        assert {name: since.tolist() for name, since in second.warming.items()} == {
            f"card_{aggregate}_{window}": [since_ms]
            for window in ("10m", "30d")
            for aggregate in ("count", "sum", "ratio_to_mean")
        }

    def test_state_of_another_number_of_buckets_is_refused(self) -> None:
        before = Subtask(first_stage())
        batch = micro_batch(BUCKETS[0], [a_record(random.Random(3), 9, "c")], 0)
        before.run(batch)
        after = Subtask(first_stage(routing=Routing((*BUCKETS, 77))), before.snapshot())
        with pytest.raises(StateFormatError, match=r"batch\.buckets was 2, now 3"):
            after.run(batch)

    def test_each_row_goes_to_the_bucket_of_its_next_key(self) -> None:
        for bucket, batch in Subtask(first_stage()).run_all(events()):
            assert {ROUTING.of(t) for t in batch.entities["terminal"]} <= {bucket}

    def test_places_of_arrival_are_counted_per_bucket(self) -> None:
        subtask = Subtask(first_stage())
        places: dict[int, list[int]] = {}
        for element in events():
            found = [o for _, b in subtask.run(element) for o in b.order[:, :1].ravel()]
            places.setdefault(element[0], []).extend(sorted(found))
        for found in places.values():
            assert found == [*range(len(found))]


class TestNextStage:
    def test_nothing_is_lost(self) -> None:
        stream = routed()
        outputs = [b for _, b in Subtask(next_stage()).run_all(stream)]
        given = [b for _, b in stream if isinstance(b, FeatureBatch)]
        for part in (
            lambda b: b.ids,
            lambda b: b.dead_letters,
            lambda b: b.duplicates,
        ):
            assert [x for b in outputs for x in part(b)] == [x for b in given for x in part(b)]
        assert all(b.features.shape[1] == len(SCHEMA.columns) for b in outputs if len(b))

    def test_labels_enter(self) -> None:
        batches = [b for _, b in Subtask(next_stage()).run_all(routed()) if len(b)]
        column = SCHEMA.columns.index("rate_count_1h")
        assert max(b.features[:, column].max() for b in batches) > 0

    def test_a_batch_without_rows_is_passed_on_untouched(self) -> None:
        empty = FeatureBatch.empty(("terminal",), ("amount",))
        subtask = Subtask(next_stage())
        assert subtask.run((BUCKETS[0], empty)) == []
        empty.dead_letters.append(("0-1", b"{}"))
        [(_, batch)] = subtask.run((BUCKETS[0], empty))
        assert (len(batch), batch.dead_letters) == (0, [("0-1", b"{}")])


class TestTheLastStage:
    def test_only_the_last_stage_scores(self) -> None:
        with pytest.raises(AssertionError, match="the last stage scores"):
            first_stage(scoring=PassOn())
        with pytest.raises(AssertionError, match="the last stage scores"):
            NextStage(**stage_settings("terminal"))

    def test_the_first_may_be_the_last(self) -> None:
        last = Subtask(first_stage(schema=ONE_KEY, scoring=PassOn()))
        batches = [batch for _, batch in last.run_all(events())]
        assert {b.features.shape[1] for b in batches if len(b)} == {len(ONE_KEY.columns)}
        others = [batch for _, batch in Subtask(first_stage()).run_all(events())]
        for name in ("ids", "dead_letters", "duplicates"):
            found, expected = (
                Counter(x for b in of for x in getattr(b, name)) for of in (batches, others)
            )
            assert found == expected


class TestLabelReader:
    def test_every_label_ends_in_exactly_one_place(self) -> None:
        for element in labels():
            outputs = Subtask(label_reader()).run(element)
            read = [b for _, b in outputs if isinstance(b, LabelBatch)]
            letters = [d for _, b in outputs if isinstance(b, FeatureBatch) for d in b.dead_letters]
            assert sum(len(b.ids) for b in read) + len(letters) == len(offsets_of(element))

    def test_each_label_goes_to_the_bucket_of_its_key(self) -> None:
        outputs = Subtask(label_reader()).run_all(labels())
        for bucket, batch in outputs:
            if isinstance(batch, LabelBatch):
                assert {ROUTING.of(e) for e in batch.entities} == {bucket}
        assert {bucket for bucket, _ in outputs} == set(BUCKETS)

    def test_a_stage_passes_refused_labels_on(self) -> None:
        outputs = Subtask(label_reader()).run_all(labels())
        refused = [d for _, b in outputs if isinstance(b, FeatureBatch) for d in b.dead_letters]
        passed = [b for _, b in Subtask(next_stage()).run_all(outputs)]
        assert [d for b in passed for d in b.dead_letters] == refused
        assert {json.loads(d)["code"] for _, d in refused} == {"missing_field"}


# -- scoring ------------------------------------------------------------------------------------


@pytest.fixture
def embedded(models_dir: Path, output: Output) -> EmbeddedScoring:
    return EmbeddedScoring(models_dir / "fraud" / "7", "fraud", output)


@pytest.fixture
def opened() -> Iterator[Callable[..., Subtask]]:
    """Opens subtasks that are closed after the test."""
    subtasks: list[Subtask] = []

    def open_(function: Any, stored: Stored | None = None) -> Subtask:
        subtasks.append(Subtask(function, stored))
        return subtasks[-1]

    yield open_
    for subtask in subtasks:
        subtask.close()


def by_topic(rows: list[Any]) -> list[list[tuple[str, Any]]]:
    """The records for each sink, in an order of their own."""
    found = plain(rows)
    return [sorted((r for row in found for r in row[n]), key=repr) for n in range(4)]


def predicted(rows: list[Any]) -> list[str]:
    return sorted(p["event_id"] for row in plain(rows) for _, p in row[0])


class TestScoring:
    def test_served_and_embedded_give_the_same(
        self,
        server_port: int,
        output: Output,
        embedded: EmbeddedScoring,
        opened: Callable[..., Subtask],
    ) -> None:
        stage = opened(next_stage(served(server_port, output)))
        got = stage.run_all(routed()) + stage.answers()
        expected = opened(next_stage(embedded)).run_all(routed())
        assert by_topic(got) == by_topic(expected)
        assert stage.context.metrics.counters["fallbacks"].value == 0
        assert stage.context.metrics.counters["breaker_state"].value == 0

    def test_every_row_has_one_prediction_of_the_model(self, embedded: EmbeddedScoring) -> None:
        stream = scorable()
        rows = plain(Subtask(embedded).run_all(stream))
        predictions = [p for row in rows for _, p in row[0]]
        alerts = [a for row in rows for _, a in row[1]]
        assert [p["event_id"] for p in predictions] == [i for _, b in stream for i in b.ids]
        assert {(p["model"]["name"], p["model"]["version"]) for p in predictions} == {("fraud", 7)}
        assert len({p["prediction_id"] for p in predictions}) == len(predictions)
        assert len(alerts) == sum(p["score"] > 0.5 for p in predictions) > 0
        for alert in alerts:
            assert alert["event"]["id"] == alert["prediction"]["event_id"]
            assert len(alert["reasons"]) == 3

    def test_an_onnx_model_is_embedded_as_well(self, tmp_path: Path, output: Output) -> None:
        columns = list(output.preparation.columns)
        rows = np.random.default_rng(2).random((300, len(columns))).astype(np.float32) * 20
        model = LogisticRegression().fit(rows, rows[:, 0] > 5)
        folder = tmp_path / "9"
        folder.mkdir()
        graph = to_onnx(model, rows[:1], options={"zipmap": False})
        (folder / "model.onnx").write_bytes(graph.SerializeToString())
        write_features(folder, tuple(columns), impute=0.0)
        scored = plain(Subtask(EmbeddedScoring(folder, "fraud", output)).run_all(scorable()))
        predictions = {p["event_id"]: p for row in scored for _, p in row[0]}
        matrix = {
            event_id: values
            for _, batch in scorable()
            if len(batch)
            for event_id, values in zip(batch.ids, output.model_input(batch), strict=True)
        }
        assert predictions.keys() == matrix.keys()
        expected = model.predict_proba(np.array(list(matrix.values())))[:, 1]
        found = [predictions[event_id]["score"] for event_id in matrix]
        assert np.abs(np.array(found) - expected).max() < 1e-6
        assert {p["model"]["version"] for p in predictions.values()} == {9}
        alerts = [a for row in scored for _, a in row[1]]
        assert alerts and all(alert["reasons"] == [] for alert in alerts)

    def test_refused_records_leave_once(self, embedded: EmbeddedScoring) -> None:
        stream = scorable()
        rows = plain(Subtask(embedded).run_all(stream))
        assert any(len(b) == 0 for _, b in stream)
        for column, name in ((2, "dead_letters"), (3, "duplicates")):
            sent = Counter(r for _, b in stream for r in getattr(b, name))
            left = Counter(
                (key, json.dumps(record, separators=(",", ":")).encode())
                for row in rows
                for key, record in row[column]
            )
            assert left == sent
            assert left

    @pytest.mark.parametrize("hung", [False, True], ids=["closed", "hung"])
    def test_without_an_answer_every_row_gets_the_fallback(
        self, output: Output, opened: Callable[..., Subtask], hung: bool
    ) -> None:
        stream = scorable()
        with socket.create_server(("127.0.0.1", 0)) as silent:
            port = int(silent.getsockname()[1])
            if not hung:
                silent.close()
            subtask = opened(served(port, output, deadline_ms=500))
            rows = plain(subtask.run_all(stream) + subtask.answers())
        predictions = [p for row in rows for _, p in row[0]]
        ids = sorted(i for _, b in stream for i in b.ids)
        assert sorted(p["event_id"] for p in predictions) == ids
        assert {p["score"] for p in predictions} == {0.25}
        assert all(p["fallback_reason"] and p["model"]["version"] is None for p in predictions)
        assert [row[1] for row in rows] == [[]] * len(rows)
        assert subtask.context.metrics.counters["fallbacks"].value == len(predictions)


def connections_to(port: int) -> int:
    """How many connections of this process to a port are open."""
    open_ = psutil.Process().net_connections("tcp")
    return sum(c.raddr.port == port and c.status == "ESTABLISHED" for c in open_ if c.raddr)


BUCKET = BUCKETS[0]


class Held:
    """Subtasks that score, the server's answers held back until they are let go."""

    def __init__(
        self, make: Callable[[], ServedScoring], switch: Switch, opened: Callable[..., Subtask]
    ) -> None:
        self._make = make
        self._switch = switch
        self._opened = opened
        self.let_go = switch.let_go
        batches = [b for _, b in scorable() if len(b)]
        self.batches = [(BUCKET, b.select(range(4))) for b in batches if len(b) >= 4]
        self.long = BUCKET, next(b for b in batches if len(b) > 4 and b.dead_letters)
        self.no_rows = BUCKET, FeatureBatch.empty((), ())
        self.no_rows[1].dead_letters.append(("0-1", b"{}"))

    def open(self, stored: Stored | None = None) -> Subtask:
        self._switch.hold()
        return self._opened(self._make(), stored)

    def ids(self, *numbers: int) -> list[str]:
        return sorted(i for n in numbers for i in self.batches[n][1].ids)


@pytest.fixture
def held(tmp_path: Path, server_port: int, output: Output, opened: Callable[..., Subtask]) -> Held:
    switch = Switch(tmp_path)
    return Held(lambda: served(server_port, output, switch=switch), switch, opened)


class TestServedScoring:
    def test_answers_come_by_timer(self, held: Held) -> None:
        subtask = held.open()
        assert subtask.run(held.batches[0]) == []
        assert subtask.fire() == []
        held.let_go()
        assert predicted(subtask.answers()) == held.ids(0)
        assert subtask.in_flight(BUCKET) == {}

    def test_answers_come_with_a_later_batch(self, held: Held) -> None:
        subtask = held.open()
        subtask.run(held.batches[0])
        held.let_go()
        wait_until(lambda: bool(predicted(subtask.run(held.no_rows))), 60, "an answer")
        assert subtask.in_flight(BUCKET) == {}

    def test_a_batch_is_kept_until_its_records_are_out(self, held: Held) -> None:
        subtask = held.open()
        subtask.run(held.batches[0])
        assert plain(subtask.in_flight(BUCKET)) == plain({0: held.batches[0][1]})
        held.let_go()
        with subtask.at(BUCKET) as context:
            rows = subtask.function.on_timer(BUCKET, END_MS - 1, context)
            next(rows)
            assert subtask.in_flight(BUCKET).keys() == {0}
            assert [*rows] == []
        assert subtask.in_flight(BUCKET) == {}

    def test_what_was_open_is_asked_again_after_a_restart(self, held: Held) -> None:
        """And the buckets part ways, as in a rescale."""
        before = held.open()
        first, second, third, *_ = held.batches
        assert before.run_all([first, second, (BUCKETS[1], third[1])]) == []
        stored = before.snapshot()
        before.close()
        rows = {}
        for bucket, later, numbers in ((BUCKETS[0], 3, [0, 1, 2]), (BUCKETS[1], 4, [0, 1])):
            mine: Stored = {name: {bucket: of[bucket]} for name, of in stored.items()}
            after = held.open(mine)
            assert after.run((bucket, held.batches[later][1])) == []
            assert [*after.in_flight(bucket)] == numbers
            held.let_go()
            rows[bucket] = after.answers()
            assert after.in_flight(bucket) == {}
        assert predicted(rows[BUCKETS[0]]) == held.ids(0, 1, 3)
        assert predicted(rows[BUCKETS[1]]) == held.ids(2, 4)

    def test_with_enough_calls_open_a_batch_waits(self, held: Held) -> None:
        subtask = held.open()
        subtask.run_all(held.batches[:3])
        held.let_go()
        with subtask.at(BUCKET) as context:
            rows = subtask.function.take(*held.batches[3], context)
            got = [next(rows)]
            # One of those answers, for which the operator waited.
            assert predicted(got) in (held.ids(0), held.ids(1), held.ids(2))
            assert subtask.in_flight(BUCKET).keys() == {0, 1, 2, 3}
            got += rows
        assert predicted(got + subtask.answers()) == held.ids(0, 1, 2, 3)

    def test_what_comes_while_a_call_is_open_shares_the_next(self, held: Held) -> None:
        subtask = held.open()
        small = [(BUCKET, b.select([0])) for _, b in held.batches[:4]]
        assert subtask.run_all(small) == []
        assert [len(b) for b in subtask.in_flight(BUCKET).values()] == [1, 1, 1, 1]
        held.let_go()
        answers = [row[0] for row in plain(subtask.answers())]
        assert [[p["event_id"] for _, p in row] for row in answers] == [
            [small[0][1].ids[0]],
            [b.ids[0] for _, b in small[1:]],
        ]
        assert subtask.in_flight(BUCKET) == {}

    def test_a_large_batch_is_cut(self, held: Held) -> None:
        subtask = held.open()
        subtask.run(held.long)
        parts = [*subtask.in_flight(BUCKET).values()]
        batch = held.long[1]
        assert [i for part in parts for i in part.ids] == batch.ids
        assert max(map(len, parts)) == 4
        assert [part.dead_letters for part in parts] == [batch.dead_letters] + [[]] * len(parts[1:])

    def test_a_batch_without_rows_passes_at_once(self, held: Held) -> None:
        subtask = held.open()
        [row] = plain(subtask.run(held.no_rows))
        assert row == [[], [], [("0-1", {})], [], []]
        assert subtask.in_flight(BUCKET) == {}
        assert not subtask.context.timers_set

    def test_the_end_of_the_input_waits_for_all(self, held: Held) -> None:
        subtask = held.open()
        subtask.run_all([*held.batches[:2], (BUCKETS[1], held.batches[2][1])])
        held.let_go()
        got = subtask.end()
        late = subtask.run(held.batches[3])  # comes with the last watermark
        assert (predicted(got), predicted(late)) == (held.ids(0, 1, 2), held.ids(3))
        assert [subtask.in_flight(bucket) for bucket in BUCKETS] == [{}, {}]

    def test_one_timer_at_a_time(self, held: Held) -> None:
        subtask = held.open()
        subtask.run_all(held.batches[:3])
        assert subtask.context.timers_set == {PROCESSING_TIME: 1, EVENT_TIME: 1}
        assert subtask.pending(EVENT_TIME) == [(BUCKET, END_MS - 1)]
        subtask.fire()
        assert subtask.context.timers_set[PROCESSING_TIME] == 2
        held.let_go()
        subtask.answers()
        set_ = dict(subtask.context.timers_set)
        assert subtask.fire() == []
        assert subtask.context.timers_set == set_  # none while no call is open

    def test_the_connection_is_closed(
        self, server_port: int, output: Output, opened: Callable[..., Subtask]
    ) -> None:
        wait_until(lambda: connections_to(server_port) == 0, 60, "no connection of other tests")
        subtask = opened(served(server_port, output))
        subtask.run_all(scorable())
        subtask.answers()
        assert connections_to(server_port) == 1
        subtask.close()
        wait_until(lambda: connections_to(server_port) == 0, 60, "the connection's end")

    def test_a_call_in_flight_does_not_keep_it_from_closing(
        self, output: Output, held: Held
    ) -> None:
        """Neither one that is about to ask, nor one that a server leaves without answer."""
        waiting = held.open()
        with socket.create_server(("127.0.0.1", 0)) as silent:
            asking = Subtask(served(int(silent.getsockname()[1]), output))
            begun_s = time.monotonic()
            for subtask in (waiting, asking):
                subtask.run(held.batches[0])
                subtask.close()
            assert time.monotonic() - begun_s < 10  # half a deadline

    def test_it_may_be_closed_unused_and_twice(self, server_port: int, output: Output) -> None:
        subtask = Subtask(served(server_port, output))
        subtask.close()
        subtask.close()

    def test_it_may_be_opened_again(
        self, server_port: int, output: Output, opened: Callable[..., Subtask]
    ) -> None:
        first = opened(served(server_port, output))
        expected = by_topic(first.run_all(scorable()) + first.answers())
        first.close()
        again = opened(first.function)
        assert by_topic(again.run_all(scorable()) + again.answers()) == expected
        assert again.context.metrics.counters["fallbacks"].value == 0

    def test_all_share_one_event_loop(self, held: Held) -> None:
        for _ in range(2):
            held.open().run(held.batches[0])
        assert [t.name for t in threading.enumerate()].count("streamscore-calls") == 1


def test_records_led_astray_by_their_kafka_key_are_refused() -> None:
    """Each card's records go to the bucket of another card's key: features would be wrong."""
    subtask = Subtask(first_stage(routing=Routing(BUCKETS, by_record_key=True)))
    rng = random.Random(3)
    cards = [f"c{n}" for n in range(12)]
    home = [BUCKETS[n] for n in sql_buckets(cards, len(BUCKETS))]
    assert {*home} == {*BUCKETS}
    records = [a_record(rng, n, card) for n, card in enumerate(cards)]
    rows = subtask.run(micro_batch(BUCKETS[0], records, 0))
    strays = [letter for row in rows for letter in row[1].dead_letters]
    kept = [key for row in rows for key in row[1].keys]
    assert sorted(kept) == sorted(c for c, bucket in zip(cards, home, strict=True) if bucket == 3)
    assert len(strays) == home.count(8)
    assert {json.loads(letter)["code"] for _, letter in strays} == {"key_mismatch"}


class TestItemStage:
    @pytest.fixture
    def stage(self, tmp_path: Path) -> ItemStage:
        small_index().save(tmp_path)
        return ItemStage(tmp_path, {"purchase": 1.0, "like": 2.0}, 1_000, BUCKETS)

    def bought(self, item: str, after_ms: int, kind: str = "purchase") -> bytes:
        document = {"kind": kind, "item": item, "event_time_ms": small_index().as_of_ms + after_ms}
        return json.dumps(document).encode()

    def published(self, outputs: list[Any]) -> dict[str, ItemPopularity]:
        """The newest record of each item."""
        pairs = [pair for row in outputs for pair in row[0]]
        return {k.decode(): ItemPopularity.of_record(json.loads(v)) for k, v in pairs}

    def test_it_first_publishes_what_the_version_knows(self, stage: ItemStage) -> None:
        subtask, found = Subtask(stage), dict[str, ItemPopularity]()
        for bucket in BUCKETS:
            subtask.run(micro_batch(bucket, [b"{}"], 0))
        found = self.published(subtask.fire())
        index = small_index()
        for row, item in enumerate(index.ids.tolist()):
            if index.popularity[row, 0] > 0:
                sums = found[item].sums_at(index.as_of_ms)
                assert sums == pytest.approx(index.popularity[row], rel=1e-9)
        assert len(found) == np.count_nonzero(index.popularity[:, 0])

    def test_purchases_add_to_it_also_across_a_restart(self, stage: ItemStage) -> None:
        item = str(small_index().ids[0])
        first = [self.bought(item, 10), self.bought("new", 20), b"{", self.bought(item, -10)]
        second = [self.bought(item, 30, "like"), self.bought("new", 5), self.bought("x", 1, "view")]
        whole = Subtask(stage)
        whole.run(micro_batch(3, [*first, *second], 0))
        expected = self.published(whole.fire())
        before = Subtask(stage)
        before.run(micro_batch(3, first, 0))
        after = Subtask(stage, before.snapshot())
        got = self.published(after.run(micro_batch(3, second, 4)) + after.end())
        assert got[item] == expected[item] and got["new"] == expected["new"]
        assert got["new"].last_ms == small_index().as_of_ms + 20
        assert "x" not in got


# -- shedding -----------------------------------------------------------------------------------


def low(number: int, card: str = "c3-0") -> bytes:
    """An event of low priority, of the ones that are not kept."""
    return json.dumps(
        {"id": f"low{number}", "t": KAFKA_MS, "card": card, "kind": "CP", "amount": 1}
        | {"terminal": "t"}
    ).encode()


def ends(outputs: list[Any]) -> dict[str, list[str]]:
    """The ids of events that went on, are duplicates, or were shed."""
    found: dict[str, list[str]] = {"kept": [], "duplicates": [], "shed": []}
    for output in outputs:
        if isinstance(output, tuple):
            tag, row = output
            assert tag is SHED
            found["shed"] += [json.loads(value)["event_id"] for _, value in row[0]]
        else:
            found["kept"] += output[1].ids
            found["duplicates"] += [json.loads(v)["event_id"] for _, v in output[1].duplicates]
    return found


@pytest.mark.parametrize("before", ["features", "scoring"])
def test_an_event_that_was_shed_and_comes_again(before: str) -> None:
    """Shed before the features it is forgotten, before the scoring it is known."""
    gone = next(n for n in range(40) if not is_kept(f"low{n}", 0.3))
    one = micro_batch(BUCKETS[0], [low(gone)], 1)
    again = micro_batch(BUCKETS[0], [low(gone)], 2)

    def run(stored: Stored | None, sheds: bool, element: Any) -> tuple[Any, Stored]:
        chosen = {"overload": overload(before)} if sheds else {}
        one_key = stage_settings("card", schema=ONE_KEY, scoring=PassOn(), **chosen)
        subtask = Subtask(FirstStage(**one_key), stored)
        return ends(subtask.run(element)), subtask.snapshot()

    found, stored = run(None, True, one)
    assert found == {"kept": [], "duplicates": [], "shed": [f"low{gone}"]}
    found, _ = run(stored, False, again)
    assert found["kept" if before == "features" else "duplicates"] == [f"low{gone}"]


def test_features_stay_right_if_events_are_shed_before_the_scoring() -> None:
    """Whatever is shed, what is scored has the features that it has when nothing is."""
    stream = routed()
    whole = Subtask(next_stage()).run_all(stream)
    sheds = Subtask(next_stage(overload=overload("scoring"))).run_all(stream)
    expected = {tuple(p): f for _, b in whole for p, f in zip(b.positions, b.features, strict=True)}
    kept = [o[1] for o in sheds if not isinstance(o, tuple)]
    rows = [(tuple(p), f) for b in kept for p, f in zip(b.positions, b.features, strict=True)]
    assert 0 < len(rows) < len(expected)
    shed = [json.loads(value) for o in sheds if isinstance(o, tuple) for _, value in o[1][0]]
    order = {tuple(p): o for _, b in whole for p, o in zip(b.positions, b.order, strict=True)}
    for document in shed:  # what is scored later can be recomputed: it is known what it has seen
        source = document["source"]
        (arrived,) = (
            o for p, o in order.items() if p[:2] == (source["partition"], source["offset"])
        )
        assert [*document["order"].values()] == arrived.tolist()
    for place, features in rows:
        np.testing.assert_array_equal(features, expected[place])
    gone = {i for o in sheds if isinstance(o, tuple) for i in ends([o])["shed"]}
    assert gone | {i for b in kept for i in b.ids} == {i for _, b in whole for i in b.ids}
    refused = [r for _, b in whole for r in (*b.dead_letters, *b.duplicates)]
    assert [r for b in kept for r in (*b.dead_letters, *b.duplicates)] == refused


@pytest.mark.parametrize("reader", ["events", "labels"])
def test_a_source_with_a_rate_is_read_no_faster(reader: str) -> None:
    """And nothing is dropped: all that it waits for comes."""
    stream = events() if reader == "events" else labels()
    many = LabelReader(SCHEMA, ROUTING, "labels", 400) if reader == "labels" else None
    limited = Subtask(many or first_stage(rate=400))
    free = Subtask(label_reader() if reader == "labels" else first_stage())
    began_s = time.monotonic()
    found = plain(limited.run_all(stream))
    took_s = time.monotonic() - began_s
    records = sum(len(offsets_of(element)) for element in stream)
    assert took_s > (records - len(offsets_of(stream[-1]))) / 400 - 0.1
    assert found == plain(free.run_all(stream))
