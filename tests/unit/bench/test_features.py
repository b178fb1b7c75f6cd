"""The keyed features' benchmark: its data, its oracle, its peers' windows, its figures."""

from __future__ import annotations

import itertools
import json
import math
from array import array

import numpy as np
import orjson
import pytest

from bench import feature_backfill, feature_data, feature_keys, feature_runs, features
from bench.common import Rate
from bench.feature_data import Column, Oracle, columns_of, differences
from bench.feature_keys import KeyCost
from bench.feature_runs import OURS, WINDOW_ONLY, Outcome, runs_of
from bench.peer_windows import Window, read_groups, recounted
from bench.sql_over_job import interval_of, query
from jobs import settings
from udfs.offline.offline import features_of, history_of

AGGREGATES = ("count", "sum", "mean", "ratio_to_mean", "min", "max", "std")
HOUR_MS = 3_600_000


@pytest.fixture(scope="module")
def chosen():
    return settings.load(features.CONFIG, {})


@pytest.fixture(scope="module")
def columns(chosen):
    return columns_of(chosen.schema_)


def busy_history(n=2_000):
    """Few keys with many events each, some of them alone in their windows."""
    rng = np.random.default_rng(3)
    frame = feature_data.transactions(n)
    frame["event_time_ms"] += np.cumsum(
        rng.choice([0, 40_000, 5 * HOUR_MS], n, p=[0.7, 0.29, 0.01])
    )
    frame["card_id"] = [f"c{k:05d}" for k in rng.integers(0, 5, n)]
    frame["terminal_id"] = [f"m{k:05d}" for k in rng.integers(0, 3, n)]
    return frame


def test_there_are_20_features_over_2_keys(columns):
    assert len(columns) == 20
    assert len({column.key for column in columns}) == 2


def test_records_are_as_long_as_promised_and_hold_the_frame():
    frame = feature_data.transactions(300)
    pairs = list(feature_data.records(frame))
    assert 130 <= np.mean([len(value) for _, value in pairs]) <= 160
    for (key, value), row in zip(pairs, frame.to_dict("records"), strict=True):
        assert row.items() <= orjson.loads(value).items()
        assert key.decode() == row["card_id"]


def test_each_event_has_a_millisecond_of_its_own():
    times = feature_data.transactions(20_000)["event_time_ms"].to_numpy()
    assert (np.diff(times) > 0).all()


def test_the_oracle_gives_what_the_offline_features_are(chosen, columns):
    frame = busy_history()
    found = features_of(chosen.schema_, history_of(chosen.schema_, frame).events)
    oracle = Oracle(frame, columns)
    expected = np.array([oracle.features(row) for row in range(len(frame))])
    assert differences(found.features, expected, columns) == []
    assert expected[:, [c.aggregate == "count" for c in columns]].max() > 100


def test_a_difference_is_named_with_its_first_row(columns):
    expected = np.ones((3, len(columns)))
    found = expected.copy()
    found[1, 4], found[2, 4] = 1 + 1e-8, math.nan
    (text,) = differences(found, expected, columns)
    assert text.startswith(f"{columns[4].name}: 2 of 3 differ, the first is {found[1, 4]!r} ")
    found[1:, 4] = 1 + 1e-10
    assert differences(found, expected, columns) == []


def all_aggregates(window_ms):
    return [Column(f"{name}_{window_ms}", "card_id", window_ms, name) for name in AGGREGATES]


@pytest.fixture
def groups_file(tmp_path):
    columns = [*all_aggregates(60_000), *all_aggregates(HOUR_MS)]
    return columns, feature_data.write_columns(tmp_path / "columns.json", columns)


@pytest.mark.parametrize("way", ["incremental", "recounted"])
def test_the_peers_windows_are_exact(way, groups_file):
    columns, path = groups_file
    (groups,) = read_groups(str(path)).values()
    frame = busy_history(800)
    frame["card_id"] = "c"
    oracle = Oracle(frame, columns)
    windows = [Window(ms, aggregates) for ms, aggregates, _ in groups]
    times, values, found = array("d"), array("d"), []
    for time_ms, amount in zip(frame["event_time_ms"], frame["amount"], strict=True):
        times.append(time_ms)
        values.append(amount)
        if way == "incremental":
            found.append(list(itertools.chain(*(w.add(time_ms, amount) for w in windows))))
        else:
            found.append(list(recounted(times, values, groups).values()))
    expected = np.array([oracle.features(row) for row in range(len(frame))])
    assert differences(np.array(found), expected, columns) == []


def test_groups_keep_the_columns_order(columns, tmp_path):
    path = feature_data.write_columns(tmp_path / "columns.json", columns)
    groups = read_groups(str(path))
    assert list(groups) == ["card_id", "terminal_id"]
    names = [name for windows in groups.values() for _, _, part in windows for name in part]
    assert names == [column["name"] for column in json.loads(path.read_text())]


