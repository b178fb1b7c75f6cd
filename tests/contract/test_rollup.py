"""What the operator that rolls readings up must keep: accounts, restarts, input purity."""

from __future__ import annotations

import copy
import json
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import cloudpickle
import pytest

from tests.support.flink import END_MS, EVENT_TIME, PROCESSING_TIME, Stored, Subtask
from udfs.batches.batch import ClosedWindows
from udfs.batches.buckets import sql_buckets
from udfs.batches.routing import Routing
from udfs.definition.event import EventSpec
from udfs.definition.feature import FeatureSpec
from udfs.definition.rollup import RollupSpec
from udfs.definition.schema import Schema
from udfs.features.histories import StateFormatError
from udfs.rollup.operator import RollupStage
from udfs.scoring.base import Scoring
from udfs.stages.first import FirstStage

BUCKETS = (3, 8)
BEGIN_MS = 1_700_000_000_000
IDLE_MS, SILENT_MS = 15_000, 60_000
SECTIONS: dict[str, Any] = {
    "event": EventSpec.model_validate(
        {
            "id": "id",
            "time": {"field": "t", "allowed_lateness": "2s", "max_future": "10m"},
            "dedupe_within": "1m",
            "fields": [
                *({"name": n, "type": "string"} for n in ("id", "machine", "line")),
                {"name": "t", "type": "int"},
                {"name": "p", "type": "float", "required": False},
            ],
        }
    ),
    "key": "machine",
    "rollup": RollupSpec.model_validate(
        {
            "every": "10s",
            "idle": IDLE_MS,
            "silent_after": SILENT_MS,
            "keep": ["line"],
            "fields": [{"value": "p", "aggregates": ["mean", "std", "slope"]}],
        }
    ),
    "features": FeatureSpec.model_validate(
        {"expressions": [{"name": "p_mean", "type": "value", "fields": ["p_mean"]}]}
    ),
}
SCHEMA = Schema(**Schema.parts(SECTIONS))


class Clock:
    """Stands still until it is set."""

    def __init__(self, now_ms: int = BEGIN_MS) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms


def stage(clock: Clock | None = None, **changes: Any) -> RollupStage:
    named = {
        "schema": SCHEMA,
        "routing": Routing(BUCKETS),
        "topic": "readings",
        "ttl_s": 3_600,
        "journal_events": 20,
    } | changes
    return RollupStage(**named, clock=clock or Clock())


def micro_batch(bucket: int, records: list[bytes], first_offset: int) -> tuple[int, str]:
    frames = [
        f"0 {first_offset + i} {BEGIN_MS + first_offset} {len(r)} {r.decode('latin-1')}"
        for i, r in enumerate(records)
    ]
    return bucket, " ".join(frames)


def batches(seed: int = 1, count: int = 40) -> list[tuple[int, str]]:
    """Readings of some machines a second, late ones, repeats, conflicts and bad records."""
    rng, made, sent = random.Random(seed), [], {bucket: [b"{}"] for bucket in BUCKETS}
    for step in range(count):
        bucket, records = BUCKETS[step % 2], []
        for machine in range(3):
            kind = rng.random()
            late_ms = rng.choice([0, 0, 0, 1_500, 11_000])
            document = {
                "id": f"r{step}-{machine}",
                "t": BEGIN_MS + 1_000 * step - late_ms,
                "machine": f"m{bucket}-{machine}",
                "line": rng.choice(["north", "süd"]),
                "p": rng.choice([None, 1.5, 1e9, -2.0]),
            }
            record = json.dumps(document).encode()
            if kind < 0.1:
                record = rng.choice([b"", b"\xff", record[:-4]])
            elif kind < 0.3:
                record = rng.choice(sent[bucket])
            elif kind < 0.4:
                record = rng.choice(sent[bucket]).replace(b"p", b"q")
            sent[bucket].append(record)
            records.append(record)
        made.append(micro_batch(bucket, records, 10 * step))
    return made


def plain(rows: list[Any]) -> list[Any]:
    """What came out as values that ``==`` compares."""
    return [
        (
            bucket,
            made.events.raw if made.events else [],
            made.events.positions.tolist() if made.events else [],
            made.dead_letters,
            made.duplicates,
            made.silences,
        )
        for bucket, made in rows
    ]


def made_of(rows: list[Any]) -> Iterator[ClosedWindows]:
    for row in rows:
        yield row[1]


