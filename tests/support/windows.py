"""Windows that a job wrote against the roll-up of the table of what was sent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
import pandas as pd

from jobs.settings import Settings
from tests.support.kafka import Out
from udfs.offline.offline import features_of, history_of

TOLERANCE = 1e-9


class Recomputed:
    """All windows of a table of readings, in the rows' order.

    Attributes:
        windows: By id, as a prediction shows it.
        features: By id, float64 (columns,).
        codes: How many readings are refused, by the dead letter's code.
        duplicates: How many are repeats.

    Args:
        settings: The job's.
        frame: The readings in their order of arrival.
    """

    def __init__(self, settings: Settings, frame: pd.DataFrame) -> None:
        history = history_of(settings.schema_, frame, order="arrival")
        features = features_of(settings.schema_, history.events)
        ids = history.events.texts["window"]
        raw = zip(ids, history.events.raw, strict=True)
        self.windows: dict[str, dict[str, Any]] = {i: orjson.loads(window) for i, window in raw}
        rows = [ids[row] for row in features.rows.tolist()]
        self.features = dict(zip(rows, features.features, strict=True))
        self.codes = Counter(reject.code for reject in history.rejects)
        self.duplicates = history.duplicates

    def check(self, outs: Sequence[Out]) -> None:
        """Each prediction has its window's fields and features; how it closed is not looked at."""
        for out in outs:
            found = out.document["window"]
            expected = self.windows[out.document["event_id"]]
            assert found.keys() == expected.keys()
            for name in expected.keys() - {"closed_by"}:
                assert_close(found[name], expected[name], f"{found['window']} {name}")
            values = [np.nan if v is None else v for v in out.document["features"].values()]
            wanted = self.features[out.document["event_id"]]
            np.testing.assert_allclose(values, wanted, rtol=TOLERANCE, atol=TOLERANCE)


def assert_close(found: Any, expected: Any, what: str) -> None:
    if isinstance(expected, float) and found is not None:
        np.testing.assert_allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE, err_msg=what)
    else:
        assert found == expected, what