def test_the_query_has_a_select_for_each_window(columns, tmp_path):
    path = feature_data.write_columns(tmp_path / "columns.json", columns)
    sql = query(read_groups(str(path)))
    windows = {(c.key, c.window_ms) for c in columns}
    assert sql.count("WINDOW w AS") == len(windows)
    assert all(f"`{column.name}`" in sql for column in columns)


@pytest.mark.parametrize(
    ("length_ms", "text"),
    [
        (299_999, "0 00:04:59.999"),
        (24 * HOUR_MS - 1, "0 23:59:59.999"),
        (49 * HOUR_MS + 1, "2 01:00:00.001"),
    ],
)
def test_interval(length_ms, text):
    assert interval_of(length_ms) == text


def test_quix_own_window_is_compared_with_the_same_features_of_ours(columns):
    runs = {run.name: run for run in runs_of(features.PARTS, columns)}
    window = runs["quix_window"]
    assert [c.aggregate for c in window.columns] == ["count", "sum", "mean"]
    assert window.columns == runs[window.baseline_of].columns
    assert {c.window_ms for c in window.columns} == {24 * HOUR_MS}


@pytest.mark.parametrize(
    ("parts", "names"),
    [
        (["job"], [OURS]),
        (["job", "sql"], [OURS, "sql_over"]),
        (["job", "quix"], [OURS, WINDOW_ONLY, "quix", "quix_window"]),
        (["bytewax", "keys"], ["bytewax"]),
    ],
)
def test_only_the_chosen_parts_run(parts, names, columns):
    assert [run.name for run in runs_of(parts, columns)] == names


def test_a_ratio_is_ours_over_a_peer_at_the_same_parallelism(columns):
    ours, sql = runs_of(["job", "sql"], columns)
    outcomes = [
        Outcome(ours, 1, 60_000.0),
        Outcome(sql, 1, 20_000.0),
        Outcome(ours, 2, 80_000.0),
        Outcome(sql, 2, None, "invalid"),
    ]
    assert {r.name: r.value for r in feature_runs.results_of(outcomes)} == {
        OURS: 60_000.0,
        "sql_over": 20_000.0,
        "ratio_sql_over": 3.0,
        f"{OURS}_p2": 80_000.0,
        "sql_over_p2": None,
    }


def test_cpu_per_event_leaves_the_warm_up_out():
    used = [(0, 5.0), (400, 9.0), (1_000, 9.3), (1_400, 9.5)]
    rate = Rate(per_s=1.0, records=1_000, seconds=1.0, ignored_records=400, from_s=0.0)
    assert feature_runs.cpu_us_per_event(used, rate) == pytest.approx(500.0)


def test_the_cpu_of_a_peer_is_compared_with_ours(columns):
    ours, sql = runs_of(["job", "sql"], columns)
    outcomes = [
        Outcome(ours, 1, 60_000.0, details={"cpu_us_per_event": 20.0}),
        Outcome(sql, 1, 20_000.0, details={"cpu_us_per_event": 50.0}),
    ]
    ratios = {r.name: r.ratio for r in feature_runs.results_of(outcomes)}
    assert (ratios[f"cpu_{OURS}"], ratios["cpu_sql_over"]) == (None, 2.5)


def test_the_cost_of_keys_is_the_dearest_over_the_cheapest():
    costs = [KeyCost(1_000, 200.0, 430, 2_000), KeyCost(10_000, 300.0, 431, 1_900)]
    first, *others = feature_keys.results_of(costs)
    assert (first.name, first.ratio) == ("cost_1e3_to_1e6_keys", 1.5)
    assert {r.name: r.value for r in others}["cost_10000_keys"] == 300.0


def test_the_cost_of_few_keys_can_be_measured(chosen):
    cost = feature_keys.measure(chosen.schema_, keys=50, events=3_000)
    assert cost.ns_per_event > 0
    # A header, the sums before, and about as many entries as the longest window holds.
    assert 16 + 40 * (1 + 6) < cost.packed_bytes_per_key < 16 + 40 * (1 + 10)


def test_the_backfill_is_compared_with_the_quickest():
    seconds = {"read_s": 3.0, "seconds": 1.0}
    results = feature_backfill.results_of(4_000, seconds, {"pandas": 100.0, "polars": 2_000.0})
    by_name = {r.name: r for r in results}
    assert (by_name["backfill"].value, by_name["backfill"].ratio) == (4_000.0, 2.0)
    assert by_name["backfill_from_table"].ratio == 0.5
    assert by_name["ratio_backfill_pandas"].value == 40.0


def test_quick_makes_everything_small():
    quick, whole = (
        features.complete(features.parser().parse_args(arguments))
        for arguments in (["--quick"], [])
    )
    for name in ("records", "max_s", "history", "key_events"):
        assert getattr(quick, name) < getattr(whole, name)
    assert whole.keys == [10**3, 10**4, 10**5, 10**6]
