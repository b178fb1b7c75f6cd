"""The aggregates that a window can have: their names, what they read, what they cost.

One table for the settings' check, the compiled loops and the documentation. An event *has* a value
if the value is not missing and the feature's ``where`` holds; an aggregate sees only those events
of its window that have one. ``own`` is the value of the event that is being scored.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

Reads = Literal["anything", "number", "category", "number or category", "point"]

(
    COUNT,
    SUM,
    MEAN,
    VARIANCE,
    STD,
    MIN,
    MAX,
    RATIO_TO_MEAN,
    ZSCORE,
    FIRST,
    LAST,
    LAG,
    CHANGE,
    SINCE_PREVIOUS,
    SINCE_FIRST,
    DISTINCT,
    ENTROPY,
    TOP,
    OWN_SHARE,
    QUANTILE,
    DISTANCE_KM,
    SPEED_KMH,
    SLOPE,
) = range(23)

LOG = "O(log n)"
SCAN = "O(n)"
ROUNDED = "the last bit of a double"
EXACT = "none"


class Aggregate(NamedTuple):
    """An aggregate that a feature may name.

    Attributes:
        code: What the compiled loops call it.
        name: As it is written in ``conf/``; ``<k>`` stands for a whole number from 1, ``<q>`` for a
            percentage.
        reads: What kind of value it needs.
        meaning: One line, with the unit and what an empty window gives.
        cost: Of one event, where n is the number of events in the window.
        error: Its largest, beside the exact result.
        of_own: Whether it compares the event itself, which a label window has none of.
    """

    code: int
    name: str
    reads: Reads
    meaning: str
    cost: str = LOG
    error: str = ROUNDED
    of_own: bool = False


AGGREGATES = (
    Aggregate(COUNT, "count", "anything", "events that have the value; 0 if none", error=EXACT),
    Aggregate(SUM, "sum", "number", "their sum; 0 if none"),
    Aggregate(MEAN, "mean", "number", "their mean; missing if none"),
    Aggregate(VARIANCE, "variance", "number", "sample variance; missing below 2 events"),
    Aggregate(STD, "std", "number", "sample standard deviation; missing below 2 events"),
    Aggregate(MIN, "min", "number", "the smallest; missing if none", error=EXACT),
    Aggregate(MAX, "max", "number", "the largest; missing if none", error=EXACT),
    Aggregate(
        RATIO_TO_MEAN, "ratio_to_mean", "number", "own over the mean; missing at 0", of_own=True
    ),
    Aggregate(
        ZSCORE, "zscore", "number", "(own - mean) / std; missing where std is 0", of_own=True
    ),
    Aggregate(FIRST, "first", "number", "the oldest; missing if none", error=EXACT),
    Aggregate(LAST, "last", "number", "the newest, own included; missing if none", error=EXACT),
    Aggregate(LAG, "lag<k>", "number", "the k-th newest before the event", error=EXACT),
    Aggregate(CHANGE, "change", "number", "own - lag1", of_own=True),
    Aggregate(
        SINCE_PREVIOUS, "since_previous", "anything", "seconds since the event of lag1", error=EXACT
    ),
    Aggregate(SINCE_FIRST, "since_first", "anything", "seconds since the oldest", error=EXACT),
    Aggregate(DISTINCT, "distinct", "number or category", "how many different values", SCAN, EXACT),
    Aggregate(ENTROPY, "entropy", "number or category", "Shannon's, of the values, in nats", SCAN),
    Aggregate(
        TOP,
        "top<k>",
        "number or category",
        "the k-th largest number; of a category, how often the k-th most frequent comes",
        SCAN,
        EXACT,
    ),
    Aggregate(
        OWN_SHARE, "own_share", "category", "the part of events with own's value", SCAN, of_own=True
    ),
    Aggregate(
        SLOPE,
        "slope",
        "number",
        "least-squares line's rise per second of event time; missing below 2 different times",
        SCAN,
    ),
    Aggregate(QUANTILE, "p<q>", "number", "the q-th percentile, linear between two values", SCAN),
    Aggregate(
        DISTANCE_KM, "distance_km", "point", "great circle to the point of lag1", of_own=True
    ),
    Aggregate(
        SPEED_KMH,
        "speed_kmh",
        "point",
        "that distance over the time since; missing if no time passed",
        of_own=True,
    ),
)


def markdown() -> str:
    """The aggregates as a table in Markdown."""
    lines = ["| aggregate | of | meaning | cost | error |", "|---|---|---|---|---|"]
    for a in AGGREGATES:
        reads = "" if a.reads == "anything" else a.reads
        lines.append(f"| `{a.name}` | {reads} | {a.meaning} | {a.cost} | {a.error} |")
    return "\n".join(lines) + "\n"


OF_A_WINDOW = frozenset(
    (
        COUNT,
        SUM,
        MEAN,
        VARIANCE,
        STD,
        MIN,
        MAX,
        FIRST,
        LAST,
        DISTINCT,
        ENTROPY,
        TOP,
        SLOPE,
        QUANTILE,
    )
)
"""What says something of a window by itself: what a roll-up can have."""

OF_EVENTS_BEFORE = frozenset((LAG, CHANGE, SINCE_PREVIOUS, DISTANCE_KM, SPEED_KMH))
"""What looks at the event before; a ``first`` window, which stands still, has none of them."""

DECAYED = frozenset((COUNT, SUM, MEAN))
"""What a ``half_life`` window can have; it counts an event with 0.5 ** (age / half-life)."""

_NUMBERS = {"<k>": r"([1-9]\d{0,2})", "<q>": r"(\d{1,2}(?:\.\d+)?|100)"}


def _pattern(name: str) -> re.Pattern[str]:
    for written, matched in _NUMBERS.items():
        name = name.replace(written, matched)
    return re.compile(name)


_PATTERNS = tuple((aggregate, _pattern(aggregate.name)) for aggregate in AGGREGATES)


class Named(NamedTuple):
    """An aggregate as a feature names it, e.g. ``p95``.

    Attributes:
        aggregate: Which.
        number: Its ``k`` or ``q``; 0 where it has none.
    """

    aggregate: Aggregate
    number: float


def parse_aggregate(name: str) -> Named:
    """The aggregate of a name like ``std``, ``lag3`` or ``p99.9``.

    Raises:
        ValueError: there is none; the text lists what there is.
    """
    for aggregate, pattern in _PATTERNS:
        if match := pattern.fullmatch(name):
            return Named(aggregate, float(match[1]) if pattern.groups else 0.0)
    known = ", ".join(a.name for a in AGGREGATES)
    raise ValueError(f"no aggregate {name!r}; there are {known}")
