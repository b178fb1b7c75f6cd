"""What every Flink function must keep: shipping, restarts, input purity, independence.

The runtime context here is a dict and some counters. It stands for what Flink promises (map state
of the current key, restored after a restart); the real engine is under test in tests/minicluster
and tests/cluster.
"""

from __future__ import annotations

import asyncio
import copy
import gc
import json
import pickle
import random
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import psutil
import pytest
import xgboost
from pyflink.common import Row
from pyflink.fn_execution.datastream.process.async_function.operation import AsyncFunctionRunner

from model_server.client import ClientOptions
from model_server.server import ServerOptions, start
from udfs.batch import FeatureBatch, LabelBatch
from udfs.buckets import sql_buckets
from udfs.operators import FirstStage, LabelReader, NextStage, Routing
from udfs.records import RecordWriter
from udfs.scoring import EmbeddedScorer, Output, ServedScorer
from udfs.spec import Schema

BUCKETS = (3, 8)
ROUTING = Routing(BUCKETS)
KAFKA_MS = 1_700_000_000_000
SCHEMA = Schema.model_validate(
    {
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
)


@pytest.fixture(scope="module", autouse=True)
def garbage_collector() -> Iterator[None]:
    """Opened functions change how this process collects garbage; other tests get it back."""
    thresholds = gc.get_threshold()
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()


# -- a stand-in for Flink -----------------------------------------------------------------------

Stored = dict[str, dict[int, dict[str, bytes]]]
"""State name -> bucket -> entity -> what Flink has stored."""


class MapState:
    """Map state of the current key; only what Flink's types for it can hold goes in."""

    def __init__(self, context: Context, buckets: dict[int, dict[str, bytes]]) -> None:
        self._context = context
        self._buckets = buckets

    def _current(self) -> dict[str, bytes]:
        assert self._context.bucket is not None, "state is read or written outside of an element"
        return self._buckets.setdefault(self._context.bucket, {})

    def get(self, key: str) -> bytes | None:
        return self._current().get(key)

    def put(self, key: str, value: bytes) -> None:
        assert type(key) is str
        assert type(value) is bytes
        self._current()[key] = value

    def put_all(self, values: dict[str, bytes]) -> None:
        for key, value in values.items():
            self.put(key, value)


class Count:
    def __init__(self) -> None:
        self.value = 0

    def inc(self, n: int = 1) -> None:
        assert type(n) is int
        assert n >= 0
        self.value += n

    def get_count(self) -> int:
        return self.value


class Metrics:
    def __init__(self) -> None:
        self.counters: dict[str, Count] = {}
        self.gauges: dict[str, Callable[[], int]] = {}

    def counter(self, name: str) -> Count:
        return self.counters.setdefault(name, Count())

    def gauge(self, name: str, read: Callable[[], int]) -> None:
        self.gauges[name] = read


class Context:
    """The runtime context of one subtask."""

    def __init__(self, stored: Stored | None = None) -> None:
        self.stored: Stored = {} if stored is None else stored
        self.metrics = Metrics()
        self.bucket: int | None = None

    def get_map_state(self, descriptor: Any) -> MapState:
        return MapState(self, self.stored.setdefault(descriptor.name, {}))

    def get_metrics_group(self) -> Metrics:
        return self.metrics


class KeyedContext:
    """What a keyed function learns of the element: the key, while it is processed."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def get_current_key(self) -> int:
        assert self._context.bucket is not None
        return self._context.bucket


class Subtask:
    """A function opened on a context, as one subtask of a running job."""

    def __init__(self, function: Any, stored: Stored | None = None) -> None:
        self.context = Context(stored)
        self.function = function
        function.open(self.context)

    async def run(self, element: Any) -> list[Any]:
        self.context.bucket = element[0]
        try:
            if isinstance(self.function, ServedScorer):
                return await self.function.async_invoke(element)
            if isinstance(self.function, FirstStage | NextStage):
                keyed = KeyedContext(self.context)
                return [*self.function.process_element(element[1], keyed)]  # type: ignore[arg-type]
            return [*self.function.flat_map(element)]
        finally:
            self.context.bucket = None

    async def run_all(self, elements: Iterable[Any]) -> list[Any]:
        return [out for element in elements for out in await self.run(element)]

    def snapshot(self) -> Stored:
        """What a checkpoint would hold now, as if read back from a disk."""
        restored: Stored = pickle.loads(pickle.dumps(self.context.stored))
        return restored

    async def close(self) -> None:
        """As PyFlink does: in a thread without an event loop."""
        await asyncio.to_thread(self.function.close)


def plain(value: Any) -> Any:
    """Anything that flows between functions as plain values that ``==`` compares; NaN as None."""
    if isinstance(value, FeatureBatch | LabelBatch):
        return {name: plain(getattr(value, name)) for name in type(value).__dataclass_fields__}
    if isinstance(value, np.ndarray):
        return [value.shape, str(value.dtype), plain(value.tolist())]
    if isinstance(value, float):
        return None if value != value else value
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, Row):
        bucket_and_batch = len(value) == 2
        return [plain(v) if bucket_and_batch else [*map(record_of, v)] for v in value]
    return value


def record_of(pair: list[bytes]) -> tuple[str, Any]:
    """A Kafka record: its key, and its JSON without the wall-clock time."""
    assert [type(pair), *map(type, pair)] == [list, bytes, bytes], "not what Flink's types hold"
    key, value = pair
    return key.decode(), untimed(json.loads(value))


def untimed(document: dict[str, Any]) -> dict[str, Any]:
    if "prediction" in document:
        return document | {"prediction": untimed(document["prediction"])}
    return {k: v for k, v in document.items() if k != "scored_time_ms"}


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
    return FirstStage(*stage_settings("card", **changes))


def next_stage(**changes: Any) -> NextStage:
    return NextStage(*stage_settings("terminal", **changes))


def stage_settings(key: str, *, cached_entries: int = 1 << 40, max_rows: int = 4) -> list[Any]:
    return [SCHEMA, key, ROUTING, "events", max_rows, 3_600, cached_entries]


def label_reader() -> LabelReader:
    return LabelReader(SCHEMA, ROUTING, "labels")


async def routed(seed: int = 1) -> list[Any]:
    """The next stage's input: events, labels, and batches without rows."""
    batches = [micro_batch(b, r, 100 * n) for n, (b, r) in enumerate(raw_batches(seed))]
    batches.insert(3, micro_batch(BUCKETS[0], [b"", b"nonsense"], 9_000))
    stream = await Subtask(first_stage()).run_all(batches)
    learned = await Subtask(label_reader()).run_all(labels(seed))
    rng = random.Random(seed)
    for element in learned:
        stream.insert(rng.randrange(len(stream)), element)
    none = next(b for _, b in stream if isinstance(b, LabelBatch)).select([])
    return [*stream[:5], (BUCKETS[1], none), *stream[5:]]


async def scorable(seed: int = 1) -> list[Any]:
    """The scorers' input: batches with all their features, some without rows."""
    return await Subtask(next_stage()).run_all(await routed(seed))


# -- the functions ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with one version of a small model over the schema's columns."""
    columns = list(SCHEMA.columns)
    rows = np.random.default_rng(2).random((300, len(columns))).astype(np.float32) * 20
    target = (rows[:, 0] > 5).astype(int)
    matrix = xgboost.DMatrix(rows, target, feature_names=columns)
    params = {"objective": "binary:logistic", "max_depth": 2, "nthread": 1, "eta": 1.0}
    folder = tmp_path_factory.mktemp("models") / "fraud" / "7"
    folder.mkdir(parents=True)
    xgboost.train(params, matrix, num_boost_round=3).save_model(folder / "model.ubj")
    features = [{"name": name, "type": "float", "impute": 0.0} for name in columns]
    (folder / "features.json").write_text(json.dumps({"format": 1, "features": features}))
    return folder.parents[1]


@pytest.fixture(scope="module")
def output() -> Output:
    columns = SCHEMA.columns
    writer = RecordWriter("events", columns, SCHEMA.stages, 0.5)
    return Output(writer, np.arange(len(columns), dtype=np.float64), 0.25, True)


@pytest.fixture
async def server_port(models_dir: Path) -> AsyncIterator[int]:
    running = await start(ServerOptions(models_dir=models_dir, model_name="fraud", grace_s=0.0))
    yield running.port
    await running.stop()


def client_options(port: int, deadline_ms: float = 20_000.0) -> ClientOptions:
    return ClientOptions(f"127.0.0.1:{port}", "fraud", deadline_ms=deadline_ms, max_attempts=1)


@dataclass
class Case:
    """A function under the contract: how to make one, and a stream for it by seed."""

    make: Callable[[], Any]
    stream: Callable[[int], Awaitable[list[Any]]]
    opened: list[Subtask] = field(default_factory=list)

    def open(self, stored: Stored | None = None, function: Any = None) -> Subtask:
        subtask = Subtask(self.make() if function is None else function, stored)
        self.opened.append(subtask)
        return subtask

    async def expected(self, seed: int = 1) -> list[Any]:
        """What an uninterrupted run gives."""
        return plain(await self.open().run_all(await self.stream(seed)))  # type: ignore[no-any-return]


def later(make: Callable[[int], list[Any]]) -> Callable[[int], Awaitable[list[Any]]]:
    async def stream(seed: int) -> list[Any]:
        return make(seed)

    return stream


KEYED = ["FirstStage", "NextStage"]
SCORERS = ["ServedScorer", "EmbeddedScorer"]


@pytest.fixture(params=[*KEYED, "LabelReader", *SCORERS])
async def case(
    request: pytest.FixtureRequest, models_dir: Path, output: Output, server_port: int
) -> AsyncIterator[Case]:
    made = {
        "FirstStage": Case(first_stage, later(events)),
        "NextStage": Case(next_stage, routed),
        "LabelReader": Case(label_reader, later(labels)),
        "ServedScorer": Case(lambda: ServedScorer(client_options(server_port), output), scorable),
        "EmbeddedScorer": Case(
            lambda: EmbeddedScorer(models_dir / "fraud" / "7", "fraud", output), scorable
        ),
    }[request.param]
    yield made
    for subtask in made.opened:
        await subtask.close()


class TestEveryFunction:
    async def test_it_is_shipped_as_pyflink_ships_it(self, case: Case) -> None:
        stream = await case.stream(1)
        shipped = cloudpickle.loads(cloudpickle.dumps(case.make()))
        twice = pickle.loads(cloudpickle.dumps(shipped))  # the worker knows no cloudpickle
        expected = await case.expected()
        assert expected
        for function in (shipped, twice):
            assert plain(await case.open(function=function).run_all(stream)) == expected

    @pytest.mark.parametrize("part", [0.0, 0.25, 0.5, 0.75])
    async def test_a_restart_changes_no_output(self, case: Case, part: float) -> None:
        stream = await case.stream(1)
        cut = int(part * len(stream))
        before = case.open()
        first = await before.run_all(stream[:cut])
        after = case.open(before.snapshot())
        rest = await after.run_all(stream[cut:])
        assert plain(first + rest) == await case.expected()

    async def test_a_restart_after_every_element_changes_no_output(self, case: Case) -> None:
        stream = await case.stream(1)
        stored: Stored = {}
        got = []
        for element in stream:
            subtask = case.open(stored)
            got += await subtask.run(element)
            stored = subtask.snapshot()
        assert plain(got) == await case.expected()

    async def test_input_is_left_alone(self, case: Case) -> None:
        stream = await case.stream(1)
        before = plain(copy.deepcopy(stream))
        await case.open().run_all(stream)
        assert plain(stream) == before

    async def test_output_given_away_never_changes(self, case: Case) -> None:
        subtask = case.open()
        outputs, at_once = [], []
        for element in await case.stream(1):
            given = await subtask.run(element)
            at_once.append(copy.deepcopy(plain(given)))
            outputs.append(given)
        assert plain(outputs) == at_once

    async def test_two_instances_share_nothing(self, case: Case) -> None:
        one, other = case.open(), case.open()
        streams = await case.stream(1), await case.stream(2)
        got: tuple[list[Any], list[Any]] = ([], [])
        for n in range(max(map(len, streams))):
            for subtask, stream, outputs in zip((one, other), streams, got, strict=True):
                outputs.extend([o for e in stream[n : n + 1] for o in await subtask.run(e)])
        assert plain(got[0]) == await case.expected(1)
        assert plain(got[1]) == await case.expected(2)
        counted = [
            {name: c.value for name, c in s.context.metrics.counters.items()} for s in (one, other)
        ]
        alone = case.open()
        await alone.run_all(streams[0])
        assert counted[0] == {n: c.value for n, c in alone.context.metrics.counters.items()}

    async def test_the_same_input_gives_the_same_output(self, case: Case) -> None:
        assert await case.expected() == await case.expected()


# -- the keyed stages ---------------------------------------------------------------------------


@pytest.fixture(params=KEYED)
def keyed(request: pytest.FixtureRequest) -> Case:
    return {
        "FirstStage": Case(first_stage, later(events)),
        "NextStage": Case(next_stage, routed),
    }[request.param]


class TestKeyedStages:
    async def test_buckets_may_part_ways(self, keyed: Case) -> None:
        """A rescale: half of the stream on one subtask, then a subtask for each bucket."""
        stream = await keyed.stream(1)
        cut = len(stream) // 2
        before = keyed.open()
        got = [(e[0], plain(await before.run(e))) for e in stream[:cut]]
        whole = before.snapshot()
        for bucket in BUCKETS:
            mine: Stored = {name: {bucket: of.get(bucket, {})} for name, of in whole.items()}
            subtask = keyed.open(mine)
            got += [(bucket, plain(await subtask.run(e))) for e in stream[cut:] if e[0] == bucket]
        uninterrupted = keyed.open()
        expected = [(e[0], plain(await uninterrupted.run(e))) for e in stream]
        for bucket in BUCKETS:
            assert [o for b, o in got if b == bucket] == [o for b, o in expected if b == bucket]

    async def test_a_small_cache_changes_no_output(self, keyed: Case) -> None:
        stream = await keyed.stream(1)
        small = type(keyed.make())(
            *stage_settings("card" if keyed.make is first_stage else "terminal", cached_entries=1)
        )
        assert plain(await keyed.open(function=small).run_all(stream)) == await keyed.expected()

    async def test_state_is_plain_bytes_of_each_bucket_alone(self, keyed: Case) -> None:
        subtask = keyed.open()
        await subtask.run_all(await keyed.stream(1))
        assert subtask.context.stored
        for buckets in subtask.context.stored.values():
            assert set(buckets) <= set(BUCKETS)
            assert not set.intersection(*({k for k in b if k != "#"} for b in buckets.values()))


def identity(key: str, record: bytes) -> int:
    return int(json.loads(record)["source"]["offset"])


class TestFirstStage:
    async def test_every_record_ends_in_exactly_one_place(self) -> None:
        subtask = Subtask(first_stage())
        stream = events()
        for element in stream:
            batches = [batch for _, batch in await subtask.run(element)]
            offsets = [o for b in batches for o in b.positions[:, 1].tolist()]
            offsets += [identity(*r) for b in batches for r in (*b.dead_letters, *b.duplicates)]
            assert sorted(offsets) == offsets_of(element)

    async def test_it_counts_what_it_does(self) -> None:
        subtask = Subtask(first_stage())
        batches = [batch for _, batch in await subtask.run_all(events())]
        counted = {name: c.value for name, c in subtask.context.metrics.counters.items()}
        assert counted == {
            "events": sum(map(len, batches)),
            "dead_letters": sum(len(b.dead_letters) for b in batches),
            "duplicates": sum(len(b.duplicates) for b in batches),
        }
        assert min(counted.values()) > 0

    async def test_a_batch_of_nothing_but_repeats(self) -> None:
        """As after a failure that replays what was processed already."""
        subtask = Subtask(first_stage())
        rng = random.Random(3)
        records = [a_record(rng, n, "c") for n in range(4)]
        await subtask.run(micro_batch(BUCKETS[0], records, 0))
        [(_, batch)] = await subtask.run(micro_batch(BUCKETS[0], records, 50))
        assert len(batch) == 0
        assert [identity(*d) for d in batch.duplicates] == [50, 51, 52, 53]

    async def test_a_repeat_with_another_content_is_a_dead_letter(self) -> None:
        subtask = Subtask(first_stage())
        record = a_record(random.Random(3), 1, "c")
        await subtask.run(micro_batch(BUCKETS[0], [record], 0))
        again = [record.replace(b"{", b"{ "), record]
        [(_, batch)] = await subtask.run(micro_batch(BUCKETS[0], again, 50))
        [(key, letter)] = batch.dead_letters
        assert (key, json.loads(letter)["code"]) == ("0-50", "id_conflict")
        assert [identity(*d) for d in batch.duplicates] == [51]

    async def test_each_row_goes_to_the_bucket_of_its_next_key(self) -> None:
        for bucket, batch in await Subtask(first_stage()).run_all(events()):
            assert {ROUTING.of(t) for t in batch.entities["terminal"]} <= {bucket}

    async def test_places_of_arrival_are_counted_per_bucket(self) -> None:
        subtask = Subtask(first_stage())
        places = {}
        for element in events():
            found = [o for _, b in await subtask.run(element) for o in b.order[:, :1].ravel()]
            places.setdefault(element[0], []).extend(sorted(found))
        for found in places.values():
            assert found == [*range(len(found))]


class TestNextStage:
    async def test_nothing_is_lost_and_no_part_is_too_large(self) -> None:
        stream = await routed()
        outputs = [b for _, b in await Subtask(next_stage()).run_all(stream)]
        given = [b for _, b in stream if isinstance(b, FeatureBatch)]
        for part in (
            lambda b: b.ids,
            lambda b: b.dead_letters,
            lambda b: b.duplicates,
        ):
            assert [x for b in outputs for x in part(b)] == [x for b in given for x in part(b)]
        assert max(map(len, outputs)) <= 4
        assert all(b.features.shape[1] == len(SCHEMA.columns) for b in outputs if len(b))

    async def test_labels_enter(self) -> None:
        batches = [b for _, b in await Subtask(next_stage()).run_all(await routed()) if len(b)]
        column = SCHEMA.columns.index("rate_count_1h")
        assert max(b.features[:, column].max() for b in batches) > 0

    async def test_a_batch_without_rows_is_passed_on_untouched(self) -> None:
        empty = FeatureBatch.empty(("terminal",), ("amount",))
        subtask = Subtask(next_stage())
        assert await subtask.run((BUCKETS[0], empty)) == []
        empty.dead_letters.append(("0-1", b"{}"))
        [(_, batch)] = await subtask.run((BUCKETS[0], empty))
        assert (len(batch), batch.dead_letters) == (0, [("0-1", b"{}")])


class TestLabelReader:
    async def test_every_label_ends_in_exactly_one_place(self) -> None:
        for element in labels():
            outputs = await Subtask(label_reader()).run(element)
            read = [b for _, b in outputs if isinstance(b, LabelBatch)]
            letters = [d for _, b in outputs if isinstance(b, FeatureBatch) for d in b.dead_letters]
            assert sum(len(b.ids) for b in read) + len(letters) == len(offsets_of(element))

    async def test_each_label_goes_to_the_bucket_of_its_key(self) -> None:
        outputs = await Subtask(label_reader()).run_all(labels())
        for bucket, batch in outputs:
            if isinstance(batch, LabelBatch):
                assert {ROUTING.of(e) for e in batch.entities} == {bucket}
        assert {bucket for bucket, _ in outputs} == set(BUCKETS)

    async def test_a_stage_passes_refused_labels_on(self) -> None:
        outputs = await Subtask(label_reader()).run_all(labels())
        refused = [d for _, b in outputs if isinstance(b, FeatureBatch) for d in b.dead_letters]
        passed = [b for _, b in await Subtask(next_stage()).run_all(outputs)]
        assert [d for b in passed for d in b.dead_letters] == refused
        assert {json.loads(d)["code"] for _, d in refused} == {"missing_field"}


# -- the scorers --------------------------------------------------------------------------------


@pytest.fixture
def embedded(models_dir: Path, output: Output) -> EmbeddedScorer:
    return EmbeddedScorer(models_dir / "fraud" / "7", "fraud", output)


class TestScorers:
    async def test_served_and_embedded_give_the_same(
        self, server_port: int, output: Output, embedded: EmbeddedScorer
    ) -> None:
        served = Subtask(ServedScorer(client_options(server_port), output))
        stream = await scorable()
        try:
            got = plain(await served.run_all(stream))
        finally:
            await served.close()
        assert got == plain(await Subtask(embedded).run_all(stream))
        assert served.context.metrics.gauges["fallbacks"]() == 0
        assert served.context.metrics.gauges["breaker_state"]() == 0

    async def test_every_row_has_one_prediction_of_the_model(
        self, embedded: EmbeddedScorer
    ) -> None:
        stream = await scorable()
        rows = plain(await Subtask(embedded).run_all(stream))
        predictions = [p for row in rows for _, p in row[0]]
        alerts = [a for row in rows for _, a in row[1]]
        assert [p["event_id"] for p in predictions] == [i for _, b in stream for i in b.ids]
        assert {(p["model"]["name"], p["model"]["version"]) for p in predictions} == {("fraud", 7)}
        assert len({p["prediction_id"] for p in predictions}) == len(predictions)
        assert len(alerts) == sum(p["score"] > 0.5 for p in predictions) > 0
        for alert in alerts:
            assert alert["event"]["id"] == alert["prediction"]["event_id"]
            assert len(alert["reasons"]) == 3

    async def test_refused_records_leave_once(self, embedded: EmbeddedScorer) -> None:
        stream = await scorable()
        rows = plain(await Subtask(embedded).run_all(stream))
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

    async def test_without_a_server_every_row_gets_the_fallback(self, output: Output) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        subtask = Subtask(ServedScorer(client_options(port, deadline_ms=500), output))
        stream = await scorable()
        try:
            rows = plain(await subtask.run_all(stream))
        finally:
            await subtask.close()
        predictions = [p for row in rows for _, p in row[0]]
        assert [p["event_id"] for p in predictions] == [i for _, b in stream for i in b.ids]
        assert {p["score"] for p in predictions} == {0.25}
        assert all(p["fallback_reason"] and p["model"]["version"] is None for p in predictions)
        assert [row[1] for row in rows] == [[]] * len(rows)
        assert subtask.context.metrics.gauges["fallbacks"]() == len(predictions)


def connections_to(port: int) -> int:
    """How many connections of this process to a port are open."""
    open_ = psutil.Process().net_connections("tcp")
    return sum(c.raddr.port == port and c.status == "ESTABLISHED" for c in open_ if c.raddr)


async def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


class TestServedScorerAsPyFlinkEndsIt:
    """PyFlink stops the event loop of the calls, then calls ``close`` in another thread."""

    @pytest.fixture
    async def loop(self) -> AsyncIterator[AsyncFunctionRunner]:
        """PyFlink's thread and loop for the calls of an async function."""
        runner = AsyncFunctionRunner()
        runner.daemon = True
        runner.start()
        await asyncio.to_thread(runner.wait_ready)
        yield runner
        await asyncio.to_thread(runner.stop)

    async def test_the_connection_is_closed(
        self, loop: AsyncFunctionRunner, server_port: int, output: Output
    ) -> None:
        scorer = Subtask(ServedScorer(client_options(server_port), output))
        batch = next(element for element in await scorable() if len(element[1]))
        calling = scorer.function.async_invoke(batch)
        future = asyncio.run_coroutine_threadsafe(calling, loop._loop)
        [row] = await asyncio.wrap_future(future)
        assert {p["fallback_reason"] for _, p in plain(row)[0]} == {None}
        assert connections_to(server_port) == 1
        await asyncio.to_thread(loop.stop)
        await scorer.close()
        await until(lambda: connections_to(server_port) == 0)

    async def test_a_call_in_flight_does_not_keep_it_from_closing(
        self, loop: AsyncFunctionRunner, output: Output
    ) -> None:
        batch = next(element for element in await scorable() if len(element[1]))
        with socket.create_server(("127.0.0.1", 0)) as silent:
            port = int(silent.getsockname()[1])
            scorer = Subtask(ServedScorer(client_options(port), output))
            calling = scorer.function.async_invoke(batch)
            future = asyncio.run_coroutine_threadsafe(calling, loop._loop)
            await until(lambda: connections_to(port) == 1)
            await asyncio.to_thread(loop.stop)
            await scorer.close()
            assert not future.done()

    async def test_it_may_be_closed_unused_and_twice(
        self, server_port: int, output: Output
    ) -> None:
        scorer = Subtask(ServedScorer(client_options(server_port), output))
        await scorer.close()
        await scorer.close()

    async def test_it_may_be_opened_again(self, server_port: int, output: Output) -> None:
        stream = await scorable()
        first = Subtask(ServedScorer(client_options(server_port), output))
        expected = plain(await first.run_all(stream))
        await first.close()
        again = Subtask(first.function)
        assert plain(await again.run_all(stream)) == expected
        assert again.context.metrics.gauges["fallbacks"]() == 0
        await again.close()


async def test_records_led_astray_by_their_kafka_key_are_refused() -> None:
    """Each card's records go to the bucket of another card's key: features would be wrong."""
    settings = stage_settings("card", max_rows=100)
    settings[2] = Routing(BUCKETS, by_record_key=True)
    subtask = Subtask(FirstStage(*settings))
    rng = random.Random(3)
    cards = [f"c{n}" for n in range(12)]
    home = [BUCKETS[n] for n in sql_buckets(cards, len(BUCKETS))]
    assert {*home} == {*BUCKETS}
    records = [a_record(rng, n, card) for n, card in enumerate(cards)]
    rows = await subtask.run(micro_batch(BUCKETS[0], records, 0))
    strays = [letter for row in rows for letter in row[1].dead_letters]
    kept = [key for row in rows for key in row[1].keys]
    assert sorted(kept) == sorted(c for c, bucket in zip(cards, home, strict=True) if bucket == 3)
    assert len(strays) == home.count(8)
    assert {json.loads(letter)["code"] for _, letter in strays} == {"key_mismatch"}
