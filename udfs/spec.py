"""Events, labels and features together: what the job, the training and the tests all read.

The models of ``event_spec`` and ``feature_spec`` are the ``event``, ``labels`` and ``features``
sections of a file in ``conf/``. That all read the same objects keeps a live feature equal to a
training one.
"""

from __future__ import annotations

from collections.abc import Iterator

from udfs.event_spec import EventSpec, FieldSpec, LabelSpec, is_key
from udfs.feature_spec import ExpressionFeature, FeatureSpec, WindowFeature
from udfs.settings_types import Mistake, Strict


class Schema(Strict):
    """Events, labels and features together, checked against each other.

    Attributes:
        event: The schema of an event.
        key: The field that Kafka records and the first stage are keyed by.
        labels: The schema of a label, or none.
        features: The declared features.
    """

    event: EventSpec
    key: str
    labels: LabelSpec | None = None
    features: FeatureSpec

    @property
    def stages(self) -> tuple[str, ...]:
        """The keys of the keyed stages: the record key first, it also removes duplicates."""
        return (self.key, *(k for k in self.features.keys if k != self.key))

    @property
    def columns(self) -> tuple[str, ...]:
        """Every feature name in the order of the stages that make them: the model's order."""
        named = [c for e in self.features.expressions for c in e.columns]
        for key in self.stages:
            named += [c for w in self.features.of_key(key) for c in w.columns]
        return tuple(named)

    def horizon_ms(self, key: str, stream: str) -> int:
        """How long a stage must keep a stream's entries: its longest window and the lateness."""
        spans = [w.horizon_ms for w in self.features.of_key(key) if w.stream == stream]
        if key == self.key and stream == "events":
            spans.append(self.event.dedupe_within)
        return max(spans, default=0) + self.event.time.allowed_lateness

    def mistakes(self) -> Iterator[Mistake]:
        """See the base class."""
        yield from self.event.unfit(("key",), self.key, is_key, "a required string, as a key")
        for n, expression in enumerate(self.features.expressions):
            yield from self._expression_mistakes(n, expression)
        names, categories = self.columns, frozenset(self.features.categories)
        yield from self.features.preparation.unfit(names, categories)
        for n, window in enumerate(self.features.windows):
            path = ("features", "windows", n)
            key = (*path, "key")
            yield from self.event.unfit(key, window.key, is_key, "a required string, as a key")
            if window.stream == "labels":
                yield from self._label_window_mistakes(path, window)
            elif window.value is not None:
                value = (*path, "value")
                yield from self.event.unfit(value, window.value, _is_amount, "a required number")

    def _expression_mistakes(self, n: int, expression: ExpressionFeature) -> Iterator[Mistake]:
        is_text = expression.type in ("one_hot", "category")
        wanted = f"a {'string' if is_text else 'number'} for type {expression.type}"
        for i, name in enumerate(expression.fields):
            path = ("features", "expressions", n, "fields", i)
            yield from self.event.unfit(path, name, lambda f: f.is_numeric != is_text, wanted)

    def _label_window_mistakes(
        self, path: tuple[int | str, ...], window: WindowFeature
    ) -> Iterator[Mistake]:
        if self.labels is None:
            message = f"{window.prefix!r} reads labels, but there is no labels section"
            yield Mistake((*path, "stream"), message)
            return
        if window.key != self.labels.key:
            yield Mistake((*path, "key"), f"must be the labels' own key {self.labels.key!r}")
        elif window.key == self.key:
            message = "labels enter after the first stage; they cannot be kept by the record key"
            yield Mistake((*path, "key"), f"{message} {self.key!r}")
        if window.value not in (None, self.labels.value):
            yield Mistake((*path, "value"), f"must be the labels' value {self.labels.value!r}")


def _is_amount(field: FieldSpec) -> bool:
    return field.is_numeric and field.required
