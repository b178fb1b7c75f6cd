"""Window features the slow way: lists, exact fractions, the definition of each aggregate."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from fractions import Fraction
from zoneinfo import ZoneInfo

import numpy as np

from udfs.definition.feature import WindowFeature
from udfs.definition.window import Window
from udfs.features.aggregates import parse_aggregate

NAN = math.nan
Value = float | str | tuple[float, float] | None


@dataclass(frozen=True)
class Entry:
    """An event of a key, with the feature's value: none if it has none."""

    time_ms: int
    value: Value


def inside(entries: Sequence[Entry], window: Window, at_ms: int) -> list[Entry]:
    """The entries of a window, oldest first; ``entries`` are in order."""
    if window.first is not None:
        oldest = [e for e in entries[: window.first] if e.time_ms <= at_ms]
        return [e for e in oldest if e.value is not None]
    low, high = bounds(window, at_ms)
    found = [e for e in entries if low < e.time_ms <= high]
    if window.session is not None:
        earlier = [e for e in entries if e.time_ms <= high]
        start = len(earlier) - 1
        while start > 0 and earlier[start].time_ms - earlier[start - 1].time_ms <= window.session:
            start -= 1
        found = [e for e in earlier[max(start, 0) :] if e.time_ms > low]
    found = [e for e in found if e.value is not None]
    return found[-window.events :] if window.events is not None else found


def bounds(window: Window, at_ms: int) -> tuple[int, int]:
    """After which time a window begins, and with which it ends."""
    if window.tumbling is not None:
        return at_ms - at_ms % window.tumbling - 1, at_ms
    if window.hopping is not None and window.every is not None:
        end = at_ms - at_ms % window.every - 1
        return end - window.hopping, end
    if window.day is not None:
        zone = ZoneInfo(window.day)
        moment = datetime.fromtimestamp(at_ms // 1_000, zone)
        midnight = moment.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
        assert at_ms / 1_000 - midnight.timestamp() < timedelta(hours=26).total_seconds()
        return round(midnight.timestamp()) * 1_000 - 1, at_ms
    if window.panes is not None:
        oldest_ms = at_ms - (window.sliding or 0) + 1
        return oldest_ms - oldest_ms % window.panes - 1, at_ms
    return at_ms - window.reach_ms, at_ms


def measure(
    feature: WindowFeature,
    window: Window,
    aggregate: str,
    entries: Sequence[Entry],
    own: Entry,
) -> float:
    """One column of one event; ``entries`` hold ``own``, the newest of its time."""
    at_ms = own.time_ms - feature.delay
    found = inside(entries, window, at_ms)
    name, number = parse_aggregate(aggregate)
    if window.half_life is not None:
        return decayed(name.name, found, at_ms, window.half_life)
    before = [e for e in found if e is not own]
    values = [e.value for e in found]
    match name.name:
        case "count":
            return len(found)
        case "since_first":
            return (own.time_ms - found[0].time_ms) / 1_000 if found else NAN
        case "since_previous":
            return (own.time_ms - before[-1].time_ms) / 1_000 if before else NAN
        case "distance_km" | "speed_kmh":
            if not before or own.value is None:
                return NAN
            distance = distance_km(before[-1].value, own.value)
            hours = (own.time_ms - before[-1].time_ms) / 3_600_000
            if name.name == "distance_km":
                return distance
            return distance / hours if hours else NAN
        case "distinct":
            return len(set(values))
        case "entropy":
            if not values:
                return NAN
            shares = [c / len(values) for c in Counter(values).values()]
            return max(0.0, -math.fsum(p * math.log(p) for p in shares))
        case "own_share":
            return values.count(own.value) / len(values) if values and own.value else NAN
        case "top<k>" if isinstance(next(iter(values), None), str):
            counts = sorted(Counter(values).values(), reverse=True)
            return counts[int(number) - 1] if len(counts) >= number else 0.0
        case "slope":
            return slope([e for e in found if e.value is not None])
        case "lag<k>":
            return before[-int(number)].value if len(before) >= number else NAN  # type: ignore[return-value]
        case "change":
            return own.value - before[-1].value if before and own.value is not None else NAN  # type: ignore[operator]
    if values and isinstance(values[0], str):  # top<k> of an empty window aside
        raise AssertionError(f"{aggregate} of texts")
    if not values and name.name == "top<k>":
        return 0.0 if feature.value == "kind" else NAN
    return of_numbers(name.name, number, [float(v) for v in values], own.value)  # type: ignore[arg-type]


def of_numbers(name: str, number: float, values: list[float], own: Value) -> float:
    """The aggregates of plain numbers."""
    exact = [Fraction(v) for v in values]
    if name == "sum":
        return float(sum(exact))
    if not values:
        return NAN
    mean = sum(exact) / len(exact)
    match name:
        case "mean":
            return float(mean)
        case "min":
            return min(values)
        case "max":
            return max(values)
        case "first":
            return values[0]
        case "last":
            return values[-1]
        case "p<q>":
            return float(np.percentile(values, number))
        case "top<k>":
            return sorted(values)[-int(number)] if len(values) >= number else NAN
        case "ratio_to_mean":
            return quotient(Fraction(own), mean) if own is not None and mean else NAN  # type: ignore[arg-type]
    if len(values) < 2:
        return NAN
    variance = sum((x - mean) ** 2 for x in exact) / (len(exact) - 1)
    if name == "variance":
        return float(variance)
    deviation = math.sqrt(variance)
    if name == "std":
        return deviation
    assert name == "zscore"
    return float(Fraction(own) - mean) / deviation if own is not None and deviation else NAN  # type: ignore[arg-type]


def slope(entries: list[Entry]) -> float:
    """By exact fractions: covariance of value and seconds over the variance of seconds."""
    seconds = [Fraction(e.time_ms, 1_000) for e in entries]
    values = [Fraction(e.value) for e in entries]  # type: ignore[arg-type]
    if len(set(seconds)) < 2:
        return NAN
    at, mean = sum(seconds) / len(seconds), sum(values) / len(values)
    together = sum((t - at) * (v - mean) for t, v in zip(seconds, values, strict=True))
    return float(together / sum((t - at) ** 2 for t in seconds))


def quotient(a: Fraction, b: Fraction) -> float:
    """Their quotient; NaN if no double holds it."""
    try:
        return float(a / b)
    except OverflowError:
        return NAN


def decayed(name: str, found: list[Entry], at_ms: int, half_life_ms: int) -> float:
    """Weights halve with each half-life of age."""
    weights = [0.5 ** ((at_ms - e.time_ms) / half_life_ms) for e in found]
    weight = math.fsum(weights)
    if name == "count":
        return weight
    total = math.fsum(w * e.value for w, e in zip(weights, found, strict=True))  # type: ignore[operator]
    if name == "sum":
        return total
    return total / weight if weight else NAN


def distance_km(a: Value, b: Value) -> float:
    """The haversine formula, on the IUGG's mean radius."""
    (lat1, lon1), (lat2, lon2) = ([math.radians(x) for x in p] for p in (a, b))  # type: ignore[union-attr]
    square = (
        math.sin((lat2 - lat1) / 2) ** 2
        + math.cos(lat1) * math.cos(lat2) * math.sin((lon2 - lon1) / 2) ** 2
    )
    return 2 * 6_371.0088 * math.asin(math.sqrt(min(1.0, square)))
