"""Features of one event alone, against other formulas and Python's own calendar."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from udfs.batches.categories import code_of
from udfs.batches.events import Events
from udfs.definition.expression import ExpressionFeature
from udfs.features.expressions import EARTH_RADIUS_KM, distance_km, evaluate


def make_events(
    times: list[int] | None = None,
    numbers: dict[str, list[float]] | None = None,
    texts: dict[str, list[Any]] | None = None,
) -> Events:
    columns = [times, *(numbers or {}).values(), *(texts or {}).values()]
    n = max(len(c) for c in columns if c is not None)
    return Events(
        raw=[b"{}"] * n,
        positions=np.zeros((n, 3), np.int64),
        times=np.array(times or [0] * n, np.int64),
        texts=texts or {},
        numbers={k: np.array(v, np.float64) for k, v in (numbers or {}).items()},
    )


def feature(kind: str, *fields: str, **more: Any) -> ExpressionFeature:
    return ExpressionFeature(name="f", type=kind, fields=fields, **more)  # type: ignore[arg-type]


# -- distance -----------------------------------------------------------------------------------


def distance(*degrees: float) -> float:
    return float(distance_km(*(np.array([d], np.float64) for d in degrees))[0])


def by_arctangent(lat1: float, lon1: float, lat2: float, lon2: float) -> float:
    """Vincenty's formula on a sphere: well-conditioned at every distance."""
    a, b, turn = math.radians(lat1), math.radians(lat2), math.radians(lon2 - lon1)
    across = math.hypot(
        math.cos(b) * math.sin(turn),
        math.cos(a) * math.sin(b) - math.sin(a) * math.cos(b) * math.cos(turn),
    )
    along = math.sin(a) * math.sin(b) + math.cos(a) * math.cos(b) * math.cos(turn)
    return EARTH_RADIUS_KM * math.atan2(across, along)


def by_cosines(lat1: float, lon1: float, lat2: float, lon2: float) -> float:
    """The spherical law of cosines."""
    a, b, turn = math.radians(lat1), math.radians(lat2), math.radians(lon2 - lon1)
    cosine = math.sin(a) * math.sin(b) + math.cos(a) * math.cos(b) * math.cos(turn)
    return EARTH_RADIUS_KM * math.acos(min(1.0, max(-1.0, cosine)))


latitudes, longitudes = st.floats(-90, 90), st.floats(-180, 180)


@settings(max_examples=300)
@given(lat1=latitudes, lon1=longitudes, lat2=latitudes, lon2=longitudes)
def test_distance_equals_two_other_formulas(
    lat1: float, lon1: float, lat2: float, lon2: float
) -> None:
    got = distance(lat1, lon1, lat2, lon2)
    # haversine is ill-conditioned near the antipode, the law of cosines near both ends
    assert got == pytest.approx(by_arctangent(lat1, lon1, lat2, lon2), rel=1e-12, abs=1e-3)
    assert got == pytest.approx(by_cosines(lat1, lon1, lat2, lon2), rel=1e-9, abs=0.3)
    assert got == distance(lat2, lon2, lat1, lon1)
    assert 0 <= got <= math.pi * EARTH_RADIUS_KM * (1 + 1e-12)


@settings(max_examples=100)
@given(lat=st.floats(-89, 89), lon=longitudes, metres=st.floats(0.01, 1_000))
def test_short_distances_are_exact_to_the_millimetre(lat: float, lon: float, metres: float) -> None:
    north = math.degrees(metres / 1_000 / EARTH_RADIUS_KM)
    assert distance(lat, lon, lat + north, lon) * 1_000 == pytest.approx(metres, abs=1e-3)


LYON, PARIS = (45.7597, 4.8422), (48.8567, 2.3508)
LONDON, NEW_YORK = (51.5074, -0.1278), (40.7128, -74.0060)
SYDNEY, WELLINGTON = (-33.8688, 151.2093), (-41.2866, 174.7756)


@pytest.mark.parametrize(
    ("a", "b", "km"),
    [
        (LYON, PARIS, pytest.approx(392.2172595594006, rel=1e-12)),  # README of PyPI's haversine
        (LONDON, NEW_YORK, pytest.approx(5_570, rel=0.005)),
        (SYDNEY, WELLINGTON, pytest.approx(2_225, rel=0.005)),
        ((0, 0), (0, 180), math.pi * EARTH_RADIUS_KM),
        ((90, 0), (-90, 77), pytest.approx(math.pi * EARTH_RADIUS_KM)),
        ((0, 179.5), (0, -179.5), pytest.approx(math.radians(1) * EARTH_RADIUS_KM)),
        ((90, 10), (90, -120), pytest.approx(0, abs=1e-9)),
        (PARIS, PARIS, 0),
    ],
)
def test_known_distances(a: tuple[float, float], b: tuple[float, float], km: Any) -> None:
    assert distance(*a, *b) == km


@pytest.mark.parametrize("unknown", [0, 1, 2, 3])
def test_a_distance_to_nowhere_is_missing(unknown: int) -> None:
    columns: dict[str, list[float]] = {
        n: [v, v] for n, v in zip("abcd", (*LYON, *PARIS), strict=True)
    }
    columns["abcd"[unknown]][0] = math.nan
    got = evaluate((feature("distance_km", *"abcd"),), make_events(numbers=columns))
    assert np.isnan(got[:, 0]).tolist() == [True, False]
    assert got[1, 0] == pytest.approx(392.2172595594006)


