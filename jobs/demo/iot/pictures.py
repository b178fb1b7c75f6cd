"""The parts of the machines' report that only it has: scores over time, episodes, evaluation."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from jobs.demo import document, score_charts
from jobs.demo.iot import evaluation
from jobs.demo.iot.detection import WARM_UP_WINDOWS, Found
from jobs.demo.iot.evaluation import Measured, Rates
from jobs.demo.iot.fleet import Fleet, Truth
from jobs.demo.watch import Tally
from jobs.settings import Settings

MACHINES = 6
EPISODES = 15

Spans = list[tuple[float, float]]


def sections(
    settings: Settings,
    tally: Tally,
    fleet: Fleet,
    truth: Sequence[Truth],
    found: Found,
    measured: Measured,
) -> list[str]:
    """The sections, markup."""
    return [
        f"<style>{score_charts.STYLE}</style>",
        _machines(settings, tally, fleet, truth),
        _episodes(settings, tally, found),
        _evaluation(fleet, measured),
    ]


def _machines(settings: Settings, tally: Tally, fleet: Fleet, truth: Sequence[Truth]) -> str:
    episodes = _episode_spans(tally, fleet)
    shown = _shown(truth, episodes)
    charts = [_chart(settings, tally, fleet, one, episodes[one.machine]) for one in shown]
    pairs = "".join(f'<div class="pair">{"".join(charts[n : n + 2])}</div>' for n in range(0, 6, 2))
    return document.section(
        "Scores of some machines",
        "Grey: the anomaly of the run that the machine replays. Red, on the axis: an open alert. "
        f"The first {WARM_UP_WINDOWS} windows are the machine's baseline.",
        pairs,
    )


def _shown(truth: Sequence[Truth], episodes: Mapping[str, Spans]) -> list[Truth]:
    """Machines with anomalies of different runs, one that fell silent, one that is always calm."""
    by_run: dict[str, Truth] = {}
    for one in truth:
        if one.anomalies_ms and one.silent_from_ms is None:
            by_run.setdefault(one.run, one)
    disturbed = list(by_run.values())
    shown = disturbed[:: max(1, len(disturbed) // 4)][:4]
    shown += [t for t in truth if t.silent_from_ms is not None][:1]
    shown += [t for t in truth if not t.anomalies_ms and t.machine not in episodes]
    return shown[:MACHINES]


def _chart(
    settings: Settings,
    tally: Tally,
    fleet: Fleet,
    one: Truth,
    episodes: Iterable[tuple[float, float]],
) -> str:
    at = [n for n, key in enumerate(tally.keys) if key == one.machine]
    ends_s = np.array([(tally.event_times_ms[n] - fleet.start_ms) / 1_000 for n in at])
    scores = np.array([tally.scores[n] for n in at])
    order = np.argsort(ends_s)
    if not len(order):
        return ""
    anomalies = [_seconds(fleet, span) for span in one.anomalies_ms]
    name = f"{one.machine} ({one.run})"
    return document.figure(
        score_charts.scores_chart(
            name,
            ends_s[order],
            scores[order],
            settings.alerts.threshold,
            anomalies,
            list(episodes),
        )
    )


def _seconds(fleet: Fleet, span: tuple[int, int]) -> tuple[float, float]:
    begun, ended = ((ms - fleet.start_ms) / 1_000 for ms in span)
    return begun, ended


def _last_told(tally: Tally) -> list[Mapping[str, Any]]:
    """Of each episode what was told last; those that were withdrawn are left out."""
    last: dict[str, Mapping[str, Any]] = {}
    for alert in tally.alert_records:
        name = alert.get("episode_id")
        if name and (name not in last or alert["revision"] > last[name]["revision"]):
            last[name] = alert
    return [alert for alert in last.values() if alert["state"] != "withdrawn"]


def _episode_spans(tally: Tally, fleet: Fleet) -> dict[str, Spans]:
    spans: dict[str, Spans] = defaultdict(list)
    for alert in _last_told(tally):
        if alert["kind"] == "scores":
            end_ms = alert["closed_ms"] or fleet.start_ms + 1_000 * fleet.seconds
            spans[alert["entity"]["value"]].append(_seconds(fleet, (alert["opened_ms"], end_ms)))
    return spans


def _episodes(settings: Settings, tally: Tally, found: Found) -> str:
    told = [alert for alert in _last_told(tally) if alert["kind"] == "scores"]
    head = (
        "<tr><th>machine</th><th>state</th><th class='number'>peak</th><th>moved most</th>"
        "<th>last 5 minutes</th></tr>"
    )
    rows = "".join(_episode_row(settings, alert) for alert in told[-EPISODES:][::-1])
    delay = f"median {statistics.median(found.delays_s):.0f} s" if found.delays_s else "none"
    note = (
        f"{found.found} of {found.anomalies} anomalies got an alert while they lasted, after "
        f"{delay} of event time; {found.others} episodes were at no anomaly. "
        f"{found.silent} of {found.stopped} machines that stopped were told silent before the end."
    )
    table = f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>"
    return document.section("Episodes", note, f'<div class="scroll">{table}</div>')


def _episode_row(settings: Settings, alert: Mapping[str, Any]) -> str:
    moved, peak = alert.get("moved_most"), alert["peak"]
    mover = f"{moved['feature']} {moved['value']:+.1f}" if moved else ""
    chart = score_charts.last_scores_chart(alert["last_scores"], peak["threshold"])
    return (
        f"<tr><td>{escape(alert['entity']['value'])}</td><td>{escape(alert['state'])}</td>"
        f'<td class="number">{peak["score"]:.3f}</td><td>{escape(mover)}</td><td>{chart}</td></tr>'
    )


def _evaluation(fleet: Fleet, measured: Measured) -> str:
    head = (
        '<tr><th>algorithm</th><th class="number">F1</th><th class="number">false alarms, %</th>'
        '<th class="number">missed alarms, %</th></tr>'
    )
    rows = [
        _rates_row(f"this job, threshold as configured ({fleet.source})", measured.at_threshold),
        _rates_row("this job, as known at the time, with hysteresis", measured.known),
        _rates_row("this job, threshold chosen on the other half", measured.split),
    ]
    if fleet.source == "SKAB":
        rows += [
            _row(f"{name} (published)", f1, far, mar)
            for name, (f1, far, mar) in evaluation.PUBLISHED.items()
        ]
    table = f"<table><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>"
    note = (
        f"Mean AUC over the runs {measured.mean_auc:.3f}, rows after each run's warm-up. One model "
        "of the run without an anomaly; those published are fitted to each run's warm-up."
        if fleet.source == "SKAB"
        else f"SYNTHETIC runs, mean AUC {measured.mean_auc:.3f}: the figures say nothing of pumps."
    )
    return document.section("Evaluation", note, f'<div class="scroll">{table}</div>')


def _rates_row(name: str, found: Rates) -> str:
    return _row(name, found.f1, 100 * found.far, 100 * found.mar)


def _row(name: str, f1: float, far: float, mar: float) -> str:
    cells = "".join(f'<td class="number">{value:.2f}</td>' for value in (f1, far, mar))
    return f"<tr><td>{escape(name)}</td>{cells}</tr>"
