"""Parity on topics that the job's own classes wrote: equal, and what each fault is named."""

from __future__ import annotations

import orjson
import pytest

from jobs.features.parity import SHOWN, compare, is_same
from jobs.features.parity_text import as_document, lines
from jobs.features.replay import silent
from jobs.features.topics import collect
from tests.support.recorded_case import (
    DAY_MS,
    HOUR_MS,
    NOW_MS,
    Case,
    case_settings,
    label,
    make_case,
)

COUNT = 500


@pytest.fixture
def case() -> Case:
    return make_case(COUNT)


def test_every_value_is_the_same(case: Case) -> None:
    found = case.parity()
    assert found.first == []
    assert found.is_equal
    columns = len(case.settings.schema_.columns)
    assert (found.compared, found.values) == (COUNT, COUNT * columns)
    assert found.late > 5
    assert found.unscored == 2  # the repeats
    assert found.repeats == 0
    assert "0 differences" in "\n".join(lines(found))


def test_the_case_has_what_it_claims(case: Case) -> None:
    """Two buckets count for themselves, and label features have values."""
    documents = case.predictions()
    for stage in case.settings.schema_.stages:
        places = [d["order"][stage] for d in documents]
        assert len(set(places)) < len(places)
    rates = [d["features"]["fraud_rate_mean_7d"] for d in documents]
    assert sum(r is not None for r in rates) > COUNT / 2


def test_the_last_of_repeated_predictions_counts(case: Case) -> None:
    document = case.predictions()[100]
    wrong = document | {"features": document["features"] | {"card_mean_24h": -1.0}}
    case.write_prediction(wrong)
    assert case.parity().differences == 1
    case.write_prediction(document)
    found = case.parity()
    assert (found.differences, found.repeats) == (0, 2)


def test_a_changed_value_is_found_and_nothing_else_is_blamed(case: Case) -> None:
    document = case.predictions()[305]
    assert "late" not in document
    value = document["features"]["card_mean_24h"]
    changed = document["features"] | {"card_mean_24h": value * (1 + 1e-8)}
    case.write_prediction(document | {"features": changed})
    found = case.parity()
    assert found.by_feature == {"card_mean_24h": 1}
    (first,) = found.first
    assert (first.event_id, first.feature) == (document["event_id"], "card_mean_24h")
    assert first.recomputed == value
    assert "although all inputs agree" in first.cause
    assert document["event_id"] in "\n".join(lines(found))


def test_a_missing_value_differs_from_a_number(case: Case) -> None:
    document = case.predictions()[300]
    assert document["features"]["card_count_1h"] is not None
    case.write_prediction(document | {"features": document["features"] | {"card_count_1h": None}})
    found = case.parity()
    assert found.by_feature == {"card_count_1h": 1}
    assert found.first[0].predicted is None


def test_an_event_that_is_gone_is_named_and_so_is_what_saw_it(case: Case) -> None:
    document = case.predictions()[200]
    place = document["source"]["partition"], document["source"]["offset"]
    case.drop("events", place)
    found = case.parity()
    assert found.without_event == 1
    gone = next(d for d in found.first if not d.feature)
    assert (gone.partition, gone.offset) == place
    assert gone.cause.startswith("event missing")
    saw = [d for d in found.first if d.feature == "card_count_24h"]
    assert saw
    assert all(f"{place[0]}/{place[1]} was removed" in d.cause for d in saw)


def test_retention_is_told_from_a_removed_record(case: Case) -> None:
    case.drop("events", (0, 0))
    case.topics.first[case.settings.topics.events, 0] = 1
    gone = next(d for d in case.parity().first if not d.feature)
    assert "retention, the topic begins at 1" in gone.cause


def test_an_event_gone_with_its_prediction_leaves_a_gap(case: Case) -> None:
    document = case.predictions()[200]
    case.drop("events", (document["source"]["partition"], document["source"]["offset"]))
    case.drop("predictions", (0, 200))
    found = case.parity()
    assert found.without_event == 0
    assert found.differences
    assert any("1 events came to stage card_id before it" in d.cause for d in found.first)


@pytest.mark.parametrize("before", ["features", "scoring"])
def test_what_was_shed_before_scoring_is_in_the_windows(case: Case, before: str) -> None:
    shed = {"before": before, "low_priority": "amount < 100"}
    case.settings = case_settings({"topics.shed": "shed", "overload": shed})
    documents, unscored = case.predictions(), case.parity().unscored
    for number in range(50, 450, 4):
        case.drop("predictions", (0, number))
        told = {name: documents[number][name] for name in ("source", "order")}
        case.topics.append("shed", 0, orjson.dumps(told))
    case.topics.append("shed", 0, orjson.dumps(documents[51]))  # and scored after a restart
    found = case.parity()
    assert found.compared == len(documents) - 100
    assert (found.differences == 0) == (before == "scoring") == found.is_equal
    assert found.unscored - unscored == (100 if before == "features" else 0)


def test_a_prediction_without_input(case: Case) -> None:
    document = case.predictions()[-1]
    source = document["source"] | {"offset": 10_000}
    case.write_prediction(document | {"source": source})
    gone = next(d for d in case.parity().first if not d.feature)
    assert gone.cause.startswith("prediction without input")


