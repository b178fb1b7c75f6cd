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

from jobs.demo import charts
from jobs.demo.outcome import AlertRow, Outcome, numbers
from jobs.metrics import precision_recall_curve

MAX_ALERTS = 20
"""Most alerts that the page lists."""

_STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --ink: #1b1f24; --muted: #59636e;
  --grid: #e3e6ea; --model: #2f6fb3; --fallback: #d97b1f; --outage: #80808030;
  --good: #1a7f45; --bad: #c0322b; }
@media (prefers-color-scheme: dark) { :root { --page: #14171a; --ink: #e7eaee; --muted: #9ba5b0;
  --grid: #2b3137; --model: #69a6e6; --fallback: #eda04f; --outage: #a0a0a038;
  --good: #57c785; --bad: #f2786f; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 24px 16px 48px; max-width: 1000px; background: var(--page);
  color: var(--ink); font: 15px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 24px; margin: 0; }
h2 { font-size: 16px; margin: 0 0 2px; }
p { margin: 0; }
.note { color: var(--muted); font-size: 13px; }
dl { margin: 0; }
dt { color: var(--muted); font-size: 13px; }
dd { margin: 0; overflow-wrap: anywhere; }
.facts { display: grid; gap: 8px 24px; margin-top: 16px;
  grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); }
.facts dd { font-size: 14px; }
.numbers { display: grid; gap: 14px 24px; margin-top: 24px; padding-top: 18px;
  border-top: 1px solid var(--grid); grid-template-columns: repeat(5, 1fr); }
.numbers dd { font-size: 26px; line-height: 1.2; font-variant-numeric: tabular-nums; }
.numbers small { font-size: 14px; color: var(--muted); }
.balance { margin-top: 18px; }
.good { color: var(--good); }
.bad { color: var(--bad); }
section { margin-top: 36px; min-width: 0; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 0 40px; }
figure { margin: 12px 0 0; }
.narrow { display: none; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 18px; font-size: 13px; color: var(--muted); }
.legend i { display: inline-block; width: 12px; height: 12px; margin-right: 6px;
  vertical-align: -1px; }
.scroll { overflow-x: auto; margin-top: 10px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th { text-align: left; font-weight: 400; color: var(--muted); font-size: 13px; }
th, td { padding: 6px 20px 6px 0; vertical-align: top; border-bottom: 1px solid var(--grid); }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
td.reasons { font-size: 13px; overflow-wrap: anywhere; }
@media (max-width: 720px) {
  .numbers { grid-template-columns: repeat(2, 1fr); }
  .pair { grid-template-columns: 1fr; }
  .wide { display: none; }
  .narrow { display: block; }
  tr { display: grid; grid-template-columns: 1fr 1fr 6em; border-bottom: 1px solid var(--grid);
    padding: 6px 0; }
  th, td { padding: 0 12px 0 0; border: 0; overflow-wrap: anywhere; }
  .reasons { grid-column: 1 / -1; }
  th.reasons { display: none; }
}
"""


def write(
    outcome: Outcome, folder: Path, alerts: Sequence[AlertRow] = (), more: Sequence[str] = ()
) -> tuple[Path, Path]:
    """Write both files, over older ones.

    Args:
        outcome: The finished run.
        folder: Made if it is not there.
        alerts: In the order they came; the page lists the last of them.
        more: Further sections of the page, markup; see ``section``.

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
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>streamscore report</title>\n<style>{_STYLE}{charts.STYLE}</style>\n</head>\n"
        "<body>\n" + "\n".join(sections) + "\n</body>\n</html>\n"
    )


def _header(outcome: Outcome) -> str:
    started = datetime.fromtimestamp(outcome.started_ms / 1_000, UTC)
    facts = {
        "started": f"{started:%Y-%m-%d %H:%M:%S} UTC",
        "duration": f"{outcome.duration_s:,.0f} s",
        "alert threshold": f"score above {outcome.threshold:g}",
        **outcome.facts,
    }
    pairs = (_pair(name, escape(value)) for name, value in facts.items())
    return f'<header><h1>streamscore report</h1><dl class="facts">{"".join(pairs)}</dl></header>'


