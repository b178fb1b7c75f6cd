"""What a user declares: names, durations, and everything that is refused at start-up."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from udfs.definition.event import EventSpec, FieldSpec, TimeSpec
from udfs.definition.expression import ExpressionFeature
from udfs.definition.feature import FeatureSpec, WindowFeature
from udfs.definition.schema import Schema
from udfs.definition.types import as_python, format_duration, parse_duration_ms

DAY_MS = 86_400_000

# -- durations ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("5m", 300_000),
        ("24h", DAY_MS),
        ("7d", 7 * DAY_MS),
        ("250ms", 250),
        ("1.5s", 1_500),
        ("0.1s", 100),
        (" 10 s ", 10_000),
        ("0ms", 0),
        (0, 0),
        (1_234, 1_234),
        ("36500d", 36_500 * DAY_MS),
    ],
)
def test_durations(text: str | int, ms: int) -> None:
    assert parse_duration_ms(text) == ms


@pytest.mark.parametrize(
    "value",
    [
        *("", "5", "m", "5 minutes", "5M", "-5m", "1e3s", "5m5s", "nan", "inf s", ".5s", "5.m"),
        *("5m\x00", None, True, 1.5, [], -1, "36501d", 10**30, "9" * 400 + "d"),
    ],
)
def test_what_is_no_duration(value: object) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration_ms(value)


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (1, "1ms"),
        (999, "999ms"),
        (1_000, "1s"),
        (1_001, "1001ms"),
        (90_000, "90s"),
        (300_000, "5m"),
        (3_600_000, "1h"),
        (DAY_MS, "24h"),
        (2 * DAY_MS, "2d"),
        (30 * DAY_MS, "30d"),
        (36 * 3_600_000, "36h"),
    ],
)
def test_the_shortest_text_of_a_duration(ms: int, text: str) -> None:
    assert format_duration(ms) == text


@settings(max_examples=300)
@given(
    ms=st.one_of(
        st.integers(0, 36_500 * DAY_MS),
        st.builds(
            int.__mul__, st.integers(0, 90), st.sampled_from([1_000, 60_000, 3_600_000, DAY_MS])
        ),
    )
)
def test_a_duration_survives_its_text(ms: int) -> None:
    assert parse_duration_ms(format_duration(ms)) == ms


# -- a schema -----------------------------------------------------------------------------------

DOCUMENT: dict[str, Any] = {
    "event": {
        "id": "id",
        "time": {"field": "t", "allowed_lateness": "1h"},
        "dedupe_within": "24h",
        "fields": [
            {"name": "id", "type": "string"},
            {"name": "t", "type": "int"},
            {"name": "card", "type": "string"},
            {"name": "terminal", "type": "string"},
            {"name": "amount", "type": "float", "min": 0},
            {"name": "kind", "type": "string"},
            {"name": "online", "type": "bool"},
            {"name": "lat", "type": "float", "required": False},
            {"name": "lon", "type": "float", "required": False},
            {"name": "nick", "type": "string", "required": False},
        ],
    },
    "key": "card",
    "labels": {"id": "id", "time": "t", "key": "terminal", "value": "fraud"},
    "features": {
        "expressions": [
            {"name": "amount", "type": "value", "fields": ["amount"]},
            {"name": "kind", "type": "one_hot", "fields": ["kind"], "categories": ["a", "b"]},
        ],
        "windows": [
            {"prefix": "t", "key": "terminal", "windows": ["24h"], "aggregates": ["count"]},
            {
                "prefix": "c",
                "key": "card",
                "value": "amount",
                "windows": ["5m", "7d"],
                "aggregates": ["count", "ratio_to_mean"],
            },
            {
                "prefix": "f",
                "key": "terminal",
                "stream": "labels",
                "value": "fraud",
                "windows": ["30d"],
                "delay": "7d",
                "aggregates": ["mean"],
            },
        ],
    },
}


def changed(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy with the value at a path replaced, or added."""
    if not path:
        return value
    copy = [*document] if isinstance(document, list) else {**document}
    known = path[0] in copy if isinstance(copy, dict) else path[0] < len(copy)
    below = changed(copy[path[0]] if known else {}, path[1:], value)
    if isinstance(copy, list) and not known:
        copy.append(below)
    else:
        copy[path[0]] = below
    return copy


def load(*path: Any, value: Any = None) -> Schema:
    return Schema.model_validate(changed(DOCUMENT, path, value) if path else DOCUMENT)


def test_columns_stand_in_the_order_of_the_stages() -> None:
    schema = load()
    assert schema.stages == ("card", "terminal")
    assert schema.columns == (
        *("amount", "kind_a", "kind_b"),
        *("c_count_5m", "c_ratio_to_mean_5m", "c_count_7d", "c_ratio_to_mean_7d"),
        *("t_count_24h", "f_mean_30d"),
    )
    assert sorted(schema.columns) == sorted(schema.features.columns)


