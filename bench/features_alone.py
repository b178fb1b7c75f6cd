"""Our job without a model: each event's features are written as they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pyflink.common import Row
from pyflink.datastream import FlatMapFunction

from udfs.records import Verdict
from udfs.scoring import Output


class FeaturesAlone(FlatMapFunction):
    """Stands where ``EmbeddedScorer`` does; the score of every record is the fallback score.

    The record is a whole prediction otherwise, as that of the stock job without scoring.
    """

    def __init__(self, version_dir: Path, model_name: str, output: Output) -> None:
        self._model_name = model_name
        self._output = output

    def flat_map(self, value: Any) -> Iterator[Row]:
        """One micro-batch."""
        batch = value[1]
        scores = np.full(len(batch), self._output.fallback_score)
        verdict = Verdict(scores, self._model_name, None) if len(batch) else None
        yield self._output.rows(batch, verdict, None)
