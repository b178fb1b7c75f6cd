"""Windows: how they are written, and when they begin and end."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest
import yaml

from jobs.environment import ROOT
from udfs.definition.schema import Schema
from udfs.definition.types import parse_duration_ms
from udfs.definition.window import Window
from udfs.features import clock
from udfs.features.aggregates import AGGREGATES, parse_aggregate
from udfs.features.identities import Identities
from udfs.features.keyed import KeyedStage

CHAPTER = (ROOT / "udfs" / "README.md").read_text(encoding="utf-8")
MINUTE_MS = 60_000


@pytest.mark.parametrize(
    ("written", "label", "reach"),
    [
        ("5m", "5m", "5m"),
        ({"sliding": "24h"}, "24h", "24h"),
        ({"events": 10}, "last10", "30d"),
        ({"events": 10, "within": "2d"}, "last10", "2d"),
        ({"session": "30m"}, "session30m", "24h"),
        ({"tumbling": "1h"}, "tumbling1h", "1h"),
        ({"hopping": "1h", "every": "5m"}, "hopping1h", "65m"),
        ({"day": "Europe/Paris"}, "day", "25h"),
        ({"half_life": "1h"}, "decay1h", "20h"),
        ({"first": 40}, "first40", "0ms"),
        ({"half_life": "1h", "within": "2h"}, "decay1h", "2h"),
    ],
)
def test_how_a_window_is_written(written: Any, label: str, reach: str) -> None:
    window = Window.model_validate(written)
    assert window.label == label
    assert window.reach_ms == parse_duration_ms(reach)
    assert Window.model_validate(window.model_dump(mode="json")) == window


@pytest.mark.parametrize(
    "zone", ["UTC", "Europe/Paris", "America/St_Johns", "America/Sao_Paulo", "Asia/Kathmandu"]
)
def test_midnight_is_the_zones_own(zone: str) -> None:
    """Also on days that begin at one o'clock, or twice."""
    random = np.random.default_rng(5)
    times = random.integers(0, 1_900_000_000_000, 2_000)
    begins = clock.local_midnight(times, zone)
    for time_ms, begin_ms in zip(times.tolist(), begins.tolist(), strict=True):
        day = datetime.fromtimestamp(time_ms / 1_000, ZoneInfo(zone)).date()
        first = datetime.fromtimestamp(begin_ms / 1_000, ZoneInfo(zone))
        before = datetime.fromtimestamp(begin_ms / 1_000 - 1, ZoneInfo(zone))
        assert first.date() == day and before.date() < day
        assert begin_ms <= time_ms


def test_every_name_of_an_aggregate_is_its_own() -> None:
    for aggregate in AGGREGATES:
        name = aggregate.name.replace("<k>", "12").replace("<q>", "99.9")
        assert parse_aggregate(name).aggregate is aggregate
    assert [parse_aggregate(n).number for n in ("p99.9", "lag3", "top1", "p0", "p100")] == [
        99.9,
        3,
        1,
        0,
        100,
    ]
    for wrong in ("lag0", "lag", "p101", "p", "top", "Count", "sum ", "lag1000"):
        with pytest.raises(ValueError, match="no aggregate"):
            parse_aggregate(wrong)


# -- the chapter's picture ----------------------------------------------------------------------


def test_the_picture_of_the_windows() -> None:
    """Amounts 1, 10, 100 and 1000 stand for a, b, c and d: a sum says which are in the window."""
    times = {"a": -10, "b": 0, "c": 3, "d": 5}  # minutes after ten o'clock
    shown = dict(
        [
            ("5m", "c d"),
            ("{events: 3}", "b c d"),
            ("{session: 6m}", "b c d"),
            ("{tumbling: 10m}", "b c d"),
            ("{hopping: 10m, every: 10m}", "a"),
            ("{day: UTC}", "a b c d"),
        ]
    )
    for window, events in shown.items():
        line = window.split(",")[0].rstrip("}")
        assert re.search(rf"^{re.escape(line)}.*\b{events}\b", CHAPTER, re.M), window
    ten = 36_000_000 + 10 * clock.DAY_MS
    windows = [yaml.safe_load(w) for w in shown]
    declared = [
        {"prefix": "p", "key": "k", "value": "v", "windows": windows, "aggregates": ["sum"]},
        {
            "prefix": "late",
            "key": "k",
            "value": "v",
            "windows": ["5m"],
            "delay": "5m",
            "aggregates": ["sum"],
        },
    ]
    fields = [{"name": n, "type": "string"} for n in ("id", "k")]
    fields += [{"name": "t", "type": "int"}, {"name": "v", "type": "float"}]
    event = {"id": "id", "time": {"field": "t"}, "fields": fields}
    schema = Schema.model_validate({"key": "k", "event": event, "features": {"windows": declared}})
    stage = KeyedStage(schema, "k")
    amounts = dict(zip(times, (1.0, 10.0, 100.0, 1000.0), strict=True))
    observed = stage.observe(
        stage.new_state(),
        ["x"] * 4,
        np.array([ten + m * MINUTE_MS for m in times.values()]),
        {"v": np.array([*amounts.values()])},
        Identities.of_events([*times], [b""] * 4),
    )
    wanted = [sum(amounts[e] for e in events.split()) for events in [*shown.values(), "b"]]
    assert observed.features[-1].tolist() == wanted


def test_the_example_of_the_chapter() -> None:
    block = re.search(r"```yaml\n(features:\n.*?)```", CHAPTER, re.S)
    assert block
    document = yaml.safe_load((ROOT / "conf" / "fraud.yaml").read_text(encoding="utf-8"))
    schema = Schema.model_validate(
        {"key": "card_id", "event": document["event"], **yaml.safe_load(block[1])}
    )
    named = ["card_mean_5m", "card_count_last10", "card_sum_session30m"]
    named += ["card_count_day", "card_sum_decay1h", "card_burst"]
    assert set(named) <= set(schema.columns)