def test_every_record_is_in_one_window_or_told() -> None:
    subtask = Subtask(stage())
    rows = subtask.run_all(batches()) + subtask.end()
    counted = Counter[str]()
    for made in made_of(rows):
        counted["duplicates"] += len(made.duplicates)
        for _, record in made.dead_letters:
            counted[json.loads(record)["code"]] += 1
        for raw in made.events.raw if made.events else ():
            window = json.loads(raw)
            counted["readings"] += window["readings"]
            counted[window["closed_by"]] += 1
    assert sum(n for name, n in counted.items() if name not in ("time", "end")) == 3 * 40
    told = {"readings", "duplicates", "late", "id_conflict", "not_json", "empty", "not_utf8"}
    assert told <= counted.keys() and counted["time"] and counted["end"] == 6
    counters = {name: c.value for name, c in subtask.context.metrics.counters.items()}
    assert counters["readings"] == counted["readings"]
    assert counters["late_readings"] == counted["late"]
    assert counters["windows"] == counted["time"] + counted["end"]


def test_the_function_survives_shipping() -> None:
    wanted = plain(Subtask(stage()).run_all(batches()))
    shipped = cloudpickle.loads(cloudpickle.dumps(stage()))
    assert plain(Subtask(shipped).run_all(batches())) == wanted
    assert wanted


def test_the_input_is_unchanged() -> None:
    given = batches()
    before = copy.deepcopy(given)
    Subtask(stage()).run_all(given)
    assert given == before


@pytest.mark.parametrize("journal_events", [0, 20, 10_000])
@pytest.mark.parametrize("cut", [1, 7, 22, 39])
def test_a_restart_changes_nothing(cut: int, journal_events: int) -> None:
    given, clock = batches(), Clock()

    def run(subtask: Subtask, part: list[Any]) -> list[Any]:
        rows = []
        for element in part:
            rows += subtask.run(element)
            clock.now_ms += 1_000
            if clock.now_ms % 5_000 == 0:
                rows += due(subtask, clock)
        return rows

    whole = Subtask(stage(clock, journal_events=journal_events))
    wanted = plain(run(whole, given) + whole.end())
    clock.now_ms = BEGIN_MS
    first = Subtask(stage(clock, journal_events=journal_events))
    rows = run(first, given[:cut])
    again = Subtask(stage(clock, journal_events=journal_events), first.snapshot())
    rows += run(again, given[cut:]) + again.end()
    assert plain(rows) == wanted


def due(subtask: Subtask, clock: Clock) -> list[Any]:
    """The timers of processing time whose time has come."""
    rows = []
    for bucket, time_ms in subtask.pending(PROCESSING_TIME):
        if time_ms <= clock.now_ms:
            with subtask.at(bucket) as context:
                del context.current(PROCESSING_TIME)[time_ms]
                rows += subtask.function.on_timer(time_ms, context)
    return rows


def reading(second: float, machine: str = "m", number: int | None = None) -> bytes:
    document = {
        "id": f"{machine}-{second if number is None else number}",
        "t": BEGIN_MS + round(1_000 * second),
        "machine": machine,
        "line": "l",
        "p": 1.0,
    }
    return json.dumps(document).encode()


def after(subtask: Subtask, clock: Clock, passed_ms: int) -> list[Any]:
    """What the clock does in so many ms, a tick at a time."""
    rows, until_ms = [], clock.now_ms + passed_ms
    while clock.now_ms < until_ms:
        clock.now_ms = min(until_ms, clock.now_ms + 250)
        rows += due(subtask, clock)
    return rows


def one_bucket(clock: Clock, stored: Stored | None = None) -> Subtask:
    return Subtask(stage(clock, routing=Routing((3,))), stored)


def test_a_silent_machine_s_window_is_closed_and_its_silence_told_once() -> None:
    clock = Clock()
    subtask = one_bucket(clock)
    assert subtask.run(micro_batch(3, [reading(1), reading(2)], 0)) == []
    assert after(subtask, clock, IDLE_MS - 1) == []
    (window,) = made_of(after(subtask, clock, 1_001))
    assert window.events is not None
    document = json.loads(window.events.raw[0])
    assert (document["readings"], document["closed_by"], document["line"]) == (2, "idle", "l")
    (told,) = made_of(after(subtask, clock, 10 * SILENT_MS))
    ((key, record),) = told.silences
    assert key == "m"
    assert json.loads(record) == {
        "schema_version": 1,
        "kind": "silent",
        "event_id": f"m@silent@{BEGIN_MS + 2_000}",
        "key": "m",
        "last_event_time_ms": BEGIN_MS + 2_000,
        "silent_after_ms": SILENT_MS,
        "told_time_ms": pytest.approx(BEGIN_MS + SILENT_MS, abs=1_000),
    }


def test_after_a_restart_a_machine_that_says_nothing_is_found_idle_and_silent() -> None:
    """It is in the state alone; it counts as heard at the restart, and a told silence as told."""
    clock = Clock()
    subtask = one_bucket(clock)
    subtask.run(micro_batch(3, [reading(1)], 0))
    clock.now_ms += 3_600_000
    again = one_bucket(clock, subtask.snapshot())
    rows = after(again, clock, 2_000)
    assert rows == [], "an hour without the job is no hour of silence"
    (window, told) = made_of(after(again, clock, 2 * SILENT_MS))
    assert window.events is not None and window.events.texts["closed_by"] == ["idle"]
    assert len(told.silences) == 1
    third = one_bucket(clock, again.snapshot())
    assert after(third, clock, 3 * SILENT_MS) == []
    (late,) = made_of(third.run(micro_batch(3, [reading(9)], 50)))
    assert json.loads(late.dead_letters[0][1])["code"] == "late", "the mark is in the state"


