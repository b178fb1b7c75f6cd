from __future__ import annotations

import math
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from jobs.demo import report
from jobs.demo.outcome import AlertRow, Outcome, numbers

STARTED_MS = 1_760_000_000_000
KEYS = {
    "input",
    "predictions",
    "alerts",
    "dead_letters",
    "duplicates",
    "fallbacks",
    "average_precision",
    "p50_ms",
    "p99_ms",
    "records_per_s",
}
VOID = {"meta", "br"}

EMPTY = Outcome(
    input=0,
    predictions=0,
    alerts=0,
    dead_letters=0,
    duplicates=0,
    fallbacks=0,
    test_scores=np.empty(0),
    test_labels=np.empty(0),
    latency_ms=np.empty(0),
    scored_time_ms=np.empty(0, np.int64),
    is_fallback=np.empty(0, np.bool_),
    started_ms=STARTED_MS,
    ended_ms=STARTED_MS + 4_000,
    threshold=0.5,
)
FULL = replace(
    EMPTY,
    input=8,
    predictions=5,
    alerts=2,
    dead_letters=2,
    duplicates=1,
    fallbacks=1,
    test_scores=np.array([0.9, 0.8, 0.7, 0.1]),
    test_labels=np.array([1.0, 0.0, 1.0, 0.0]),
    latency_ms=np.array([10.0, 20.0, 30.0, 40.0, 1_000.0]),
    scored_time_ms=STARTED_MS + np.array([0, 500, 1_000, 1_500, 2_000]),
    is_fallback=np.array([False, False, False, False, True]),
    outages_ms=((STARTED_MS + 1_800, STARTED_MS + 2_500),),
    facts={"model": "fraud <3>"},
)
OUTCOMES = {
    "empty": EMPTY,
    "full": FULL,
    "no test labels": replace(FULL, test_scores=np.empty(0), test_labels=np.empty(0)),
    "no fraud": replace(FULL, test_labels=np.zeros(4)),
    "no alert": replace(FULL, threshold=1.0),
    "all fallbacks": replace(
        FULL,
        fallbacks=5,
        is_fallback=np.ones(5, np.bool_),
        test_scores=np.empty(0),
        test_labels=np.empty(0),
    ),
    "one moment": replace(FULL, scored_time_ms=np.full(5, STARTED_MS), ended_ms=STARTED_MS),
    "clocks apart": replace(FULL, scored_time_ms=FULL.scored_time_ms - 60_000),
}


class Page(HTMLParser):
    """Collects a page's tags and text; refuses tags that do not close in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str | None] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_numbers_of_a_hand_made_run() -> None:
    found = numbers(FULL)
    assert found["average_precision"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert found["p50_ms"] == 30.0
    assert found["p99_ms"] == pytest.approx(40 + 0.96 * 960)
    assert found["records_per_s"] == 2.5  # 5 predictions in the 2 s from the first to the last
    assert (found["precision_at_threshold"], found["recall_at_threshold"]) == (2 / 3, 1.0)
    assert (found["unaccounted"], found["base_rate"], found["duration_s"]) == (0, 0.5, 4.0)


@pytest.mark.parametrize("outcome", OUTCOMES.values(), ids=OUTCOMES)
def test_the_json_has_every_key_and_no_nan(outcome: Outcome) -> None:
    found: dict[str, Any] = orjson.loads(report.as_json(outcome))
    assert found.keys() >= KEYS
    assert found == numbers(outcome)
    assert not any(isinstance(v, float) and not math.isfinite(v) for v in found.values())


@pytest.mark.parametrize(
    ("name", "undefined"),
    [
        ("empty", {"average_precision", "p50_ms", "p99_ms", "records_per_s"}),
        ("no test labels", {"average_precision"}),
        ("no fraud", {"average_precision"}),
        ("all fallbacks", {"average_precision"}),
        ("one moment", {"records_per_s"}),
        ("full", set()),
    ],
)
def test_undefined_numbers_are_null(name: str, undefined: set[str]) -> None:
    found = orjson.loads(report.as_json(OUTCOMES[name]))
    assert {key for key in KEYS if found[key] is None} == undefined


@pytest.mark.parametrize("outcome", OUTCOMES.values(), ids=OUTCOMES)
def test_the_page_parses_and_needs_no_network(outcome: Outcome) -> None:
    html = report.page(outcome)
    page = Page(html)
    assert page.links == [] and "script" not in page.tags
    assert "url(" not in html and "nan" not in page.text.lower()


def test_the_page_shows_charts_only_where_there_is_something_to_draw() -> None:
    assert Page(report.page(EMPTY)).tags.count("svg") == 0
    assert Page(report.page(OUTCOMES["no test labels"])).tags.count("svg") == 3
    assert Page(report.page(FULL)).tags.count("svg") == 4  # throughput is there for both widths


def test_every_text_from_outside_is_escaped() -> None:
    evil = AlertRow("<b>id</b>", "<em>key", 0.9, ("<u>reason & more",))
    html = report.page(FULL, [evil])
    assert {"b", "em", "u"}.isdisjoint(Page(html).tags)
    text = Page(html).text
    assert all(part in text for part in ("<b>id</b>", "<em>key", "<u>reason & more", "fraud <3>"))


def test_the_last_alerts_are_listed_newest_first() -> None:
    alerts = [AlertRow(f"event-{i:02d}", "card", 0.9) for i in range(25)]
    text = Page(report.page(FULL, alerts)).text
    listed = [alert.event_id for alert in alerts if alert.event_id in text]
    assert listed == [f"event-{i:02d}" for i in range(5, 25)]
    assert text.index("event-24") < text.index("event-05")


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        (0, "Every record is accounted for: 8 input = 5 predictions + 2 dead letters"),
        (3, "3 missing: 11 input ≠ 5 predictions"),
        (-2, "2 too many: 6 input ≠ 5 predictions"),
    ],
)
def test_the_page_says_whether_the_books_balance(change: int, verdict: str) -> None:
    outcome = replace(FULL, input=FULL.input + change)
    assert outcome.unaccounted == change
    assert verdict in Page(report.page(outcome)).text


@pytest.mark.parametrize(
    "changes",
    [
        {"latency_ms": np.empty(4)},
        {"is_fallback": np.ones(6, np.bool_)},
        {"predictions": 4},
        {"test_scores": np.empty(3)},
    ],
)
def test_arrays_that_do_not_match_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="one entry per"):
        replace(FULL, **changes)


def test_both_files_are_written_and_written_over(tmp_path: Path) -> None:
    for outcome in (EMPTY, FULL):
        data, html = report.write(outcome, tmp_path / "run")
    assert orjson.loads(data.read_bytes())["input"] == 8
    assert html.read_text(encoding="utf-8") == report.page(FULL)
    assert (data.name, html.name) == ("report.json", "report.html")


def test_an_alert_row_reads_the_job_s_alert_record() -> None:
    record = {
        "reasons": [
            {"feature": "amount", "value": 1234.5, "contribution": 1.234},
            {"feature": "card_mean_1h", "value": None, "contribution": -0.5},
        ],
        "prediction": {"event_id": "t-1", "key": "card-1", "score": 0.9},
    }
    assert AlertRow.of_record(record) == AlertRow(
        "t-1", "card-1", 0.9, ("amount = 1,234 (+1.23)", "card_mean_1h = unknown (-0.50)")
    )
