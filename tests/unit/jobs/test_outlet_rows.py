"""A store reads a batch at once or record by record; its rows are the same."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from jobs.outlets.rows import Rows, last_of_each
from jobs.outlets.target import Fate, Message
from tests.support.predictions import predictions

FEATURES = ("amount", 'odd "name"', "model.name")


def message(document: Any) -> Message:
    raw = document if isinstance(document, bytes) else orjson.dumps(document)
    return Message(0, 0, b"", raw)


@pytest.mark.parametrize("features", [FEATURES, ()])
def test_both_ways_of_reading_give_the_same_rows(features: tuple[str, ...]) -> None:
    documents = predictions(300, FEATURES)
    documents[7] |= {"more": [1, {"x": None}], "features": {"amount": 3}}
    documents[8]["score"] = 1
    del documents[9]["fallback_reason"], documents[9]["model"]["version"]
    rows, messages = Rows(features), [message(document) for document in documents]
    together, at, outcomes = rows.read(messages)
    assert at == [*range(300)] and {o.fate for o in outcomes} == {Fate.DONE}
    broken, at, outcomes = rows.read([*messages, message(b"{")])
    assert outcomes[-1].fate is Fate.REFUSED and at == [*range(300)]
    assert together.equals(broken)


@pytest.mark.parametrize(
    "raw", [b"", b"null", b"[]", b"{}", b'{"key": 1}', b'{"a":1}\n{"b":2}', b"\xff"]
)
def test_what_is_no_prediction_is_refused_alone(raw: bytes) -> None:
    documents = predictions(20, FEATURES)
    messages = [message(document) for document in documents]
    table, at, outcomes = Rows(FEATURES).read([*messages[:10], message(raw), *messages[10:]])
    assert [n for n, o in enumerate(outcomes) if o.fate is Fate.REFUSED] == [10]
    assert at == [*range(10), *range(11, 21)]
    assert table["event_id"].to_pylist() == [d["event_id"] for d in documents]


def test_a_pretty_record_is_read_too() -> None:
    (document,) = predictions(1, FEATURES)
    pretty = message(orjson.dumps(document, option=orjson.OPT_INDENT_2))
    table, _, _ = Rows(FEATURES).read([pretty])
    assert table.equals(Rows(FEATURES).read([message(document)])[0])


def test_the_last_row_of_each_identity_stays() -> None:
    first = predictions(50, FEATURES)
    again = [d | {"score": 0.5} for d in first[::2]]
    table = Rows(FEATURES).read([message(d) for d in first + again])[0]
    kept = last_of_each(table)
    assert kept["event_id"].to_pylist() == [d["event_id"] for d in first[1::2] + again]
    assert last_of_each(kept) is kept