def test_the_record_key_is_the_first_stage_even_without_features() -> None:
    schema = load("features", "windows", value=DOCUMENT["features"]["windows"][:1])
    assert schema.stages == ("card", "terminal")
    assert schema.columns == ("amount", "kind_a", "kind_b", "t_count_24h")


def test_further_stages_follow_in_the_order_of_their_first_use() -> None:
    window = {"prefix": "k", "key": "kind", "windows": ["1h"], "aggregates": ["count"]}
    windows = [window, *DOCUMENT["features"]["windows"]]
    schema = load("features", "windows", value=windows)
    assert schema.stages == ("card", "kind", "terminal")
    assert tuple(schema.features.stages) == ("kind", "terminal", "card")
    assert schema.columns.index("k_count_1h") < schema.columns.index("t_count_24h")


def test_horizons_cover_the_longest_window_the_delay_and_the_lateness() -> None:
    schema = load()
    hour = 3_600_000
    assert schema.horizon_ms("card", "events") == 7 * DAY_MS + hour
    assert schema.horizon_ms("terminal", "events") == DAY_MS + hour
    assert schema.horizon_ms("terminal", "labels") == 37 * DAY_MS + hour
    assert schema.horizon_ms("card", "labels") == hour


def test_the_first_stage_remembers_ids_as_long_as_duplicates_are_found() -> None:
    schema = load("event", "dedupe_within", value="30d")
    assert schema.horizon_ms("card", "events") == 30 * DAY_MS + 3_600_000
    assert schema.horizon_ms("terminal", "events") == DAY_MS + 3_600_000


def test_a_schema_survives_its_own_text() -> None:
    schema = load()
    document = as_python(schema)
    assert document["features"]["windows"][1]["windows"] == ["5m", "7d"]
    assert Schema.model_validate(document) == schema


def test_settings_do_not_change_after_loading() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load().key = "terminal"  # type: ignore[misc]


def test_defaults() -> None:
    field = FieldSpec(name="a", type="int")
    assert (field.required, field.default, field.is_numeric) == (True, None, True)
    time = TimeSpec(field="t")
    assert (time.format, time.earliest_ms) == ("epoch_ms", 946_684_800_000)
    assert (time.max_future, time.allowed_lateness) == (3_600_000, 3_600_000)
    window = WindowFeature(prefix="w", key="k", windows=(1,), aggregates=("count",))
    assert (window.stream, window.delay, window.horizon_ms) == ("events", 0, 1)


@pytest.mark.parametrize("text", ["2020-01-01T00:00:00", "2020-01-01T02:00:00+02:00", "2020-01-01"])
def test_the_earliest_time_is_utc_unless_it_says_otherwise(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "America/New_York")
    assert TimeSpec(field="t", earliest=text).earliest_ms == 1_577_836_800_000  # type: ignore[arg-type]


def test_field_by_name() -> None:
    event = load().event
    assert event.field("amount").type == "float"
    with pytest.raises(ValueError, match=r"no field 'x'.*declared are: id, t, card"):
        event.field("x")


# -- refusals -----------------------------------------------------------------------------------

