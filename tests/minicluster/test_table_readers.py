"""Tables out of a real broker's topics and out of files that change, without a job."""

from __future__ import annotations

import pickle
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import orjson
import pytest

from tests.support.topics import TableTopic
from tests.support.waiting import wait_until
from tests.unit.udfs.test_tables import events
from udfs.definition.enrichment import TableSpec
from udfs.enrichment.table_readers import (
    KafkaAccess,
    OpenTables,
    TableCounts,
    TableError,
    Tables,
    _readings,
    _release,
    _use,
)

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(120)]

_numbers = count()


@pytest.fixture
def topic(bootstrap: str) -> TableTopic:
    return TableTopic(bootstrap, f"shops{next(_numbers)}")


Opened = Callable[..., OpenTables]


def tables(bootstrap: str, **changes: Any) -> Tables:
    fields = [{"name": "risk", "type": "float"}]
    whole = {"name": "shop", "key": "merchant", "fields": fields} | changes
    return Tables((TableSpec.model_validate(whole),), KafkaAccess(bootstrap))


@pytest.fixture
def opened(bootstrap: str) -> Iterator[Opened]:
    """Opens a table; all are closed at the end."""
    found: list[OpenTables] = []

    def open_one(**changes: Any) -> OpenTables:
        found.append(tables(bootstrap, **changes).open())
        return found[-1]

    yield open_one
    for one in found:
        one.close()
    assert not _readings


def risks(of: OpenTables, *keys: str, time_ms: int = 10**13) -> list[float]:
    joined = of.join(events([*keys], [time_ms] * len(keys)))
    found: list[float] = joined.numbers["shop_risk"].tolist()
    return found


def until(of: OpenTables, key: str, risk: float) -> None:
    def is_so() -> bool:
        return bool(np.array_equal(risks(of, key), [risk], equal_nan=True))

    wait_until(is_so, 30, f"{key} has risk {risk}")


def test_all_that_is_there_is_loaded_and_then_followed(topic: TableTopic, opened: Opened) -> None:
    topic.create()
    topic.put({f"m{n}": {"risk": n} for n in range(5_000)})
    shops = opened(topic=topic.name)
    assert risks(shops, *(f"m{n}" for n in range(5_000))) == list(range(5_000))
    topic.put({"m1": {"risk": 0.5}, "m2": None}, time_ms=1_007)
    until(shops, "m1", 0.5)
    until(shops, "m2", np.nan)
    assert risks(shops, "m1", time_ms=1_006) == [1]  # as a replay sees it
    assert shops.take_counts() == TableCounts(records=5_002)