def _pair(name: str, markup: str) -> str:
    return f"<div><dt>{escape(name)}</dt><dd>{markup}</dd></div>"


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
    pairs = (_pair(name, _quantity(value, form, unit)) for name, value, form, unit in shown)
    return f'<dl class="numbers">{"".join(pairs)}</dl>'


def _quantity(value: float | None, form: str, unit: str) -> str:
    if value is None:
        return "&ndash;"
    return f"{value:{form}}" + (f" <small>{unit}</small>" if unit else "")


def _balance(outcome: Outcome) -> str:
    rest = outcome.unaccounted
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
        f"{outcome.duplicates:,} duplicates.</p>"
    )


def _scored(outcome: Outcome) -> str:
    if outcome.scored_inputs is None:
        return f"{outcome.predictions:,} predictions"
    return f"{outcome.scored:,} in {outcome.predictions:,} scored windows"


def section(title: str, note: str, *content: str) -> str:
    """A section of the page; the content is markup."""
    return (
        f'<section><h2>{escape(title)}</h2><p class="note">{escape(note)}</p>'
        f"{''.join(content)}</section>"
    )


def _ranking(outcome: Outcome, found: Mapping[str, Any]) -> str:
    title = "Precision and recall"
    if found["average_precision"] is None:
        return section(title, "No positive among the labelled test records: nothing to measure.")
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
    return section(title, note, figure(chart))


def _latency(outcome: Outcome, found: Mapping[str, Any]) -> str:
    title = "Latency"
    if not outcome.predictions:
        return section(title, "No predictions: nothing to measure.")
    marks = [("p50", found["p50_ms"]), ("p99", found["p99_ms"])]
    note = (
        f"From a record's creation to its prediction in Kafka, {outcome.predictions:,} "
        f"predictions. The slowest took {found['max_ms']:,.0f} ms."
    )
    return section(title, note, figure(charts.latency_chart(outcome.latency_ms, marks)))


def _throughput(outcome: Outcome) -> str:
    title = "Throughput"
    if not outcome.predictions:
        return section(title, "No predictions: nothing to count.")
    start_ms = min(outcome.started_ms, int(outcome.scored_time_ms.min()))
    end_ms = max(outcome.ended_ms, int(outcome.scored_time_ms.max()))
    counted = charts.rates(outcome.scored_time_ms, outcome.is_fallback, start_ms, end_ms)
    outages_s = [((a - start_ms) / 1_000, (b - start_ms) / 1_000) for a, b in outcome.outages_ms]
    unit = "second" if counted.bin_s == 1 else f"{counted.bin_s} seconds"
    return section(
        title,
        f"Scored records per second, one bar per {unit}.",
        _legend(outcome),
        figure(charts.throughput_chart(counted, outages_s), "wide"),
        figure(charts.throughput_chart(counted, outages_s, width_px=440), "narrow"),
    )


def _legend(outcome: Outcome) -> str:
    entries = [("model", "scored by the model")]
    entries += [("fallback", "fallback score")] if outcome.is_fallback.any() else []
    entries += [("outage", "model server stopped")] if outcome.outages_ms else []
    swatches = (
        f'<span><i style="background:var(--{name})"></i>{text}</span>' for name, text in entries
    )
    return f'<div class="legend">{"".join(swatches)}</div>'


def figure(chart: str, cls: str = "") -> str:
    """A chart on the page."""
    return f'<figure class="{cls}">{chart}</figure>'


def _alerts(alerts: Sequence[AlertRow]) -> str:
    if not alerts:
        return ""
    last = alerts[: -MAX_ALERTS - 1 : -1]
    head = (
        '<tr><th>event</th><th>key</th><th class="number">score</th>'
        '<th class="reasons">reasons</th></tr>'
    )
    return section(
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