def test_a_label_that_comes_after_the_event(case: Case) -> None:
    """Training, so the recomputation, has it; the live feature has not."""
    document = case.predictions()[-1]
    entered = orjson.loads(_event(case, document))
    time_ms = document["event_time_ms"] - DAY_MS  # so that no earlier event looks at it
    at = {"event_time_ms": time_ms, "transaction_id": "late-label"}
    late = label(entered | at, 1)
    topic = case.settings.topics.labels or ""
    case.topics.append(topic, 0, late, NOW_MS + HOUR_MS)
    found = case.parity()
    mine = [d for d in found.first if d.event_id == document["event_id"]]
    assert {d.feature for d in mine} >= {"fraud_rate_count_7d"}
    for difference in mine:
        assert "the label of late-label" in difference.cause
        assert "the delay is 24h; the event was scored" in difference.cause


def test_a_feature_of_other_settings(case: Case) -> None:
    document = case.predictions()[10]
    features = dict(document["features"]) | {"card_count_9h": 1.0}
    del features["card_count_1h"]
    case.write_prediction(document | {"features": features})
    found = case.parity()
    assert sorted(found.other_features) == ["card_count_1h", "card_count_9h"]
    assert not found.is_equal
    assert found.first[0].cause.startswith("other settings")
    assert any("card_count_9h" in note for note in found.notes)


def test_a_formula_that_differs_blames_what_it_reads(case: Case) -> None:
    document = case.predictions()[300]
    features = document["features"]
    changed = features | {"card_count_1h": 99.0, "burst": 99.0 / features["card_count_24h"]}
    case.write_prediction(document | {"features": changed})
    causes = {d.feature: d.cause for d in case.parity().first}
    assert causes["burst"].startswith("card_count_1h differs: ")


def test_a_job_that_began_anew(case: Case) -> None:
    """A second run without the first one's state counts places from 0 again."""
    document = case.predictions()[400]
    order = {stage: place - 50 for stage, place in document["order"].items()}
    features = document["features"] | {"card_count_24h": 1.5}
    case.write_prediction(document | {"order": order, "features": features})
    mine = [d for d in case.parity().first if d.event_id == document["event_id"]]
    assert any("began anew" in d.cause for d in mine)


def test_a_limit_compares_the_newest(case: Case) -> None:
    old = case.predictions()[100]
    case.write_prediction(old | {"features": old["features"] | {"card_count_1h": 99.0}})
    assert case.parity().differences == 1
    found = case.parity(limit=50)
    assert (found.compared, found.differences) == (50, 0)


def test_late_predictions_can_be_left_out(case: Case) -> None:
    late = next(d for d in case.predictions() if d.get("late"))
    changed = late["features"] | {"card_count_24h": 99.0}
    case.write_prediction(late | {"features": changed})
    found = case.parity()
    assert (found.differences, found.late_differences) == (1, 1)
    assert "the event is late" in found.first[0].cause
    assert "--without-late" in "\n".join(lines(found))
    exact = compare(case.settings, case.source(), None, silent, with_late=False)
    assert exact.is_equal
    assert exact.compared == COUNT - found.late


def test_no_more_than_so_many_are_listed_and_all_are_counted(case: Case) -> None:
    for document in case.predictions()[:60]:
        case.write_prediction(document | {"features": document["features"] | {"amount": -1.0}})
    found = case.parity()
    assert len(found.first) == SHOWN
    assert found.by_feature == {"amount": 60}
    assert as_document(found)["differences"] == 60


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (1.0, 1.0 + 1e-10, True),
        (1.0, 1.0 + 1e-8, False),
        (1e-6, 1.00001e-6, False),
        (1e12, 1e12 + 1, True),
        (float("nan"), float("nan"), True),
        (float("nan"), 0.0, False),
    ],
)
def test_what_counts_as_the_same(one: float, other: float, same: bool) -> None:
    import numpy as np

    assert is_same(np.array([one]), np.array([other])).tolist() == [same]


def test_what_a_table_decides_is_not_compared(case: Case) -> None:
    table = {"name": "shop", "key": "terminal_id", "topic": "shops"}
    table |= {"fields": [{"name": "rank", "type": "float"}]}
    ranked = {"prefix": "rank", "key": "card_id", "value": "shop_rank", "windows": ["1h"]}
    features = case.settings.features.model_dump(mode="json")
    features["windows"].append(ranked | {"aggregates": ["mean"]})
    changes = {"features": features, "tables": [table]}
    settings = type(case.settings).model_validate(case.settings.model_dump(mode="json") | changes)
    for document in case.predictions():
        case.write_prediction(document | {"features": document["features"] | {"rank_mean_1h": 0.5}})
    found = compare(settings, collect(settings, case.topics), None, silent)
    assert found.is_equal
    assert found.values == COUNT * (len(settings.schema_.columns) - 1)
    assert any("rank_mean_1h" in note for note in found.notes)


def _event(case: Case, prediction: dict[str, object]) -> bytes:
    source = prediction["source"]
    assert isinstance(source, dict)
    place = source["partition"], source["offset"]
    records = case.topics.records[case.settings.topics.events]
    return next(m.raw for m in records if m.place == place)
