"""What a ranking job's feedback should be of its topics: everything is kept and looked through."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from udfs.ranking.counters import HALF_LIVES_MS
from udfs.ranking.index import ItemIndex

Documents = Sequence[dict[str, Any]]


def first_of(documents: Iterable[dict[str, Any]], name: str) -> dict[str, dict[str, Any]]:
    """The first document of each id, in the order of the topic."""
    found: dict[str, dict[str, Any]] = {}
    for one in documents:
        found.setdefault(one[name], one)
    return found


def labels_of(
    events: Documents, impressions: Documents, kinds: Iterable[str], window_ms: int, until_ms: int
) -> dict[str, dict[str, list[str]]]:
    """What was done with each item of each request that was shown, by the request's id.

    Args:
        events: Of the events topic.
        impressions: Of its topic; of a request's the first one counts.
        kinds: Which events are labels.
        window_ms: How long after a request.
        until_ms: Later requests have no example yet.
    """
    frame = pd.DataFrame(events).reindex(columns=["kind", "request_id", "item", "event_time_ms"])
    shown = set(frame["request_id"][frame["kind"] == "shown"])
    answers = frame[frame["kind"].isin(list(kinds))].sort_values(["event_time_ms", "item", "kind"])
    found: dict[str, dict[str, list[str]]] = {}
    for request_id, one in first_of(impressions, "request_id").items():
        begin_ms = one["event_time_ms"]
        if request_id not in shown or begin_ms > until_ms:
            continue
        own = answers[answers["request_id"] == request_id]
        own = own[own["event_time_ms"].between(begin_ms, begin_ms + window_ms)]
        found[request_id] = {
            item["item"]: own["kind"][own["item"] == item["item"]].tolist() for item in one["items"]
        }
    return found


def popularity_of(events: Documents, index: ItemIndex) -> dict[str, list[float]]:
    """Decayed purchases of each item that was bought, as of the index's time."""
    found: dict[str, list[float]] = {}
    rows = {item: row for row, item in enumerate(index.ids.tolist())}
    for one in events:
        if one["kind"] == "purchase":
            item, row = one["item"], rows.get(one["item"])
            known = [0.0] * len(HALF_LIVES_MS) if row is None else index.popularity[row].tolist()
            before = found.setdefault(item, known)
            ages = (index.as_of_ms - one["event_time_ms"]) / HALF_LIVES_MS
            found[item] = [a + 0.5**b for a, b in zip(before, ages.tolist(), strict=True)]
    return found


def clicks_before(events: Documents, user: str, time_ms: int) -> int:
    """Clicks of a user up to a request, all within one session."""
    return sum(
        one["kind"] in ("click", "like") and one["user"] == user and one["event_time_ms"] <= time_ms
        for one in events
    )
