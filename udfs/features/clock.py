"""Wall clocks of time zones, for arrays of epoch milliseconds."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS

Ints = npt.NDArray[np.int64]


@lru_cache(maxsize=65_536)
def _offset_ms(zone: str, minute: int) -> int:
    """A zone's offset from UTC: since 1973 every zone has changed it on a whole minute.

    Not on a quarter hour: Newfoundland's clocks changed at 00:01 until 2011.
    """
    moment = datetime.fromtimestamp(minute * 60, UTC).astimezone(ZoneInfo(zone))
    offset = moment.utcoffset()
    return round(offset.total_seconds() * 1_000) if offset else 0


@lru_cache(maxsize=4_096)
def _midnight_ms(zone: str, local_day: int) -> int:
    """When a day begins: the first moment of that date, where midnight itself may not exist."""
    wall = datetime.fromtimestamp(local_day * 86_400, UTC).replace(tzinfo=ZoneInfo(zone))
    return round(wall.timestamp() * 1_000)


def local_ms(times: Ints, zone: str) -> Ints:
    """Milliseconds since 1970 on the zone's own clock; int64 (n,)."""
    if zone == "UTC":
        return times
    return times + np.array([_offset_ms(zone, t // 60_000) for t in times.tolist()], np.int64)


def local_midnight(times: Ints, zone: str) -> Ints:
    """The beginning of the day that each moment lies in, epoch ms, int64 (n,)."""
    days = local_ms(times, zone) // DAY_MS
    if zone == "UTC":
        return days * DAY_MS
    return np.array([_midnight_ms(zone, day) for day in days.tolist()], np.int64)