# -- calendar -----------------------------------------------------------------------------------


def around(moment: str, step_s: int = 47) -> list[int]:
    """Times from four hours before to four hours after, in ms, off any round number."""
    centre = datetime.fromisoformat(moment).replace(tzinfo=UTC)
    return [
        round((centre + timedelta(seconds=s)).timestamp() * 1_000) + s % 1_000
        for s in range(-4 * 3_600, 4 * 3_600, step_s)
    ]


def assert_calendar(zone: str, times: list[int]) -> None:
    got = evaluate(
        (
            ExpressionFeature(name="h", type="hour_of_day", timezone=zone),
            ExpressionFeature(name="d", type="day_of_week", timezone=zone),
        ),
        make_events(times),
    )
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    local = [(epoch + timedelta(milliseconds=t)).astimezone(ZoneInfo(zone)) for t in times]
    assert got[:, 0].tolist() == [m.hour for m in local]
    assert got[:, 1].tolist() == [m.weekday() for m in local]


@pytest.mark.parametrize(
    ("zone", "change"),
    [
        ("Europe/Berlin", "2024-03-31T01:00"),
        ("Europe/Berlin", "2024-10-27T01:00"),
        ("America/New_York", "2024-03-10T07:00"),
        ("America/New_York", "2024-11-03T06:00"),
        ("Australia/Lord_Howe", "2024-04-06T15:00"),  # half an hour
        ("America/St_Johns", "2010-03-14T03:31"),  # at a minute past midnight
        ("America/St_Johns", "2010-11-07T02:31"),
        ("Asia/Kathmandu", "2024-01-01T00:00"),  # +05:45
        ("Pacific/Apia", "2011-12-30T10:00"),  # a day left out
        ("Africa/Casablanca", "2024-03-10T02:00"),
        ("UTC", "2024-02-29T00:00"),
    ],
)
def test_hour_and_day_across_a_change_of_clocks(zone: str, change: str) -> None:
    assert_calendar(zone, around(change))


@settings(max_examples=100)
@given(
    zone=st.sampled_from(["Europe/Berlin", "America/New_York", "Asia/Kolkata", "UTC"]),
    times=st.lists(st.integers(-2_000_000_000, 4_000_000_000), min_size=1, max_size=20),
    ms=st.integers(0, 999),
)
def test_hour_and_day_at_any_time(zone: str, times: list[int], ms: int) -> None:
    after_1973 = [max(t, 100_000_000) * 1_000 + ms for t in times]
    assert_calendar(zone, after_1973)
    if zone == "UTC":
        assert_calendar(zone, [t * 1_000 + ms for t in times])


# -- the others ---------------------------------------------------------------------------------


def test_value_is_the_field_itself() -> None:
    events = make_events(numbers={"amount": [1.5, math.nan, 0.0]})
    got = evaluate((feature("value", "amount"),), events)
    np.testing.assert_array_equal(got, [[1.5], [math.nan], [0.0]])
    got[:] = 7
    assert events.numbers["amount"][0] == 1.5


def test_one_hot_knows_its_categories_and_only_those() -> None:
    column = ["CP", "CNP", "other", "", "cp", None, "CP "]
    spec = feature("one_hot", "kind", categories=("CNP", "CP"))
    got = evaluate((spec,), make_events(texts={"kind": column}))
    assert spec.columns == ("f_CNP", "f_CP")
    assert got.tolist() == [[0, 1], [1, 0], *[[0, 0]] * 5]


def test_a_category_is_its_code() -> None:
    column = ["CP", None, "", "CP", "café"]
    got = evaluate(
        (feature("category", "kind", encoding="ordinal"),), make_events(texts={"kind": column})
    )
    expected = [math.nan if text is None else code_of(text) for text in column]
    np.testing.assert_array_equal(got[:, 0], expected)


def test_columns_stand_in_the_order_declared() -> None:
    events = make_events([0], {"x": [3.0]}, {"kind": ["b"]})
    expressions = (
        ExpressionFeature(name="kind", type="one_hot", fields=("kind",), categories=("a", "b")),
        ExpressionFeature(name="x", type="value", fields=("x",)),
        ExpressionFeature(name="day", type="day_of_week"),
    )
    assert [c for e in expressions for c in e.columns] == ["kind_a", "kind_b", "x", "day"]
    assert evaluate(expressions, events).tolist() == [[0, 1, 3, 3]]


def test_no_expressions_give_no_columns() -> None:
    assert evaluate((), make_events([1, 2, 3])).shape == (3, 0)


def test_a_formula_reads_truths_as_truths() -> None:
    """As the settings' check does: it would refuse `and` between numbers."""
    spec = ExpressionFeature(name="hot", type="formula", formula="running and c > 80")
    events = make_events(numbers={"running": [1.0, 0.0, np.nan, 1.0], "c": [81.0, 99.0, 99.0, 3.0]})
    got = evaluate((spec,), events, {"running": "truth", "c": "number"})
    assert got[:, 0].tolist() == [1, 0, 0, 0]
