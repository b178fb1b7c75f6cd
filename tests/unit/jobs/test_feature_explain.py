"""An explanation lists the very events of a window: its aggregates can be made from them."""

from __future__ import annotations

import io
import statistics

import orjson
import pytest
from rich.console import Console

from jobs.features.explain import Explained, Explanation, explained
from jobs.features.explain_text import as_document, renderables
from tests.support.recorded_case import Case, make_case


@pytest.fixture(scope="module")
def case() -> Case:
    return make_case(400)


def explain(case: Case, wanted: str, feature: str = "") -> Explanation:
    found = explained(case.settings, case.source(), wanted, feature)
    assert found is not None
    return found


def from_entries(found: Explained) -> float | None:
    """Of some aggregates, from the entries alone."""
    values = [e.values[0] for e in found.entries if e.values]
    match found.feature.aggregate:
        case "count":
            return float(len(found.entries))
        case "mean":
            return statistics.fmean(values) if values else None
        case "std":
            return statistics.stdev(values) if len(values) > 1 else None
        case "p50":
            return statistics.median(values) if values else None
        case "distinct":
            return float(len(set(values)))
    raise AssertionError(found.feature.aggregate)


@pytest.mark.parametrize("number", [0, 7, 60, 121, 250, 301, 399])
def test_the_entries_make_the_value(case: Case, number: int) -> None:
    document = case.predictions()[number]
    found = explain(case, document["event_id"])
    assert found.is_equal
    checked = 0
    for feature in found.features:
        window = feature.feature.window
        if window and "half_life" not in window and feature.feature.aggregate in (
            "count", "mean", "std", "p50", "distinct",
        ):  # fmt: skip
            expected = document["features"][feature.feature.name]
            made = from_entries(feature)
            assert made == (expected and pytest.approx(expected, rel=1e-9))
            checked += 1
    assert checked > 20


def test_entries_are_records_that_are_there(case: Case) -> None:
    document = case.predictions()[300]
    records = {m.place: orjson.loads(m.raw) for m in case.topics.records[
        case.settings.topics.events] if m.raw.startswith(b"{")}  # fmt: skip
    (feature,) = explain(case, document["event_id"], "card_mean_24h").features
    assert feature.entries
    for entry in feature.entries:
        record = records[entry.partition, entry.offset]
        assert record["transaction_id"] == entry.event_id
        assert record["event_time_ms"] == entry.time_ms
        assert (record["amount"],) == entry.values
        assert feature.after_ms is not None and feature.until_ms is not None
        assert feature.after_ms < entry.time_ms <= feature.until_ms


def test_a_prediction_s_id_is_as_good(case: Case) -> None:
    document = case.predictions()[5]
    assert explain(case, document["prediction_id"]).event_id == document["event_id"]


def test_nobody_is_none(case: Case) -> None:
    assert explained(case.settings, case.source(), "nobody") is None
    assert explained(case.settings, case.source(), f"{case.settings.topics.events}-x-y") is None


def test_a_changed_value_is_shown() -> None:
    case = make_case(200)
    document = case.predictions()[20]
    features = document["features"] | {"card_count_1h": 77.0}
    case.write_prediction(document | {"features": features})
    found = explain(case, document["event_id"])
    assert [f.feature.name for f in found.features if not f.is_equal] == ["card_count_1h"]
    out = io.StringIO()
    console = Console(file=out, width=200)
    for item in renderables(found, whole=True):
        console.print(item)
    assert "differs" in out.getvalue()
    assert as_document(found)["is_equal"] is False
