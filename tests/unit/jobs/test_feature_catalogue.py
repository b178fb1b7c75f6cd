"""The catalogue names every column, and says of each what the settings say."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest

from jobs import settings
from jobs.environment import ROOT
from jobs.features.catalogue import Described, describe, window_text
from jobs.features.docs import html, markdown
from jobs.features.reach import not_recomputed
from jobs.settings import Settings
from tests.support.recorded_case import case_settings
from udfs.definition.feature import FeatureSpec
from udfs.definition.schema import Schema
from udfs.definition.window import Window
from udfs.features.aggregates import AGGREGATES

CONFIGS = [ROOT / "conf" / "fraud.yaml", *sorted((ROOT / "conf" / "examples").glob("*.yaml"))]


@pytest.fixture(params=[*CONFIGS, None], ids=lambda p: p.stem if p else "all kinds")
def loaded(request: pytest.FixtureRequest) -> Settings:
    path: Path | None = request.param
    return settings.load(path) if path else case_settings()


def test_every_column_is_described_in_order(loaded: Settings) -> None:
    described = describe(loaded.schema_)
    assert tuple(d.name for d in described) == loaded.schema_.columns
    for d in described:
        assert d.meaning.endswith(".") and d.missing and d.unit and d.cost
        assert "{" not in d.meaning and "<" not in d.meaning


def test_every_column_is_in_both_documents(loaded: Settings) -> None:
    for text in (markdown(loaded), html(loaded)):
        assert all(column in text for column in loaded.schema_.columns)
        assert loaded.features_hash[:12] in text


def of_all() -> dict[str, Described]:
    return {d.name: d for d in describe(case_settings().schema_)}


def test_a_window_is_said_whole() -> None:
    d = of_all()["online_mean_hopping6h"]
    assert (d.stage, d.stream, d.aggregate) == ("card_id", "events", "mean")
    assert (d.window, d.reads, d.where) == ("hopping: 6h every 1h", "amount", "type == 'CNP'")
    assert "with type == 'CNP'" in d.meaning and "newest whole 6h" in d.meaning
    label = of_all()["fraud_rate_mean_7d"]
    assert label.delay == "24h"
    assert "the 7d up to 24h before the event" in label.meaning


def test_every_aggregate_has_a_meaning_unit_and_rule() -> None:
    names = [a.name.replace("<k>", "2").replace("<q>", "95") for a in AGGREGATES]
    values = {"number": "amount", "category": "type", "point": ["billing_lat", "billing_lon"]}
    for n, aggregate in enumerate(AGGREGATES):
        kind = aggregate.reads.split(" or ")[0]
        window = {
            "prefix": "w",
            "key": "card_id",
            "windows": ["1h"],
            "value": values.get(kind),
            "aggregates": [names[n]],
        }
        schema = case_settings().schema_
        features = FeatureSpec.model_validate({"windows": [window]})
        changed = Schema(event=schema.event, key=schema.key, features=features)
        (d,) = describe(changed)
        assert d.missing and d.unit
        assert "k-th" not in d.meaning and "q-th" not in d.meaning


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("5m", "5m"),
        ({"events": 10}, "events: 10"),
        ({"session": "30m", "within": "2h"}, "session: 30m within 2h"),
        ({"day": "Europe/Paris"}, "day: Europe/Paris"),
        ({"half_life": "1h"}, "half_life: 1h"),
    ],
)
def test_a_window_as_it_is_written(written: object, shown: str) -> None:
    assert window_text(Window.model_validate(written)) == shown


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.add(tag)
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_loads_nothing(loaded: Settings) -> None:
    page, tags = html(loaded), _Tags()
    tags.feed(page)
    assert tags.open == []
    assert not tags.seen & {"script", "link", "img"}
    assert "http" not in page


def test_the_state_is_that_of_the_readme() -> None:
    text = markdown(settings.load(CONFIGS[0]))
    assert "24 bytes and 32 per kept event, which is kept for 169h" in text
    assert "24 bytes and 16 per kept event" in text
    assert "24 bytes and 32 per kept label, which is kept for 889h" in text


def test_what_tables_and_lookups_decide_is_not_recomputed() -> None:
    schema = case_settings().schema_
    table = {"name": "shop", "key": "terminal_id", "topic": "shops"}
    table |= {"fields": [{"name": "rank", "type": "float"}, {"name": "kind", "type": "string"}]}
    lookup = {"name": "store", "key": "card_id", "redis": {"url": "redis://127.0.0.1:6379/0"}}
    lookup |= {"fields": [{"name": "age", "type": "float"}]}
    window = {"prefix": "w", "key": "card_id", "windows": ["1h"], "aggregates": ["count"]}
    features = {
        "expressions": [{"name": "rank", "type": "value", "fields": ["shop_rank"]}],
        "windows": [window, window | {"prefix": "x", "where": "shop_kind == 'a'"}],
        "formulas": [
            {"name": "half", "formula": "w_count_1h / 2"},
            {"name": "share", "formula": "x_count_1h / w_count_1h"},
            {"name": "double", "formula": "share * 2"},
        ],
    }
    changed = Schema.model_validate(
        {"event": schema.event, "key": schema.key, "features": features}
        | {"tables": [table], "lookups": [lookup]}
    )
    expected = {"rank", "x_count_1h", "share", "double", "store_age"}
    assert not_recomputed(changed) == expected
    assert tuple(d.name for d in describe(changed)) == changed.columns
    assert not_recomputed(schema) == frozenset()
