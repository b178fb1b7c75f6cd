"""Events, labels and features together: what the job, the training and the tests all read.

The models of ``event_spec`` and ``feature_spec`` are the ``event``, ``labels`` and ``features``
sections of a file in ``conf/``. That all read the same objects keeps a live feature equal to a
training one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from udfs.definition.enrichment import LookupSpec, TableSpec, mistakes_of, with_tables
from udfs.definition.event import EventSpec, LabelSpec, is_key
from udfs.definition.expression import ExpressionFeature
from udfs.definition.feature import FeatureSpec, WindowFeature
from udfs.definition.privacy import PrivacySpec, privacy_mistakes
from udfs.definition.readable import unreadable
from udfs.definition.rollup import RollupSpec
from udfs.definition.types import Mistake, Strict, format_duration
from udfs.definition.window import Window
from udfs.features.aggregates import Reads, parse_aggregate
from udfs.features.formulas import FormulaError, Kind, parse
from udfs.features.series import kinds_of

Path = tuple[int | str, ...]


class Schema(Strict):
    """Events, labels and features together, checked against each other.

    Attributes:
        event: The schema of an event.
        key: The field that Kafka records and the first stage are keyed by.
        labels: The schema of a label, or none.
        features: The declared features.
        tables: Reference tables, whose fields events get.
        lookups: Stores that are asked for features while a batch is scored.
        privacy: How sensitive fields are hidden in outputs.
        rollup: The windows of readings that become events, or none.
        readings: With a roll-up, the schema of what arrives; ``event`` is a window's then.
    """

    event: EventSpec
    key: str
    labels: LabelSpec | None = None
    features: FeatureSpec
    tables: tuple[TableSpec, ...] = ()
    lookups: tuple[LookupSpec, ...] = ()
    privacy: PrivacySpec | None = None
    rollup: RollupSpec | None = None
    readings: EventSpec | None = None

    @classmethod
    def parts(cls, sections: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of a schema, of the sections of a file; a roll-up makes another event."""
        parts = {name: sections[name] for name in cls.model_fields if name in sections}
        rollup: RollupSpec | None = parts.get("rollup")
        if rollup is not None:
            parts["readings"] = parts["event"]
            parts["event"] = rollup.event_of(parts["event"], parts["key"])
        return parts

    @property
    def arriving(self) -> EventSpec:
        """The schema of the records that arrive: readings, or the events themselves."""
        return self.readings or self.event

    @property
    def arriving_keys(self) -> tuple[str, ...]:
        """The fields of arriving records that become keys."""
        kept = self.rollup.keep if self.rollup is not None else self.key_fields
        return tuple(dict.fromkeys((self.key, *kept)))

    @property
    def known(self) -> EventSpec:
        """The event with the fields that the tables add."""
        return with_tables(self.event, self.tables)

    @property
    def stages(self) -> tuple[str, ...]:
        """The names of the keyed stages: the record key first, it also removes duplicates."""
        return (self.key, *(s for s in self.features.stages if s != self.key))

    def fields_of(self, stage: str) -> tuple[str, ...]:
        """The key fields of a stage."""
        return self.features.stages.get(stage, (stage,))

    @property
    def key_fields(self) -> tuple[str, ...]:
        """The fields of all stages' keys."""
        return tuple(dict.fromkeys(f for stage in self.stages for f in self.fields_of(stage)))

    @property
    def stage_columns(self) -> tuple[str, ...]:
        """The names of what expressions and stages make, in the order in which they are made."""
        named = [c for e in self.features.expressions for c in e.columns]
        for stage in self.stages:
            named += [c for w in self.features.of_stage(stage) for c in w.columns]
        return tuple(named)

    @property
    def columns(self) -> tuple[str, ...]:
        """Every feature name in the order in which they are made, look-ups last: the model's."""
        formulas = (f.name for f in self.features.formulas)
        return (*self.stage_columns, *formulas, *self.lookup_columns)

    @property
    def lookup_columns(self) -> tuple[str, ...]:
        """The names of the features that look-ups bring."""
        return tuple(column for lookup in self.lookups for column in lookup.columns)

    def horizon_ms(self, stage: str, stream: str) -> int:
        """How long a history is kept, in event time: the longest window, late events included."""
        windows = self.features.of_stage(stage)
        return self._kept_ms(stage, stream, [w.horizon_ms for w in windows if w.stream == stream])

    def exact_ms(self, stage: str) -> int:
        """How long single events are kept; older ones are merged if windows have panes."""
        windows = self.features.of_stage(stage)
        return self._kept_ms(stage, "events", [w.exact_ms for w in windows if w.stream == "events"])

    def _kept_ms(self, stage: str, stream: str, spans: list[int]) -> int:
        dedupe = self.event.dedupe_within if stage == self.key and stream == "events" else 0
        return max([dedupe, *spans]) + self.event.time.allowed_lateness

    def mistakes(self) -> Iterator[Mistake]:
        """See the base class."""
        yield from self.arriving.unfit(("key",), self.key, is_key, "a required string, as a key")
        if self.rollup is not None and self.labels is not None:
            message = "a roll-up has no late labels: label the history, see training.label"
            yield Mistake(("labels",), message)
        for n, expression in enumerate(self.features.expressions):
            yield from self._expression_mistakes(n, expression)
        names, categories = self.columns, frozenset(self.features.categories)
        yield from self.features.preparation.unfit(names, categories)
        for n, window in enumerate(self.features.windows):
            path: Path = ("features", "windows", n)
            for i, name in enumerate(window.key):
                key = (*path, "key") if len(window.key) == 1 else (*path, "key", i)
                yield from self.event.unfit(key, name, is_key, "a required string, as a key")
            if window.stream == "labels":
                yield from self._label_window_mistakes(path, window)
            else:
                yield from self._value_mistakes(path, window)
        yield from self._pane_mistakes()
        yield from self._formula_mistakes()
        yield from mistakes_of(self.event, self.tables, self.lookups, self.columns)
        named, expressions = (self.arriving.id, self.key), self.features.expressions
        read = self._read
        if self.rollup is not None:
            read |= self.rollup.read(self.arriving)
        yield from privacy_mistakes(self.arriving, self.privacy, named, expressions, read)

    @property
    def _read(self) -> frozenset[str]:
        """Fields whose values features are computed from, as far as formulas can be read."""
        kinds = kinds_of(self.known)
        names = {f for e in self.features.expressions for f in e.fields}
        texts = [e.formula for e in self.features.expressions]
        texts += [f.formula for f in self.features.formulas]
        for window in self.features.windows:
            values = window.value if isinstance(window.value, tuple) else (window.value,)
            texts += [window.where, *values]
        for text in filter(None, texts):
            with suppress(FormulaError):
                names.update(parse(text, {**kinds, **self.formula_kinds}).names)
        return frozenset(names)

    def _expression_mistakes(self, n: int, expression: ExpressionFeature) -> Iterator[Mistake]:
        path: Path = ("features", "expressions", n)
        is_text = expression.type in ("one_hot", "category")
        wanted = f"a {'string' if is_text else 'number'} for type {expression.type}"
        for i, name in enumerate(expression.fields):
            at = (*path, "fields", i)
            yield from self.known.unfit(at, name, lambda f: f.is_numeric != is_text, wanted)
        if expression.formula is not None:
            yield from unreadable((*path, "formula"), expression.formula, kinds_of(self.known))

    def _value_mistakes(self, path: Path, window: WindowFeature) -> Iterator[Mistake]:
        kinds = kinds_of(self.known)
        if window.where is not None:
            yield from unreadable((*path, "where"), window.where, kinds, "truth")
        if isinstance(window.value, tuple):
            for i, name in enumerate(window.value):
                at = (*path, "value", i)
                yield from self.known.unfit(at, name, lambda f: f.is_numeric, "a number")
        elif window.value is not None and kinds.get(window.value) == "text":
            yield from _unfit_category(path, window)
        elif window.value is not None:
            yield from unreadable((*path, "value"), window.value, kinds)
            for i, name in enumerate(window.aggregates):
                if _reads(name) == "category":
                    message = f"{name} needs a string field, {window.value!r} is a number"
                    yield Mistake((*path, "aggregates", i), message)

    def _label_window_mistakes(self, path: Path, window: WindowFeature) -> Iterator[Mistake]:
        if self.labels is None:
            message = f"{window.prefix!r} reads labels, but there is no labels section"
            yield Mistake((*path, "stream"), message)
            return
        if window.key != (self.labels.key,):
            yield Mistake((*path, "key"), f"must be the labels' own key {self.labels.key!r}")
        elif window.key == (self.key,):
            message = "labels enter after the first stage; they cannot be kept by the record key"
            yield Mistake((*path, "key"), f"{message} {self.key!r}")
        if window.value not in (None, self.labels.value):
            yield Mistake((*path, "value"), f"must be the labels' value {self.labels.value!r}")
        if window.where is not None:
            message = "a label has no other fields: filter events, or drop where"
            yield Mistake((*path, "where"), message)

    def _pane_mistakes(self) -> Iterator[Mistake]:
        """A key has panes of one size, and they must save something."""
        chosen: dict[str, Window] = {}
        for n, feature in enumerate(self.features.windows):
            kept_ms = self.exact_ms(feature.stage)
            for i, window in enumerate(feature.windows):
                if window.panes is None:
                    continue
                path: Path = ("features", "windows", n, "windows", i, "panes")
                first = chosen.setdefault(feature.stage, window)
                if (window.panes, window.pane_error) != (first.panes, first.pane_error):
                    yield Mistake(
                        path, f"all windows of key {feature.stage} need the same panes and error"
                    )
                if kept_ms >= window.reach_ms + feature.delay:
                    kept = f"keep each event of key {feature.stage} for {format_duration(kept_ms)}"
                    message = "panes save nothing: dedupe_within, or windows without panes,"
                    yield Mistake(path, f"{message} {kept}")

    def _formula_mistakes(self) -> Iterator[Mistake]:
        kinds = self.formula_kinds
        for n, feature in enumerate(self.features.formulas):
            path = ("features", "formulas", n, "formula")
            yield from unreadable(path, feature.formula, kinds)
            kinds = {**kinds, feature.name: "number"}

    @property
    def formula_kinds(self) -> dict[str, Kind]:
        """What a formula over features may read: numeric fields, and features, which hide them."""
        fields = {n: k for n, k in kinds_of(self.known).items() if k != "text"}
        return {**fields, **dict.fromkeys(self.stage_columns, "number")}


def _reads(aggregate: str) -> Reads:
    return parse_aggregate(aggregate).aggregate.reads


def _unfit_category(path: Path, window: WindowFeature) -> Iterator[Mistake]:
    for i, name in enumerate(window.aggregates):
        if _reads(name) == "number":
            message = f"{name} needs a number, {window.value!r} is a string field"
            yield Mistake((*path, "aggregates", i), message)
