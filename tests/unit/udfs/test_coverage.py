"""Which features of a changed job are incomplete, and until when."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest

from udfs.definition.schema import Schema
from udfs.features.coverage import Coverage, of_formulas
from udfs.features.fingerprint import fingerprint, refusals
from udfs.features.histories import StateFormatError

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
BUCKET = 0


class MapState(dict[str, bytes]):
    """Flink's, as far as it is used."""

    def put(self, name: str, value: bytes) -> None:
        self[name] = value


def window(prefix: str = "card", key: str = "card", **more: Any) -> dict[str, Any]:
    default = {"value": "amount", "windows": ["1h"], "aggregates": ["sum"]}
    return {"prefix": prefix, "key": key, **default, **more}


def schema(*windows: dict[str, Any], **event: Any) -> Schema:
    fields = [
        {"name": "id", "type": "string"},
        {"name": "other", "type": "string"},
        {"name": "time", "type": "int"},
        {"name": "card", "type": "string"},
        {"name": "shop", "type": "string"},
        {"name": "amount", "type": "float"},
        {"name": "code", "type": event.pop("code", "string")},
    ]
    time = {"field": "time", "allowed_lateness": "0ms"}
    return Schema.model_validate(
        {
            "event": {"id": "id", "time": time, "dedupe_within": "1h", "fields": fields} | event,
            "key": "card",
            "features": {"windows": list(windows)},
        }
    )


def coverage(of: Schema, state: MapState, buckets: int = 1) -> Coverage:
    return Coverage(of, fingerprint(of, buckets), state)


def warming(of: Schema, state: MapState, *minutes: int) -> dict[str, list[int]]:
    times = np.array(minutes, np.int64) * MINUTE_MS
    found = coverage(of, state).warming(BUCKET, times)
    return {name: (since // MINUTE_MS).tolist() for name, since in found.items()}


def test_a_new_job_is_complete_from_the_start() -> None:
    assert warming(schema(window()), MapState(), 1_000) == {}


def test_a_new_series_warms_until_its_window_is_filled() -> None:
    state = MapState()
    warming(schema(window()), state, 1_000, 990)
    both = schema(window(), window("shop_sum", where="amount > 5"))
    assert warming(both, state, 1_001, 1_059, 1_060) == {"shop_sum_sum_1h": [1_000, 1_000, 0]}
    assert warming(both, state, 1_060) == {}
    assert warming(both, state, 1_010) == {"shop_sum_sum_1h": [1_000]}


def test_another_window_over_the_same_history_is_complete() -> None:
    state = MapState()
    warming(schema(window()), state, 1_000)
    assert warming(schema(window(windows=["5m", "30m", "1h"])), state, 1_001) == {}


def test_a_longer_window_waits_for_what_had_been_forgotten() -> None:
    state = MapState()
    warming(schema(window()), state, 1_000)  # keeps an hour, from minute 940
    longer = schema(window(windows=["1h", "3h"]))
    assert warming(longer, state, 1_001, 1_119, 1_120) == {"card_sum_3h": [940, 940, 0]}


def test_a_new_key_begins_empty_and_delays_count() -> None:
    state = MapState()
    warming(schema(window()), state, 1_000)
    wider = schema(window(), window("shop", "shop", delay="2h", aggregates=["count", "mean"]))
    found = warming(wider, state, 1_179, 1_180)
    assert found == {"shop_count_1h": [1_000, 0], "shop_mean_1h": [1_000, 0]}


def test_a_series_that_was_gone_begins_again() -> None:
    state, two = MapState(), schema(window(), window("big", where="amount > 5"))
    warming(two, state, 1_000)
    warming(schema(window()), state, 1_100)
    assert warming(two, state, 1_200) == {}
    assert warming(two, state, 1_101) == {"big_sum_1h": [1_100]}


def test_changes_add_up() -> None:
    state = MapState()
    one, two = schema(window()), schema(window(), window("b", where="amount > 5"))
    warming(one, state, 1_000)
    warming(two, state, 1_030)
    three = schema(window(), window("b", where="amount > 5"), window("c", where="amount > 7"))
    assert warming(three, state, 1_040) == {"b_sum_1h": [1_000], "c_sum_1h": [1_030]}


def test_a_made_history_begins_where_it_begins() -> None:
    state, of = MapState(), schema(window(windows=["1h", "30d"]))
    coverage(of, state).begin(BUCKET, 500 * MINUTE_MS, 1_000 * MINUTE_MS)
    assert warming(of, state, 1_001) == {"card_sum_30d": [500]}


def test_a_job_that_begins_in_the_middle_says_so() -> None:
    state, of = MapState(), schema(window())
    known = fingerprint(of, 1)
    begun = Coverage(of, known, state, begins_ms=500 * MINUTE_MS)
    times = np.array([559, 560]) * MINUTE_MS
    assert begun.warming(BUCKET, times)["card_sum_1h"].tolist() == [500 * MINUTE_MS, 0]
    assert warming(of, state, 520) == {"card_sum_1h": [500]}  # after a restart


def test_state_of_an_earlier_release_is_taken_as_complete() -> None:
    state = MapState({"#": b"counters"})
    assert warming(schema(window()), state, 1_000) == {}
    assert orjson.loads(state["~"])["since"] == {}


def test_formulas_warm_with_what_they_read() -> None:
    found = {"a": np.array([5, 0]), "b": np.array([7, 7])}
    reads = {"f": ("a", "x"), "g": ("x",), "h": ("f", "b")}
    made = {name: since.tolist() for name, since in of_formulas(found, reads).items()}
    assert made == {"a": [5, 0], "b": [7, 7], "f": [5, 0], "h": [7, 7]}


@pytest.mark.parametrize(
    ("changed", "buckets", "words"),
    [
        (schema(window(), id="other"), 1, "event.id was 'id', now 'other'"),
        (schema(window()), 2, "batch.buckets was 1, now 2"),
        (
            schema(window(), window("code", value="code", aggregates=["sum"]), code="int"),
            1,
            "the type of 'code' stage card keeps it as a text, now it is a number",
        ),
    ],
)
def test_histories_of_other_settings_are_refused(changed: Schema, buckets: int, words: str) -> None:
    state = MapState()
    with_code = schema(window(), window("code", value="code", aggregates=["distinct"]))
    coverage(with_code, state).warming(BUCKET, np.array([1_000]))
    with pytest.raises(StateFormatError) as refused:
        coverage(changed, state, buckets).warming(BUCKET, np.array([2_000]))
    assert words in str(refused.value)
    assert "features bootstrap" in str(refused.value)
    assert refusals(fingerprint(with_code, 1), fingerprint(changed, buckets))


def test_first_events_of_old_keys_are_never_complete() -> None:
    state = MapState()
    warming(schema(window()), state, 1_000)
    more = schema(window(), window("begin", windows=[{"first": 3}], aggregates=["mean"]))
    assert warming(more, state, 1_000_000) == {"begin_mean_first3": [1_000]}
    assert warming(more, MapState(), 1_000_000) == {}
