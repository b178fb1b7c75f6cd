"""Features of one event alone, computed for a whole batch at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from udfs.batches.categories import codes_of
from udfs.batches.events import Events, FloatArray
from udfs.definition.expression import ExpressionFeature
from udfs.features.aggregate_kernels import EARTH_RADIUS_KM
from udfs.features.clock import DAY_MS, HOUR_MS, local_ms
from udfs.features.formulas import Kind, parse
from udfs.features.series import columns_of


def distance_km(
    lat1: FloatArray, lon1: FloatArray, lat2: FloatArray, lon2: FloatArray
) -> FloatArray:
    """Great-circle distances by the haversine formula; degrees to kilometres, NaN if unknown."""
    lat1, lon1, lat2, lon2 = (np.radians(a) for a in (lat1, lon1, lat2, lon2))
    square = (
        np.sin((lat2 - lat1) / 2) ** 2
        + np.cos(lat1) * np.cos(lat2) * np.sin((lon2 - lon1) / 2) ** 2
    )
    result: FloatArray = 2 * EARTH_RADIUS_KM * np.arcsin(np.sqrt(np.minimum(square, 1.0)))
    return result


def _value(spec: ExpressionFeature, events: Events) -> FloatArray:
    return events.numbers[spec.fields[0]]


def _distance(spec: ExpressionFeature, events: Events) -> FloatArray:
    return distance_km(*(events.numbers[name] for name in spec.fields))


def _hour(spec: ExpressionFeature, events: Events) -> FloatArray:
    return (local_ms(events.times, spec.timezone) % DAY_MS // HOUR_MS).astype(np.float64)


def _weekday(spec: ExpressionFeature, events: Events) -> FloatArray:
    """Monday is 0; the epoch began on a Thursday."""
    return ((local_ms(events.times, spec.timezone) // DAY_MS + 3) % 7).astype(np.float64)


def _one_hot(spec: ExpressionFeature, events: Events) -> FloatArray:
    column = np.array(events.texts[spec.fields[0]], dtype=object)
    result: FloatArray = np.empty((len(events), len(spec.categories)))
    for n, category in enumerate(spec.categories):
        result[:, n] = column == category
    return result


def _category(spec: ExpressionFeature, events: Events) -> FloatArray:
    """The text's code; what it becomes for the model is the preparation's, see there."""
    return codes_of(events.texts[spec.fields[0]])


_COMPUTE: dict[str, Callable[[ExpressionFeature, Events], FloatArray]] = {
    "value": _value,
    "distance_km": _distance,
    "hour_of_day": _hour,
    "day_of_week": _weekday,
    "one_hot": _one_hot,
    "category": _category,
}


def _column(spec: ExpressionFeature, events: Events, kinds: Mapping[str, Kind]) -> FloatArray:
    if spec.formula is not None:
        return parse(spec.formula, kinds).finite(columns_of(events), len(events))
    return _COMPUTE[spec.type](spec, events)


def evaluate(
    expressions: tuple[ExpressionFeature, ...],
    events: Events,
    kinds: Mapping[str, Kind] = MappingProxyType({}),
) -> FloatArray:
    """All expressions of a batch.

    Args:
        expressions: The expressions.
        events: The batch.
        kinds: What formulas may read, as ``series.kinds_of`` has it.

    Returns:
        float64 of shape (n, columns of all expressions); NaN where an input is missing.
    """
    columns = [_column(e, events, kinds).reshape(len(events), -1) for e in expressions]
    return np.concatenate(columns, axis=1) if columns else np.empty((len(events), 0))