WINDOW = ("features", "windows")
EXPRESSION = ("features", "expressions")
FIELD = ("event", "fields")
PREPARED = ("features", "preparation", "columns")
CATEGORY = {"name": "shop", "type": "category", "fields": ["kind"], "encoding": "one_hot"}
HASHED = CATEGORY | {"encoding": "hashing"}
REFUSED: list[tuple[tuple[Any, ...], Any, str]] = [
    # unknown keys and missing ones, at every level
    (("colour",), 1, "colour"),
    (("event", "colour"), 1, "colour"),
    (("event", "time", "colour"), 1, "colour"),
    ((*FIELD, 0, "colour"), 1, "colour"),
    (("labels", "colour"), 1, "colour"),
    (("features", "colour"), 1, "colour"),
    ((*EXPRESSION, 0, "colour"), 1, "colour"),
    ((*WINDOW, 0, "colour"), 1, "colour"),
    (("event",), {}, "event.id"),
    (("labels",), {}, "labels.id"),
    ((*FIELD, 0), {"name": "id"}, "type"),
    # fields
    ((*FIELD, 0, "type"), "text", "type"),
    ((*FIELD, 2, "min"), 0, "neither min nor max"),
    ((*FIELD, 2, "max"), 9, "neither min nor max"),
    ((*FIELD, 4, "max"), -1, "min"),
    ((*FIELD, 4, "default"), 1.0, "required"),
    ((*FIELD, 7, "default"), "north", "is not a float"),
    ((*FIELD, 7, "default"), True, "is not a float"),
    ((*FIELD, 7, "default"), float("nan"), "out of range"),
    ((*FIELD, 7, "default"), float("inf"), "out of range"),
    ((*FIELD, 9, "default"), 5, "is not a string"),
    (
        (*FIELD, 7),
        {"name": "lat", "type": "float", "required": False, "max": 90, "default": 91},
        "out of range",
    ),
    ((*FIELD, 3, "name"), "card", "declared twice: card"),
    # id, time, key
    (("event", "id"), "nobody", "no field 'nobody'"),
    (("event", "id"), "t", "string"),
    (("event", "id"), "nick", "required"),
    (("event", "time", "field"), "nobody", "no field 'nobody'"),
    (("event", "time", "field"), "amount", "int"),
    (("event", "time", "field"), "id", "int"),
    (("event", "time", "format"), "iso8601", "string"),
    (("event", "time", "format"), "rfc822", "format"),
    (("event", "time", "max_future"), "soon", "not a duration"),
    (("event", "time", "allowed_lateness"), -1, "duration"),
    (("event", "time", "earliest"), "long ago", "earliest"),
    ((*FIELD, 1, "required"), False, "required"),
    ((*FIELD, 0, "required"), False, "required"),
    (("event", "dedupe_within"), "24", "not a duration"),
    (("event", "max_bytes"), 0, "max_bytes"),
    (("key",), "nobody", "no field 'nobody'"),
    (("key",), "amount", "required string"),
    (("key",), "nick", "required string"),
    # expressions
    ((*EXPRESSION, 0, "type"), "sqrt", "type"),
    ((*EXPRESSION, 0, "fields"), [], "reads 1 field"),
    ((*EXPRESSION, 0, "fields"), ["lat", "lon"], "reads 1 field"),
    ((*EXPRESSION, 0, "fields"), ["nobody"], "no field 'nobody'"),
    ((*EXPRESSION, 0, "fields"), ["kind"], "numeric|number"),
    ((*EXPRESSION, 1, "fields"), ["amount"], "string"),
    ((*EXPRESSION, 1, "categories"), [], "categories"),
    ((*EXPRESSION, 1, "categories"), ["a", "a"], "same name: kind_a"),
    ((*EXPRESSION, 2), {"name": "d", "type": "distance_km", "fields": ["lat"]}, "reads 4 fields"),
    ((*EXPRESSION, 2), {"name": "h", "type": "hour_of_day", "fields": ["t"]}, "reads 0 fields"),
    ((*EXPRESSION, 2), {"name": "h", "type": "hour_of_day", "timezone": "Mars"}, "no time zone"),
    ((*EXPRESSION, 2), {"name": "h", "type": "hour_of_day", "timezone": "Europe"}, "no time zone"),
    ((*EXPRESSION, 2), {"name": "h", "type": "day_of_week", "timezone": "../UTC"}, "no time zone"),
    ((*EXPRESSION, 2), {"name": "kind_a", "type": "hour_of_day"}, "same name: kind_a"),
    ((*EXPRESSION, 1), CATEGORY | {"encoding": None}, "needs an encoding"),
    ((*EXPRESSION, 1), CATEGORY | {"encoding": "binary"}, "encoding"),
    ((*EXPRESSION, 1), CATEGORY | {"fields": ["amount"]}, "must be a string for type category"),
    ((*EXPRESSION, 1), CATEGORY | {"fields": []}, "reads 1 field"),
    ((*EXPRESSION, 1), CATEGORY | {"categories": ["a"]}, "has no categories"),
    ((*EXPRESSION, 1), CATEGORY | {"buckets": 8}, "buckets is an option of: hashing"),
    ((*EXPRESSION, 1), CATEGORY | {"smoothing": 8}, "smoothing is an option of: target"),
    ((*EXPRESSION, 1), CATEGORY | {"smoothing": float("inf")}, "smoothing"),
    ((*EXPRESSION, 1), CATEGORY | {"max_categories": 0}, "max_categories"),
    ((*EXPRESSION, 1), HASHED | {"min_count": 2}, "min_count is an option of: one_hot, ord"),
    ((*EXPRESSION, 1), HASHED | {"buckets": 1}, "buckets"),
    ((*EXPRESSION, 1, "encoding"), "target", "type one_hot has no encoding"),
    # preparation
    (("features", "preparation"), {"default": "mode"}, "default"),
    (("features", "preparation"), {"default": float("nan")}, "too large"),
    (("features", "preparation"), {"default": 1e39}, "too large"),
    (("features", "preparation"), {"colums": {}}, "colums"),
    (PREPARED, {"amuont": {"impute": "mean"}}, "no feature 'amuont'; did you mean amount"),
    (PREPARED, {"zzz": {}}, "no feature 'zzz'; there are: amount, kind_a"),
    (PREPARED, {"amount": {"imput": "mean"}}, "amount.imput"),
    # windows
    ((*WINDOW, 0, "windows"), [], "windows"),
    ((*WINDOW, 0, "windows"), [0], "longer than 0"),
    ((*WINDOW, 0, "windows"), ["1h", "60m"], "windows of one name: 1h"),
    ((*WINDOW, 0, "windows"), ["-1h"], "not a duration"),
    ((*WINDOW, 0, "delay"), -5, "duration"),
    ((*WINDOW, 0, "aggregates"), [], "aggregates"),
    ((*WINDOW, 0, "aggregates"), ["median"], "aggregates"),
    ((*WINDOW, 0, "aggregates"), ["count", "count"], "same name"),
    ((*WINDOW, 0, "aggregates"), ["count", "sum"], "name the field in value"),
    ((*WINDOW, 0, "key"), "nobody", "no field 'nobody'"),
    ((*WINDOW, 0, "key"), "amount", "required string"),
    ((*WINDOW, 0, "key"), "nick", "required string"),
    ((*WINDOW, 1, "value"), "kind", "needs a number"),
    ((*WINDOW, 1, "value"), "nobody", "no column 'nobody'"),
    # labels
    (("labels",), None, "no labels section"),
    ((*WINDOW, 2, "key"), "card", "labels' (own )?key 'terminal'"),
    ((*WINDOW, 2, "value"), "amount", "value 'fraud'"),
    ((*WINDOW, 2, "aggregates"), ["ratio_to_mean"], "drop ratio_to_mean"),
    (("features",), {}, "at least one feature"),
]


