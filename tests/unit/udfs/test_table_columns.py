"""What is read from columns is what the decoder makes of the same rows as JSON."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from udfs.batches.events import OFFSET, Decoder, Events, Reject
from udfs.definition.event import EventSpec, FieldSpec, TimeSpec
from udfs.definition.expression import ExpressionFeature
from udfs.definition.feature import FeatureSpec
from udfs.definition.schema import Schema
from udfs.offline import history
from udfs.offline.history import HistoryError, history_of
from udfs.offline.table_columns import read_columns

FIRST_MS = 1_735_689_600_000
KAFKA_MS = 1 << 62


def make_schema(time_format: Any = "epoch_ms", max_bytes: int = 400) -> Schema:
    is_text = time_format == "iso8601"
    fields = (
        FieldSpec(name="id", type="string"),
        FieldSpec(name="t", type="string" if is_text else "int"),
        FieldSpec(name="card", type="string"),
        FieldSpec(name="amount", type="float", min=-5, max=1e6),
        FieldSpec(name="rate", type="float", required=False, default=0.5),
        FieldSpec(name="items", type="int", required=False),
        FieldSpec(name="count", type="int", min=0),
        FieldSpec(name="flag", type="bool", required=False, default=True),
        FieldSpec(name="kind", type="string", required=False, default="other"),
        FieldSpec(name="note", type="string", required=False),
    )
    return Schema(
        event=EventSpec(
            id="id",
            time=TimeSpec(field="t", format=time_format),
            fields=fields,
            max_bytes=max_bytes,
        ),
        key="card",
        features=FeatureSpec(
            expressions=(ExpressionFeature(name="amount", type="value", fields=("amount",)),)
        ),
    )


# Values that fit, values that do not, and some that look alike: 1, True, 1.0, "1".
TEXTS = ["a", "b", "", "0012", "1", "\x1f", "x\ny", "é", "名" * 90, "z" * 300, "😀", "\ud800"]
NUMBERS = [0, 1, -1, 5, 2**53 + 1, 2**63 - 1, -(2**63), 2**63, 2**64, 10**400]
FLOATS = [0.0, -0.0, 1.0, 0.1, -5.0, -5.1, 1e6, 1e7, 2.0**53, 2.0**63, 1e300, math.inf, -math.inf]
TIMES = [FIRST_MS, FIRST_MS + 1, 12, 0, -1, 2**62, 2**63 - 1, FIRST_MS // 1_000, 10**14 + 1]
ISO = ["2025-01-01T00:00:00Z", "2025-01-01", "2025-01-01T00:00:00.0005+01:00", "1999-01-01", "9999"]
NONE = [None, math.nan, pd.NA, pd.NaT]
ODD = [True, False, b"x", [1], {"a": 1}, (1, 2), np.float32(0.1), np.int64(3), np.str_("a")]
ANYTHING = st.sampled_from([*TEXTS, *NUMBERS, *FLOATS, *NONE, *ODD])
PLAIN: dict[str, list[Any]] = {
    "id": TEXTS[:2],
    "card": TEXTS[:2],
    "amount": FLOATS[:5],
    "rate": FLOATS[:5],
    "items": NUMBERS[:5],
    "count": NUMBERS[:2],
    "flag": [True, False],
    "kind": TEXTS[:2],
    "note": TEXTS[:2],
}
ALIKE: dict[str, list[Any]] = {
    name: TEXTS if name in ("id", "card", "kind", "note") else [*FLOATS, *NONE[:2]]
    for name in PLAIN
}
DTYPES = {
    "amount": [
        "float64",
        "float32",
        "float16",
        "Float64",
        "object",
        "int64",
        "int8",
        "bool",
        "str",
    ],
    "rate": ["float64", "float32", "Float64", "object", "Int64", "uint64"],
    "items": ["float64", "float32", "Int64", "Float64", "object", "boolean"],
    "count": ["int64", "int8", "uint8", "uint64", "float64", "object", "bool", "category"],
    "flag": ["bool", "boolean", "object", "int64", "float64"],
    "id": ["object", "string", "category"],
    "card": ["object", "string", "category", "string[pyarrow]"],
    "kind": ["object", "string", "category"],
    "note": ["object", "category"],
}


@st.composite
def tables(draw: st.DrawFn) -> tuple[Schema, pd.DataFrame]:
    time_format = draw(st.sampled_from(["epoch_ms", "epoch_s", "iso8601"]))
    rows = draw(st.integers(1, 8))
    times = st.sampled_from(ISO if time_format == "iso8601" else TIMES)
    columns: dict[str, pd.Series[Any]] = {}
    for name, plain in (PLAIN | {"t": []}).items():
        values = times if name == "t" else st.sampled_from(plain)
        mess = draw(st.integers(0, 3))
        if mess == 1 and name != "t":
            values = st.sampled_from(ALIKE[name])
        elif mess == 2:
            values = st.one_of(values, values, values, ANYTHING)
        items = draw(st.lists(values, min_size=rows, max_size=rows))
        columns[name] = as_series(items, draw(st.sampled_from([None, *DTYPES.get(name, [])])))
    for name in ("rate", "items", "flag", "kind", "note"):
        if draw(st.integers(0, 9)) == 0:
            del columns[name]
    return make_schema(time_format), pd.DataFrame(columns)


def as_series(items: list[Any], dtype: str | None) -> pd.Series[Any]:
    """The column in that type if it can be, else as pandas would store it."""
    plain = pd.Series(items, dtype=object)
    for wanted in (dtype, None):
        try:
            return plain.astype(wanted) if wanted else plain.infer_objects()
        except (TypeError, ValueError, OverflowError):
            continue
    return plain


def by_json(schema: Schema, frame: pd.DataFrame) -> tuple[list[Events], list[Reject]]:
    names = [f.name for f in schema.event.fields if f.name in frame]
    raw = history._records(schema, frame[names])
    decoder = Decoder.for_events(schema.event, schema.key_fields)
    decoded = decoder.decode(raw, history._positions(np.arange(len(frame))))
    return decoded.parts, decoded.rejects


@settings(max_examples=600)
@given(table=tables())
def test_columns_are_read_as_the_decoder_reads_their_json(
    table: tuple[Schema, pd.DataFrame],
) -> None:
    schema, frame = table
    parts, rejects = by_json(schema, frame)
    if not parts:
        with pytest.raises(HistoryError, match="accept none of the first"):
            history_of(schema, frame)
        return
    got = history_of(schema, frame)
    assert [(r.offset, r.raw, r.code, r.message) for r in got.rejects] == [
        (r.offset, r.raw, r.code, r.message) for r in rejects
    ]
    assert got.table_rows.tolist() == [n for p in parts for n in p.positions[:, OFFSET].tolist()]
    assert got.events.times.tolist() == [t for p in parts for t in p.times.tolist()]
    for name, texts in got.events.texts.items():
        assert list(texts) == [v for p in parts for v in p.texts[name]], name
    for name, numbers in got.events.numbers.items():
        wanted = np.concatenate([p.numbers[name] for p in parts])
        assert numbers.tobytes() == wanted.tobytes() or same(numbers, wanted), name


def same(a: Any, b: Any) -> bool:
    """Equal, the sign of zero included; one NaN is as good as another."""
    return np.array_equal(a, b, equal_nan=True) and np.array_equal(np.signbit(a), np.signbit(b))


def a_table(rows: int = 3, **columns: Any) -> pd.DataFrame:
    plain = {
        "id": [f"i{n}" for n in range(rows)],
        "t": FIRST_MS + np.arange(rows),
        "card": pd.Categorical(["a"] * rows),
        "amount": np.arange(rows) / 2,
        "rate": np.full(rows, np.nan),
        "items": pd.array([None] * rows, dtype="Int64"),
        "count": np.arange(rows),
        "flag": [True] * rows,
        "kind": [None] * rows,
        "note": ["n"] * rows,
    }
    return pd.DataFrame(plain | columns)


@pytest.mark.parametrize(
    ("change", "sure"),
    [
        ({}, [True, True, True]),
        ({"id": ["a", "", "b"]}, [True, False, True]),
        ({"amount": [1.0, None, np.inf]}, [True, False, False]),
        ({"count": [1.0, 1.5, None]}, [True, False, False]),
        ({"card": ["a", 7, "b\n"]}, [True, False, False]),
        ({"flag": [True, None, 1]}, [True, True, False]),
        ({"note": ["n", "z" * 300, None]}, [True, False, True]),
        ({"t": [FIRST_MS, 12, 2**63 - 1]}, [True, False, False]),
    ],
)
def test_only_doubtful_rows_take_the_way_through_json(
    change: dict[str, Any], sure: list[bool]
) -> None:
    schema = make_schema(max_bytes=2_300)
    columns = read_columns(schema.event, schema.key_fields, a_table(**change), KAFKA_MS)
    assert np.broadcast_to(columns.sure, 3).tolist() == sure


def test_a_whole_number_beyond_64_bits_is_refused_and_not_an_error() -> None:
    frame = a_table(count=pd.Series([1, 2**70, 2], dtype=object))
    got = history_of(make_schema(), frame)
    assert [(r.offset, r.code) for r in got.rejects] == [(1, "wrong_type")]
    assert got.table_rows.tolist() == [0, 2]


def test_times_as_timestamps_are_read_to_the_millisecond() -> None:
    moments = pd.to_datetime([FIRST_MS, FIRST_MS + 1, FIRST_MS + 2], unit="ms", utc=True)
    for zone in ("UTC", "Europe/Paris"):
        events = history_of(make_schema("iso8601"), a_table(t=moments.tz_convert(zone))).events
        assert events.times.tolist() == [FIRST_MS, FIRST_MS + 1, FIRST_MS + 2]


def test_only_repeated_ids_have_records() -> None:
    frame = a_table(id=["i", "j", "i"])
    events = history_of(make_schema(), frame).events
    [part] = by_json(make_schema(), frame)[0]
    assert events.raw == [part.raw[0], b"", part.raw[2]]
