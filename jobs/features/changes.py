"""What a change of settings does to the state of a running job, feature by feature."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from jobs.settings import Settings
from udfs.definition.schema import Schema
from udfs.definition.types import format_duration
from udfs.features.coverage import ENTRIES, Need, needs_of
from udfs.features.fingerprint import Fingerprint, fingerprint, refusals
from udfs.features.formula_columns import FormulaColumns

Effect = Literal["keeps", "starts", "lost", "refused"]


@dataclass(frozen=True, slots=True)
class Change:
    """One consequence.

    Attributes:
        kind: What changed: ``added``, ``removed``, ``altered`` or ``unchanged`` of a feature;
            ``stage``; ``scoring stage``; or the setting that is refused.
        feature: The feature's name, or the stage's; empty for settings.
        effect: ``keeps``: right from the first event on. ``starts``: incomplete until its window is
            filled, and each prediction says so. ``lost``: gone, with its state. ``refused``: the
            job must not start from the old state.
        reason: Why, and what to do.
    """

    kind: str
    feature: str
    effect: Effect
    reason: str


Changes = list[Change]


def compare(old: Settings, new: Settings) -> Changes:
    """What becomes of a job's state if it goes on with other settings.

    Pure: it reads nothing but the two. Refusals come first.

    Args:
        old: The settings of the savepoint.
        new: Those to go on with.
    """
    known = fingerprint(old.schema_, old.batch.buckets)
    changes = changes_of(known, new, _definitions(old.schema_))
    if not any(c.effect == "refused" for c in changes) and needs_drain(old, new):
        reason = (
            f"{old.schema_.stages[-1]!r} holds the batches in flight and no longer scores them: "
            "stop the job with drain, or their predictions are lost"
        )
        changes.insert(0, Change("scoring stage", new.schema_.stages[-1], "keeps", reason))
    return changes


def needs_drain(old: Settings, new: Settings) -> bool:
    """Whether the old job must be stopped with drain: the stage that scores is another one."""
    return old.schema_.stages[-1] != new.schema_.stages[-1]


def changes_of(
    old: Fingerprint, new: Settings, definitions: Mapping[str, str] | None = None
) -> Changes:
    """As ``compare``, where of the old settings only what a savepoint tells is known.

    Args:
        old: The fingerprint of the settings that made the histories.
        new: The settings to go on with.
        definitions: Of the old features, by name; none if they are not known: then features are
            neither ``removed`` nor ``altered``, but what their state allows is said of each.
    """
    schema = new.schema_
    now = fingerprint(schema, new.batch.buckets)
    found = refusals(old, now)
    if found:
        return [Change(what, "", "refused", reason) for what, reason in found]
    changes = [*_of_stages(old, now)]
    effects = {c.column: c for c in _columns(old, schema)}
    before = definitions if definitions is not None else {}
    for name, definition in _definitions(schema).items():
        kind = "added" if name not in before else "altered"
        if before.get(name) == definition or definitions is None:
            kind = "unchanged"
        changes.append(Change(kind, name, effects[name].effect, effects[name].reason))
    for name in before.keys() - _definitions(schema).keys():
        reason = "no longer declared; values that only it read go as histories are written anew"
        changes.append(Change("removed", name, "lost", reason))
    return changes


def _of_stages(old: Fingerprint, now: Fingerprint) -> Iterator[Change]:
    for stage in old["stages"].keys() - now["stages"].keys():
        reason = "no feature is kept by it any more: all its histories are dropped"
        yield Change("stage", stage, "lost", reason)
    for stage in now["stages"].keys() - old["stages"].keys():
        yield Change("stage", stage, "starts", "a new key: its histories begin empty")


class _Column(NamedTuple):
    column: str
    effect: Effect
    reason: str


def _columns(old: Fingerprint, schema: Schema) -> Iterator[_Column]:
    """What becomes of each of today's features."""
    effects: dict[str, Effect] = {}
    for need in needs_of(schema):
        kept = old["stages"].get(need.stage, {}).get(need.stream)
        effect, reason = _of_window(kept, need)
        effects[need.column] = effect
        yield _Column(need.column, effect, reason)
    for expression in schema.features.expressions:
        for name in expression.columns:
            yield _Column(name, "keeps", "computed from the event alone")
    for name, inputs in FormulaColumns(schema).reads.items():
        starting = [i for i in inputs if effects.get(i) == "starts"]
        effects[name] = "starts" if starting else "keeps"
        reason = f"reads {', '.join(starting)}" if starting else "all it reads is kept"
        yield _Column(name, effects[name], reason)
    for name in schema.lookup_columns:
        yield _Column(name, "keeps", "a store has it")


def _of_window(kept: Mapping[str, Any] | None, need: Need) -> tuple[Effect, str]:
    reach_ms = need.reach_ms
    whole = f"complete {format_duration(reach_ms)} after the start, in event time"
    if need.stream == "first":
        whole = "never complete for keys that were there before"
    if kept is None:
        return "starts", f"a new key or stream; {whole}"
    if absent := [s for s in need.series if s != ENTRIES and s not in kept["series"]]:
        return "starts", f"no history has {', '.join(map(repr, absent))}; {whole}"
    if reach_ms > kept["horizon_ms"]:
        there_ms = kept["horizon_ms"]
        missing = format_duration(reach_ms - there_ms)
        return "starts", (
            f"histories go back {format_duration(there_ms)}; complete {missing} after the start, "
            "in event time"
        )
    return "keeps", "its history is there"


def _definitions(schema: Schema) -> dict[str, str]:
    """Of each feature by name: a text that differs where its meaning does."""
    found: dict[str, str] = {}
    for expression in schema.features.expressions:
        found |= dict.fromkeys(expression.columns, expression.model_dump_json())
    for feature in schema.features.windows:
        shared = {"windows", "aggregates", "prefix"}
        rest = feature.model_dump_json(exclude=shared)
        windows = [w.model_dump_json() for w in feature.windows for _ in feature.aggregates]
        names = zip(feature.columns, windows, strict=True)
        found |= {column: f"{rest} {window}" for column, window in names}
    found |= {f.name: f.formula for f in schema.features.formulas}
    found |= {c: lookup.model_dump_json() for lookup in schema.lookups for c in lookup.columns}
    return {name: found[name] for name in schema.columns}