@pytest.mark.parametrize(
    ("path", "value", "words"),
    REFUSED,
    ids=[".".join(map(str, p)) + f"={v}" for p, v, _ in REFUSED],
)
def test_a_wrong_setting_is_refused(path: tuple[Any, ...], value: Any, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        load(*path, value=value)


@pytest.mark.parametrize(
    ("features", "where", "words"),
    [
        (["shop"], {"shop": {"impute": "mean"}}, r"columns\.shop\.impute.*is a category"),
        (
            ["shop", "shop_missing"],
            {"shop": {"indicator": True}},
            r"columns\.shop\.indicator.*a feature 'shop_missing' already",
        ),
    ],
)
def test_a_preparation_must_go_with_its_feature(
    features: list[str], where: dict[str, Any], words: str
) -> None:
    document = changed(DOCUMENT, EXPRESSION, [CATEGORY | {"name": name} for name in features])
    document = changed(document, ("features", "preparation"), {"columns": where})
    with pytest.raises(ValidationError, match=f"(?s){words}"):
        Schema.model_validate(document)


def test_a_category_is_one_feature_and_an_own_preparation_wins() -> None:
    document = changed(DOCUMENT, (*EXPRESSION, 1), CATEGORY)
    columns = {"amount": {"impute": "none"}, "t_count_24h": {"indicator": True}}
    preparation = {"default": -1, "columns": columns}
    schema = Schema.model_validate(changed(document, ("features", "preparation"), preparation))
    assert schema.columns[:2] == ("amount", "shop")
    assert list(schema.features.categories) == ["shop"]
    found = [schema.features.preparation.of(name) for name in schema.columns]
    by_name = dict(zip(schema.columns, [(f.impute, f.indicator) for f in found], strict=True))
    assert by_name["amount"] == ("none", False)
    assert by_name["t_count_24h"] == (-1.0, True)
    assert Schema.model_validate(as_python(schema)) == schema


def test_labels_cannot_be_kept_by_the_record_key() -> None:
    document = changed(DOCUMENT, ("labels", "key"), "card")
    with pytest.raises(ValidationError, match="labels enter after the first stage"):
        Schema.model_validate(changed(document, (*WINDOW, 2, "key"), "card"))


@pytest.mark.parametrize("kind", ["value", "distance_km", "hour_of_day", "day_of_week", "one_hot"])
def test_every_expression_has_a_form_that_is_accepted(kind: str) -> None:
    fields = {"value": 1, "distance_km": 4, "one_hot": 1}.get(kind, 0)
    categories = ("x", "y") if kind == "one_hot" else ()
    spec = ExpressionFeature(
        name="f",
        type=kind,  # type: ignore[arg-type]
        fields=("a",) * fields,
        categories=categories,
        formula="a > 1" if kind == "formula" else None,
    )
    assert FeatureSpec(expressions=(spec,)).columns == (
        ("f_x", "f_y") if kind == "one_hot" else ("f",)
    )


def test_iso_times_want_a_text_field() -> None:
    fields = (FieldSpec(name="id", type="string"), FieldSpec(name="t", type="string"))
    assert EventSpec(id="id", time=TimeSpec(field="t", format="iso8601"), fields=fields)
