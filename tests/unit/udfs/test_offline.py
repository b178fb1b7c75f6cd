"""A history's features against a naive recomputation, whatever the chunks."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from udfs.batches.events import KAFKA_TIME_MS, Events
from udfs.definition.event import EventSpec, FieldSpec, LabelSpec, TimeSpec
from udfs.definition.expression import ExpressionFeature
from udfs.definition.feature import FeatureSpec, WindowFeature
from udfs.definition.schema import Schema
from udfs.offline.offline import HistoryError, OfflineFeatures, features_of, history_of, labels_of

WINDOWS_MS = (5, 100)
DELAY_MS = 10
DEDUPE_WITHIN_MS = 50
FIRST_MS = 1_735_689_600_000


def make_schema(label_delay_ms: int = DELAY_MS, time_format: str = "epoch_ms") -> Schema:
    is_text = time_format == "iso8601"
    return Schema(
        event=EventSpec(
            id="id",
            time=TimeSpec(field="t", format=time_format, allowed_lateness=1_000),
            fields=(
                FieldSpec(name="id", type="string"),
                FieldSpec(name="t", type="string" if is_text else "int"),
                FieldSpec(name="card", type="string"),
                FieldSpec(name="terminal", type="string"),
                FieldSpec(name="amount", type="float", min=0),
                FieldSpec(name="items", type="int", required=False),
                FieldSpec(name="kind", type="string", required=False, default="other"),
            ),
            dedupe_within=DEDUPE_WITHIN_MS,
        ),
        key="card",
        labels=LabelSpec(id="id", time="t", key="terminal", value="fraud"),
        features=FeatureSpec(
            expressions=(
                ExpressionFeature(name="items", type="value", fields=("items",)),
                ExpressionFeature(
                    name="kind", type="one_hot", fields=("kind",), categories=("web", "other")
                ),
            ),
            windows=(  # the record key's windows come last here and first in the columns
                window("t", "terminal", ("count", "sum"), delay=DELAY_MS),
                window("f", "terminal", ("count", "mean"), "labels", "fraud", label_delay_ms),
                window("c", "card", ("count", "sum", "mean", "ratio_to_mean")),
            ),
        ),
    )


def window(
    prefix: str,
    key: str,
    aggregates: tuple[Any, ...],
    stream: Any = "events",
    value: str = "amount",
    delay: int = 0,
) -> WindowFeature:
    return WindowFeature(
        prefix=prefix,
        key=key,
        stream=stream,
        value=value,
        windows=WINDOWS_MS,
        delay=delay,
        aggregates=aggregates,
    )


SCHEMA = make_schema()


@dataclass(frozen=True)
class Row:
    id: str
    t: int
    card: str
    terminal: str
    amount: float
    items: int | None
    kind: str | None
    fraud: float


rows = st.lists(
    st.builds(
        Row,
        id=st.one_of(st.uuids().map(str), st.sampled_from(["i", "j", "k"])),
        t=st.integers(FIRST_MS, FIRST_MS + 300),
        card=st.sampled_from("ab"),
        terminal=st.sampled_from("xy"),
        # A window's sum is exact to about 32 digits of all that its history has added up.
        amount=st.one_of(st.floats(1e-6, 1e6), st.sampled_from([0.0, 1e15, 0.01])),
        items=st.one_of(st.none(), st.integers(0, 9)),
        kind=st.sampled_from(["web", "shop", None]),
        fraud=st.sampled_from([0.0, 1.0, math.nan]),
    ),
    min_size=1,
    max_size=50,
)


def table(items: list[Row]) -> pd.DataFrame:
    return pd.DataFrame([{n: getattr(r, n) for n in Row.__dataclass_fields__} for r in items])


def compute(items: list[Row], chunk_rows: int) -> OfflineFeatures:
    frame = table(items)
    events = history_of(SCHEMA, frame).events
    labels = labels_of(SCHEMA, events, frame["fraud"].to_numpy(np.float64))
    return features_of(SCHEMA, events, labels, chunk_rows=chunk_rows)


def without_repeats(items: list[Row]) -> list[int]:
    kept: list[int] = []
    for i in sorted(range(len(items)), key=lambda i: items[i].t):
        now = items[i]
        rivals = [items[k] for k in kept if (items[k].card, items[k].id) == (now.card, now.id)]
        if not any(r.t > now.t - DEDUPE_WITHIN_MS for r in rivals):
            kept.append(i)
    return kept


def final_labels(items: list[Row]) -> list[tuple[str, int, float]]:
    labels: dict[tuple[str, str], tuple[int, float]] = {}
    for r in items:
        at = (r.terminal, r.id)
        if not math.isnan(r.fraud) and (at not in labels or labels[at][1] != r.fraud):
            labels[at] = (r.t, r.fraud)
    return [(terminal, t, fraud) for (terminal, _), (t, fraud) in labels.items()]


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def expected(now: Row, before: list[Row], labels: list[tuple[str, int, float]]) -> dict[str, float]:
    kind = now.kind or "other"
    named = {"items": math.nan if now.items is None else float(now.items)}
    named |= {"kind_web": float(kind == "web"), "kind_other": float(kind == "other")}
    for ms in WINDOWS_MS:
        end = now.t - DELAY_MS
        card = [r.amount for r in before if r.card == now.card and now.t - ms < r.t <= now.t]
        shop = [r.amount for r in before if r.terminal == now.terminal and end - ms < r.t <= end]
        # A label that the live job cannot know yet is never in the window.
        fraud = [v for key, t, v in labels if key == now.terminal and end - ms < t <= end]
        named |= {f"c_count_{ms}ms": len(card), f"c_sum_{ms}ms": math.fsum(card)}
        named |= {f"c_mean_{ms}ms": mean(card)}
        named |= {f"c_ratio_to_mean_{ms}ms": now.amount / mean(card) if mean(card) else math.nan}
        named |= {f"t_count_{ms}ms": len(shop), f"t_sum_{ms}ms": math.fsum(shop)}
        named |= {f"f_count_{ms}ms": len(fraud), f"f_mean_{ms}ms": mean(fraud)}
    return named


@settings(max_examples=100)
@given(items=rows, chunk_rows=st.integers(1, 60))
def test_features_equal_a_naive_recomputation(items: list[Row], chunk_rows: int) -> None:
    got = compute(items, chunk_rows)
    kept = without_repeats(items)
    labels = final_labels(items)
    assert got.rows.tolist() == kept
    assert got.duplicates + got.conflicts == len(items) - len(kept)
    for n, features in enumerate(got.features.tolist()):
        before = [items[k] for k in kept[: n + 1]]
        want = expected(items[kept[n]], before, labels)
        assert features == pytest.approx(
            [want[c] for c in SCHEMA.columns], rel=1e-9, abs=1e-12, nan_ok=True
        )


@settings(max_examples=50)
@given(items=rows, chunk_rows=st.integers(1, 60))
def test_the_chunk_size_does_not_matter(items: list[Row], chunk_rows: int) -> None:
    one, other = compute(items, chunk_rows), compute(items, 10_000)
    assert one.rows.tolist() == other.rows.tolist()
    assert (one.duplicates, one.conflicts) == (other.duplicates, other.conflicts)
    np.testing.assert_allclose(one.features, other.features, rtol=1e-9, atol=1e-12)


def a_row(**changes: Any) -> Row:
    values = {
        "id": "i",
        "t": FIRST_MS,
        "card": "a",
        "terminal": "x",
        "amount": 1.0,
        "items": 2,
        "kind": "web",
        "fraud": 0.0,
    }
    return Row(**(values | changes))


def test_a_repeat_is_a_duplicate_or_a_conflict_by_its_content() -> None:
    items = [a_row(), a_row(), a_row(amount=2.0), a_row(t=FIRST_MS + DEDUPE_WITHIN_MS)]
    got = compute(items, 10)
    assert (got.rows.tolist(), got.duplicates, got.conflicts) == ([0, 3], 1, 1)


def test_without_raw_records_every_repeat_is_a_duplicate() -> None:
    events = history_of(SCHEMA, table([a_row(), a_row(amount=2.0)])).events
    bare = Events([b"", b""], events.positions, events.times, events.texts, events.numbers)
    got = features_of(SCHEMA, bare)
    assert (got.rows.tolist(), got.duplicates, got.conflicts) == ([0], 1, 0)


def test_a_row_the_job_would_refuse_is_none_of_the_history() -> None:
    frame = table([a_row(), a_row(id="j", amount=-1.0), a_row(id=""), a_row(id="k", amount=None)])
    history = history_of(SCHEMA, frame)
    assert history.table_rows.tolist() == [0]
    assert [(r.offset, r.code) for r in history.rejects] == [
        (1, "out_of_range"),
        (2, "bad_key"),
        (3, "missing_field"),
    ]
    assert history.events.positions[:, KAFKA_TIME_MS].tolist() == [FIRST_MS]


def test_an_absent_optional_column_is_missing_everywhere() -> None:
    events = history_of(SCHEMA, table([a_row()]).drop(columns=["items", "kind"])).events
    got = dict(zip(SCHEMA.columns, features_of(SCHEMA, events).features[0].tolist(), strict=True))
    assert math.isnan(got["items"])
    assert (got["kind_web"], got["kind_other"]) == (0.0, 1.0)


def test_an_absent_required_column_is_named_with_those_there_are() -> None:
    with pytest.raises(HistoryError, match=r"required field.*terminal, amount; there are: id, t"):
        history_of(SCHEMA, table([a_row()]).drop(columns=["terminal", "amount"]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"card": 7}, "none of the first 1 rows; row 0: field card must be string, is int"),
        ({"amount": "12"}, "field amount must be float, is str"),
        ({"items": 1.5}, "field items must be int, is float"),
        ({"t": 12}, "field t is before 2000"),
    ],
)
def test_a_column_of_another_type_is_an_error(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(HistoryError, match=message):
        history_of(SCHEMA, table([a_row(**changes)]))


def test_an_empty_table_is_an_error() -> None:
    with pytest.raises(HistoryError, match="no rows"):
        history_of(SCHEMA, table([a_row()]).head(0))


@pytest.mark.parametrize(
    "dtypes", [{"items": "Int64"}, {"items": "float64"}, {"kind": "category", "card": "string"}]
)
def test_pandas_types_make_no_difference(dtypes: dict[str, str]) -> None:
    frame = table([a_row(), a_row(id="j", items=None, kind=None)])
    plain, typed = (history_of(SCHEMA, f).events for f in (frame, frame.astype(dtypes)))
    assert plain.texts == typed.texts
    np.testing.assert_array_equal(plain.numbers["items"], typed.numbers["items"])


@pytest.mark.parametrize("as_text", [True, False])
def test_iso_times_may_be_texts_or_timestamps(as_text: bool) -> None:
    moment = datetime.fromtimestamp(FIRST_MS / 1_000, UTC)
    frame = table([a_row()]).assign(t=[moment.isoformat() if as_text else pd.Timestamp(moment)])
    events = history_of(make_schema(time_format="iso8601"), frame).events
    assert events.times.tolist() == [FIRST_MS]


def test_label_features_without_a_delay_are_refused() -> None:
    schema = make_schema(label_delay_ms=0)
    events = history_of(schema, table([a_row()])).events
    with pytest.raises(HistoryError, match="its own label"):
        features_of(schema, events, labels_of(schema, events, np.ones(1)))


def test_no_events_have_no_features() -> None:
    bare = Events(
        raw=[],
        positions=np.empty((0, 3), np.int64),
        times=np.empty(0, np.int64),
        texts={name: [] for name in ("id", "card", "terminal", "kind")},
        numbers={name: np.empty(0) for name in ("amount", "items")},
    )
    assert features_of(SCHEMA, bare).features.shape == (0, len(SCHEMA.columns))


def test_progress_ends_at_one() -> None:
    seen: list[tuple[str, float]] = []
    history = history_of(SCHEMA, table([a_row()]), lambda *at: seen.append(at))
    features_of(SCHEMA, history.events, progress=lambda *at: seen.append(at))
    steps = dict.fromkeys(step for step, _ in seen)
    assert list(steps) == ["Reading", "Computing features"]
    for step in steps:
        done = [part for of, part in seen if of == step]
        assert done == sorted(done)
        assert done[-1] == 1.0


def test_no_engine_is_imported() -> None:
    import subprocess

    code = "import sys, udfs.offline.offline; sys.exit('pyflink' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
