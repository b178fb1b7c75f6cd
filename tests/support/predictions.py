"""Predictions as a job writes them, made up."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

BEGIN_MS = 1_738_329_070_000


def predictions(
    count: int, features: Sequence[str], topic: str = "transactions", first: int = 0, seed: int = 1
) -> list[dict[str, Any]]:
    rng = random.Random(seed + first)
    made = []
    for n in range(first, first + count):
        time_ms = BEGIN_MS + n * 60_000
        made.append(
            {
                "schema_version": 1,
                "prediction_id": f"{topic}-{n % 3}-{n}",
                "event_id": f"t{n}",
                "key": f'c{n % 5} "quoted", é' if n % 5 == 3 else f"c{n % 5}",
                "score": rng.random(),
                "model": {"name": "fraud", "version": None if n % 7 == 0 else 3},
                "fallback_reason": "timeout" if n % 7 == 0 else None,
                "event_time_ms": time_ms,
                "ingest_time_ms": time_ms + 12,
                "scored_time_ms": time_ms + 30 + seed,
                "features": {f: None if rng.random() < 0.2 else rng.gauss(0, 9) for f in features},
                "order": {"card_id": n},
                "source": {"topic": topic, "partition": n % 3, "offset": n},
            }
            | ({"late": True} if n % 11 == 0 else {})
        )
    return made
