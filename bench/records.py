"""The demo data as an endless history: repeated with shifted times and new ids."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from jobs.demo import data as demo_data

REPEAT_AFTER_MS = 75 * demo_data.DAY_MS
"""The demo data's length: a repetition begins where the last one ended."""

REPETITIONS_MAX = 64
"""History goes back from the demo data by as many repetitions, so that no time is in the future."""


def repeated(
    frame: pd.DataFrame, first: int, count: int, tag: str
) -> Iterator[tuple[bytes, bytes]]:
    """Records ``first`` to ``first + count - 1`` of the endless history: key and JSON.

    Args:
        frame: The demo's transactions, in time order.
        first: Number of the first one, from 0.
        count: How many.
        tag: The event ids are ``<tag>-<number from 0>``.

    Raises:
        ValueError: there are more than ``REPETITIONS_MAX`` repetitions.
    """
    number = 0
    while number < count:
        repetition, row = divmod(first + number, len(frame))
        part = frame.iloc[row : row + count - number].copy()
        part["event_time_ms"] += shift_ms(repetition)
        part["transaction_id"] = [f"{tag}-{number + n}" for n in range(len(part))]
        yield from demo_data.event_json(part)
        number += len(part)


def labels(frame: pd.DataFrame, count: int, tag: str) -> Iterator[tuple[bytes, bytes]]:
    """The labels of the first ``count`` records of ``repeated(frame, 0, ..., tag)``."""
    part = frame.iloc[:count].copy()
    part["event_time_ms"] += shift_ms(0)
    part["transaction_id"] = [f"{tag}-{n}" for n in range(len(part))]
    return demo_data.label_json(part)


def shift_ms(repetition: int) -> int:
    """What is added to the times of a repetition.

    Raises:
        ValueError: its events would lie after the demo data's.
    """
    if repetition >= REPETITIONS_MAX:
        raise ValueError(f"the demo data repeats {REPETITIONS_MAX} times at most")
    return (repetition + 1 - REPETITIONS_MAX) * REPEAT_AFTER_MS