def test_a_job_that_stood_still_takes_no_machine_for_idle() -> None:
    clock = Clock()
    subtask = one_bucket(clock)
    subtask.run(micro_batch(3, [reading(1)], 0))
    clock.now_ms += 10 * SILENT_MS
    assert due(subtask, clock) == [], "its timer was late: its input was, too"
    assert [m for m in made_of(after(subtask, clock, IDLE_MS + 1_000)) if m.events]


def test_a_window_whose_reading_is_overdue_is_closed_by_the_clock() -> None:
    assert SCHEMA.rollup is not None
    rollup = SCHEMA.rollup.model_copy(update={"overdue": 1_000, "idle": 600_000})
    clock = Clock()
    subtask = Subtask(
        stage(clock, schema=SCHEMA.model_copy(update={"rollup": rollup}), routing=Routing((3,)))
    )
    subtask.run(micro_batch(3, [reading(9)], 0))
    assert after(subtask, clock, 3_900) == []
    later = Clock(clock.now_ms)
    restored = stage(later, schema=SCHEMA.model_copy(update={"rollup": rollup}))
    again = Subtask(restored, subtask.snapshot())
    assert after(again, later, 10_000) == [], "what came meanwhile has not been read yet"
    (window,) = made_of(after(subtask, clock, 400))
    assert window.events is not None and window.events.texts["closed_by"] == ["clock"]
    (late,) = made_of(subtask.run(micro_batch(3, [reading(8)], 50)))
    assert json.loads(late.dead_letters[0][1])["code"] == "late"
    assert not [m for m in made_of(subtask.run(micro_batch(3, [reading(10)], 60))) if m.events]


def test_what_comes_after_the_input_s_last_watermark_is_closed_at_once() -> None:
    subtask = one_bucket(Clock())
    subtask.run(micro_batch(3, [reading(1)], 0))
    assert subtask.pending(EVENT_TIME) == [(3, END_MS - 1)]
    assert len(subtask.end()) == 1
    (window,) = made_of(subtask.run(micro_batch(3, [reading(25)], 9)))
    assert window.events is not None and window.events.texts["closed_by"] == ["end"]


def test_a_reading_that_its_kafka_key_led_astray_is_refused() -> None:
    labels = (3, 8)
    subtask = Subtask(stage(routing=Routing(labels, by_record_key=True)))
    own = labels[int(sql_buckets(["m"], 2)[0])]
    other = labels[1 - labels.index(own)]
    assert subtask.run(micro_batch(own, [reading(1)], 0)) == []
    (made,) = made_of(subtask.run(micro_batch(other, [reading(2)], 5)))
    assert json.loads(made.dead_letters[0][1])["code"] == "key_mismatch"


def test_state_of_another_release_is_refused() -> None:
    subtask = one_bucket(Clock())
    subtask.run(micro_batch(3, [reading(1)], 0))
    after(subtask, clock := subtask.function._clock, 2 * IDLE_MS)
    stored = subtask.snapshot()
    stored["readings"][3]["mm"] = b"\x02" + stored["readings"][3]["mm"][1:]
    with pytest.raises(StateFormatError, match="another release"):
        one_bucket(clock, stored).run(micro_batch(3, [reading(30)], 9))


class PassOn(Scoring):
    """The batches as they are."""

    def open(self, runtime_context: Any) -> None:
        pass

    def close(self) -> None:
        pass

    def take(self, bucket: int, batch: Any, timers: Any) -> Iterator[Any]:
        yield batch


def test_the_first_stage_takes_windows_for_events() -> None:
    windows = Subtask(stage()).run_all(batches())
    first = FirstStage(
        SCHEMA, "machine", Routing(BUCKETS), "readings", 3_600, 1 << 40, 20, PassOn()
    )
    subtask = Subtask(first)
    made = subtask.run_all((bucket, value) for bucket, value in windows)
    wanted = [raw for w in made_of(windows) if w.events for raw in w.events.raw]
    assert [raw for batch in made for raw in batch.raw] == wanted
    assert all(
        batch.features[n, 0] == json.loads(raw)["p_mean"] or json.loads(raw)["p_mean"] is None
        for batch in made
        for n, raw in enumerate(batch.raw)
    )
    refused = [d for w in made_of(windows) for d in w.dead_letters]
    assert [d for batch in made for d in batch.dead_letters] == refused
    assert subtask.context.metrics.counters["dead_letters"].value == 0, "counted by the roll-up"
