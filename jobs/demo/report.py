"""A finished run as two files: ``report.json`` for machines, ``report.html`` for people.

The page is one file without scripts that needs no network: it can be mailed or kept with a release.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

import orjson

from jobs.demo import charts, document
from jobs.demo.outcome import AlertRow, Outcome, numbers
from jobs.metrics import precision_recall_curve

MAX_ALERTS = 20
"""Most alerts that the page lists."""


def write(
    outcome: Outcome, folder: Path, alerts: Sequence[AlertRow] = (), more: Sequence[str] = ()
) -> tuple[Path, Path]:
    """Write both files, over older ones.

    Args:
        outcome: The finished run.
        folder: Made if it is not there.
        alerts: In the order they came; the page lists the last of them.
        more: Further sections of the page, markup; see ``document.section``.

    Returns:
        The paths of ``report.json`` and ``report.html``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data, html = folder / "report.json", folder / "report.html"
    data.write_bytes(as_json(outcome))
    html.write_text(page(outcome, alerts, more), encoding="utf-8")
    return data, html


def as_json(outcome: Outcome) -> bytes:
    """The run's numbers as indented JSON; an undefined one is null."""
    return orjson.dumps(numbers(outcome), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def page(outcome: Outcome, alerts: Sequence[AlertRow] = (), more: Sequence[str] = ()) -> str:
    """The whole HTML page.

    Args:
        outcome: The finished run.
        alerts: In the order they came; the last ``MAX_ALERTS`` are listed, newest first.
        more: Further sections, markup; they stand before the alerts.
    """
    found = numbers(outcome)
    sections = [
        _header(outcome),
        _numbers(found),
        _balance(outcome),
        f'<div class="pair">{_ranking(outcome, found)}{_latency(outcome, found)}</div>',
        _throughput(outcome),
        *more,
        _alerts(alerts),
    ]
    return document.page("streamscore report", sections)


def _header(outcome: Outcome) -> str:
    started = datetime.fromtimestamp(outcome.started_ms / 1_000, UTC)
    facts = {
        "started": f"{started:%Y-%m-%d %H:%M:%S} UTC",
        "duration": f"{outcome.duration_s:,.0f} s",
        "alert threshold": f"score above {outcome.threshold:g}",
        **outcome.facts,
    }
    pairs = (document.pair(name, escape(value)) for name, value in facts.items())
    return f'<header><h1>streamscore report</h1><dl class="facts">{"".join(pairs)}</dl></header>'


def _numbers(found: Mapping[str, Any]) -> str:
    shown = (
        ("input records", found["input"], ",", ""),
        ("predictions", found["predictions"], ",", ""),
        ("dead letters", found["dead_letters"], ",", ""),
        ("duplicates", found["duplicates"], ",", ""),
        ("alerts", found["alerts"], ",", ""),
        ("average precision", found["average_precision"], ".3f", ""),
        ("latency p50", found["p50_ms"], ",.0f", "ms"),
        ("latency p99", found["p99_ms"], ",.0f", "ms"),
        ("throughput", found["records_per_s"], ",.0f", "records/s"),
        ("fallbacks", found["fallbacks"], ",", ""),
    )
    pairs = (
        document.pair(name, document.quantity(value, form, unit))
        for name, value, form, unit in shown
    )
    return f'<dl class="numbers">{"".join(pairs)}</dl>'


def _balance(outcome: Outcome) -> str:
    rest = outcome.unaccounted
    shed = f" + {outcome.shed:,} shed" if outcome.shed else ""
    sign = "=" if rest == 0 else "&ne;"
    verdict = {
        0: "Every record is accounted for",
        1: f"{rest:,} missing",
        -1: f"{-rest:,} too many",
    }[(rest > 0) - (rest < 0)]
    return (
        f'<p class="balance"><strong class="{"bad" if rest else "good"}">{verdict}:</strong> '
        f"{outcome.input:,} input {sign} "
        f"{_scored(outcome)} + {outcome.dead_letters:,} dead letters + "
        f"{outcome.duplicates:,} duplicates{shed}.</p>"
    )


def _scored(outcome: Outcome) -> str:
    if outcome.scored_inputs is None:
        return f"{outcome.predictions:,} predictions"
    return f"{outcome.scored:,} in {outcome.predictions:,} scored windows"


def _ranking(outcome: Outcome, found: Mapping[str, Any]) -> str:
    title = "Precision and recall"
    if found["average_precision"] is None:
        return document.section(
            title, "No positive among the labelled test records: nothing to measure."
        )
    decision = outcome.decision()
    point = (decision.recall, decision.precision) if decision.alerts else None
    curve = precision_recall_curve(outcome.test_labels, outcome.test_scores)
    chart = charts.precision_recall_chart(
        curve, outcome.base_rate, point, f"threshold {outcome.threshold:g}"
    )
    at = (
        f"Above the threshold: precision {decision.precision:.3f}, recall {decision.recall:.3f}."
        if point
        else "No test record is above the threshold."
    )
    note = (
        f"Average precision {found['average_precision']:.3f} over {found['test_records']:,} test "
        f"records, the last in time, fallbacks left out. {at}"
    )
    return document.section(title, note, document.figure(chart))


def _latency(outcome: Outcome, found: Mapping[str, Any]) -> str:
    title = "Latency"
    if not outcome.predictions:
        return document.section(title, "No predictions: nothing to measure.")
    marks = [("p50", found["p50_ms"]), ("p99", found["p99_ms"])]
    note = (
        f"From a record's creation to its prediction in Kafka, {outcome.predictions:,} "
        f"predictions. The slowest took {found['max_ms']:,.0f} ms."
    )
    return document.section(
        title, note, document.figure(charts.latency_chart(outcome.latency_ms, marks))
    )


def _throughput(outcome: Outcome) -> str:
    title = "Throughput"
    if not outcome.predictions:
        return document.section(title, "No predictions: nothing to count.")
    start_ms = min(outcome.started_ms, int(outcome.scored_time_ms.min()))
    end_ms = max(outcome.ended_ms, int(outcome.scored_time_ms.max()))
    counted = charts.rates(outcome.scored_time_ms, outcome.is_fallback, start_ms, end_ms)
    outages_s = [((a - start_ms) / 1_000, (b - start_ms) / 1_000) for a, b in outcome.outages_ms]
    unit = "second" if counted.bin_s == 1 else f"{counted.bin_s} seconds"
    return document.section(
        title,
        f"Scored records per second, one bar per {unit}.",
        _legend(outcome),
        document.figure(charts.throughput_chart(counted, outages_s), "wide"),
        document.figure(charts.throughput_chart(counted, outages_s, width_px=440), "narrow"),
    )


def _legend(outcome: Outcome) -> str:
    entries = [("model", "scored by the model")]
    entries += [("fallback", "fallback score")] if outcome.is_fallback.any() else []
    entries += [("outage", "model server stopped")] if outcome.outages_ms else []
    swatches = (
        f'<span><i style="background:var(--{name})"></i>{text}</span>' for name, text in entries
    )
    return f'<div class="legend">{"".join(swatches)}</div>'


def _alerts(alerts: Sequence[AlertRow]) -> str:
    if not alerts:
        return ""
    last = alerts[: -MAX_ALERTS - 1 : -1]
    head = (
        '<tr><th>event</th><th>key</th><th class="number">score</th>'
        '<th class="reasons">reasons</th></tr>'
    )
    return document.section(
        f"Last {len(last)} alerts" if len(last) > 1 else "Last alert",
        "Newest first. A reason is a feature's value and what it added to the score in log-odds.",
        f'<div class="scroll"><table><thead>{head}</thead>',
        f"<tbody>{_rows(last)}</tbody></table></div>",
    )


def _rows(alerts: Iterable[AlertRow]) -> str:
    return "".join(
        f"<tr><td>{escape(alert.event_id)}</td><td>{escape(alert.key)}</td>"
        f'<td class="number">{alert.score:.4f}</td>'
        f'<td class="reasons">{"<br>".join(map(escape, alert.reasons))}</td></tr>'
        for alert in alerts
    )