def test_a_record_that_cannot_be_used_leaves_the_old_row(
    topic: TableTopic, opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    topic.create()
    topic.put({"m1": {"risk": 0.5}})
    shops = opened(topic=topic.name)
    topic.put({"m1": b"{", "": {"risk": 1}})
    topic.put({"m1": {"risk": "high"}})
    topic.put({"m2": {"risk": 1}})
    until(shops, "m2", 1)
    wait_until(lambda: _only_reading().counts.records == 5, 30, "all is read")
    assert shops.take_counts() == TableCounts(records=5, refused=3)
    assert shops.take_counts() == TableCounts()
    assert risks(shops, "m1") == [0.5]
    assert "shop_risk must be float, is str" in caplog.text


def _only_reading() -> Any:
    (reading,) = _readings.values()
    return reading


def test_a_topic_that_comes_late_is_waited_for(
    topic: TableTopic,
    opened: Opened,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("udfs.enrichment.table_readers.LOG_EVERY_S", 0.1)
    found: list[OpenTables] = []
    waiting = Thread(target=lambda: found.append(opened(topic=topic.name, min_rows=3)))
    waiting.start()
    wait_until(lambda: f"there is no topic {topic.name}" in caplog.text, 30, "it says so")
    topic.create()
    topic.put({"m1": {"risk": 1}, "m2": {"risk": 2}})
    wait_until(lambda: "2 rows so far, min_rows is 3" in caplog.text, 30, "it says so")
    assert not found
    topic.put({"m3": {"risk": 3}})
    waiting.join(30)
    assert risks(found[0], "m1", "m2", "m3") == [1, 2, 3]


@contextmanager
def read_until(of: Tables, state: str) -> Iterator[None]:
    """Another one uses the table and has come so far: a short timeout is then long enough."""
    key = (of.specs[0], of.kafka)
    _use(key)
    try:
        source = _readings[key]._source
        wait_until(lambda: bool(re.search(state, source.state())), 30, f"its state is {state}")
        yield
    finally:
        _release(key)


def test_a_table_that_does_not_come_is_an_error(
    topic: TableTopic, opened: Opened, bootstrap: str
) -> None:
    shops = tables(bootstrap, topic=topic.name, load_timeout="300ms")
    absent = f"no topic {topic.name}"
    told = f"'shop' was not loaded within .*{absent}"
    with read_until(shops, absent), pytest.raises(TableError, match=told):
        shops.open()
    topic.create()
    told = "0 rows so far, min_rows is 1; no event is scored"
    with read_until(shops, "^$"), pytest.raises(TableError, match=told):
        shops.open()
    assert risks(opened(topic=topic.name, min_rows=0), "m1") == pytest.approx([np.nan], nan_ok=True)


def test_no_broker_is_said() -> None:
    shops = tables("127.0.0.1:9", topic="shops", load_timeout="300ms")
    told = "no broker answers|Connect"
    with read_until(shops, told), pytest.raises(TableError, match=told):
        shops.open()


def test_the_subtasks_of_a_process_share_a_table(topic: TableTopic, opened: Opened) -> None:
    topic.create()
    topic.put({"m1": {"risk": 1}})
    first, second = opened(topic=topic.name), opened(topic=topic.name)
    assert len(_readings) == 1
    first.close()
    topic.put({"m1": {"risk": 2}}, time_ms=1_001)
    until(second, "m1", 2)


def test_a_restart_in_a_task_manager_finds_it_there_for_a_time(
    topic: TableTopic, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic.create()
    topic.put({"m1": {"risk": 1}})
    with monkeypatch.context() as patch:
        patch.setattr("udfs.enrichment.table_readers.is_embedded", lambda: True)
        first = opened(topic=topic.name)
        there = _only_reading()
        first.close()
        again = opened(topic=topic.name)
        assert _only_reading() is there
        topic.put({"m1": {"risk": 2}}, time_ms=1_001)
        until(again, "m1", 2)
        again.close()
        timers = [t for t in threading.enumerate() if isinstance(t, threading.Timer)]
        first_ends, again_ends = sorted(timers, key=lambda timer: timer.args[2])
        for timer in (first_ends, again_ends):
            timer.cancel()  # the test is the clock
        first_ends.function(*first_ends.args)
        assert _only_reading() is there, "it was let go of again since"
        again_ends.function(*again_ends.args)
        assert not _readings


def test_a_deleted_topic_is_read_when_it_is_back(
    topic: TableTopic, opened: Opened, bootstrap: str
) -> None:
    from confluent_kafka.admin import AdminClient

    topic.create()
    topic.put({f"m{n}": {"risk": 1} for n in range(100)})
    shops = opened(topic=topic.name)
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    admin.delete_topics([topic.name])[topic.name].result(30)
    wait_until(lambda: topic.name not in admin.list_topics(timeout=5).topics, 30, "it is gone")
    topic.create()
    topic.put({"m1": {"risk": 2}}, time_ms=1_001)
    until(shops, "m1", 2)


def test_a_file_is_read_again_when_it_changes(tmp_path: Path, opened: Opened) -> None:
    path = tmp_path / "shops.jsonl"
    found: list[OpenTables] = []
    waiting = Thread(target=lambda: found.append(opened(file=str(path))))
    waiting.start()
    _replace(path, {"merchant": "m1", "risk": 1})
    waiting.join(30)
    assert risks(found[0], "m1") == [1]
    _replace(path, {"merchant": "m1", "risk": 2})
    until(found[0], "m1", 2)
    _replace(path, b"{")
    wait_until(lambda: _only_reading().counts.refused == 1, 30, "the broken file is refused")
    assert risks(found[0], "m1") == [2]
    _replace(path, {"merchant": "m1", "risk": 3})
    until(found[0], "m1", 3)


def _replace(path: Path, row: dict[str, Any] | bytes) -> None:
    draft = path.with_suffix(".draft")
    draft.write_bytes(row if isinstance(row, bytes) else orjson.dumps(row))
    draft.rename(path)


def test_what_is_declared_can_be_shipped() -> None:
    shops = tables("host:1", topic="shops")
    assert pickle.loads(pickle.dumps(shops)) == shops
