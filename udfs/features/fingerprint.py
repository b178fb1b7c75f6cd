"""What stored histories depend on: kept with them, compared before they are read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from udfs.definition.schema import Schema
from udfs.features.keyed import KeyedStage
from udfs.features.series import Series, kinds_of

Fingerprint = dict[str, Any]
"""Plain JSON::

    key, id, time       names of fields
    buckets             how many
    labels              fields of a label's id, time and value, or null
    stages              by name: streams by name: horizon_ms, and the kind of each series' value
"""


class Refusal(NamedTuple):
    """Why stored histories cannot be read.

    Attributes:
        what: The setting.
        reason: What is wrong, and what to do.
    """

    what: str
    reason: str


def fingerprint(schema: Schema, buckets: int) -> Fingerprint:
    """The part of a job's settings that its stored histories depend on.

    Args:
        schema: The job's schema.
        buckets: How many.
    """
    labels = schema.labels
    return {
        "key": schema.key,
        "id": schema.event.id,
        "time": schema.event.time.field,
        "buckets": buckets,
        "labels": None if labels is None else [labels.id, labels.time, labels.value],
        "stages": {stage: _streams(schema, stage) for stage in schema.stages},
    }


def _streams(schema: Schema, name: str) -> dict[str, Any]:
    stage, kinds = KeyedStage(schema, name), kinds_of(schema.known)
    streams: dict[str, Any] = {}
    for stream, plan in stage.plans.items():
        if stream == "labels" and not stage.reads_labels:
            continue
        series = {
            s.name: "number" if stream == "labels" else _kind(s, dict(kinds)) for s in plan.series
        }
        streams[stream] = {"horizon_ms": schema.horizon_ms(name, stream), "series": series}
    return streams


def _kind(series: Series, kinds: dict[str, str]) -> str:
    """A text is kept as the number that stands for it: it must not become one of another kind."""
    return "text" if kinds.get(series.value or "") == "text" else "number"


def refusals(old: Fingerprint, new: Fingerprint) -> list[Refusal]:
    """Why histories that were stored with ``old`` settings cannot be read with ``new`` ones."""
    return [*_of_events(old, new), *_of_series(old, new)]


_ANEW = "start without this state, or make one: streamscore features bootstrap"


def _of_events(old: Fingerprint, new: Fingerprint) -> Iterator[Refusal]:
    reasons = {
        "key": "duplicates and the first features are kept by it",
        "id": "duplicates are known by it",
        "time": "stored events lie at their old times",
        "buckets": "it decides where histories lie; flink.parallelism can go up to it",
    }
    settings = {"key": "key", "id": "event.id", "time": "event.time.field"}
    for name, reason in reasons.items():
        if old[name] != new[name]:
            change = f"was {old[name]!r}, now {new[name]!r}: {reason}; keep it, or {_ANEW}"
            yield Refusal(settings.get(name, "batch.buckets"), change)
    if old["labels"] and new["labels"] and old["labels"] != new["labels"]:
        reason = "stored labels are known by these fields"
        change = f"were {old['labels']}, now {new['labels']}: {reason}; keep them, or {_ANEW}"
        yield Refusal("labels", change)


def _of_series(old: Fingerprint, new: Fingerprint) -> Iterator[Refusal]:
    for stage, streams in new["stages"].items():
        for stream, now in streams.items():
            before = old["stages"].get(stage, {}).get(stream, {"series": {}})["series"]
            for name, kind in now["series"].items():
                if before.get(name, kind) != kind:
                    yield Refusal(
                        f"the type of {name!r}",
                        f"stage {stage} keeps it as a {before[name]}, now it is a {kind}: give the "
                        f"field another name, or {_ANEW}",
                    )
