"""The JSON of an episode: its opening, its closing, and corrections of either."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import orjson

from udfs.alerting.episodes import Silence, Told
from udfs.alerting.hysteresis import NO_MOVER, Score
from udfs.alerting.timeline import Notice
from udfs.batches.records import SCHEMA_VERSION
from udfs.definition.episode import EpisodeSpec


class EpisodeWriter:
    """Writes what is told of episodes.

    ``alert_id`` names a record: it is the same after a failure and a replay, so that a reader of an
    at-least-once topic can drop repeats by it.

    Args:
        topic: The events topic, part of a prediction's id.
        spec: The episodes' declaration.
        hide: Makes what is shown of an entity that is sensitive; none: it is not.
    """

    def __init__(
        self, topic: str, spec: EpisodeSpec, hide: Callable[[str], str] | None = None
    ) -> None:
        self._hide = hide
        self._topic = topic
        self._field = spec.entity
        self._features = spec.features

    def record(self, told: Told, told_time_ms: int) -> tuple[str, bytes]:
        """Kafka key, which is the entity, and value."""
        of_kind = self._silence if isinstance(told.notice, Silence) else self._scores
        entity = told.entity if self._hide is None else self._hide(told.entity)
        own = of_kind(entity, told.notice)
        document = {
            "schema_version": SCHEMA_VERSION,
            "alert_id": f"{own['episode_id']}#{own['revision']}",
            **own,
            "entity": {"field": self._field, "value": entity},
            "last_scores": [[s.time_ms, s.value] for s in told.scores],
            "told_time_ms": told_time_ms,
        }
        return entity, orjson.dumps(document)

    def _silence(self, entity: str, silence: Any) -> dict[str, Any]:
        return {
            "episode_id": f"{entity}@{silence.start_ms}/silent",
            "kind": "silent",
            "state": silence.state,
            "revision": 1 if silence.end_ms is None else 2,
            "start_ms": silence.start_ms,
            "end_ms": silence.end_ms,
            "closed_by": None if silence.end_ms is None else "event",
        }

    def _scores(self, entity: str, notice: Any) -> dict[str, Any]:
        assert isinstance(notice, Notice)
        episode = notice.episode
        reasons = orjson.loads(episode.peak.reasons or b"[]")
        return {
            "episode_id": f"{entity}@{episode.start_ms}",
            "kind": "scores",
            "state": notice.state,
            "revision": notice.revision,
            "start_ms": episode.start_ms,
            "opened_ms": episode.opened_ms,
            "end_ms": None if episode.closed_ms is None else episode.last_above_ms,
            "closed_ms": episode.closed_ms,
            "closed_by": episode.closed_by,
            "events": episode.events,
            "peak": self._peak(episode.peak),
            "moved_most": self._moved(episode.mover, episode.moved, reasons),
            "reasons": reasons,
        }

    def _peak(self, peak: Score) -> dict[str, Any]:
        return {
            "score": peak.value,
            "threshold": peak.threshold,
            "event_time_ms": peak.time_ms,
            "prediction_id": f"{self._topic}-{peak.partition}-{peak.offset}",
        }

    def _moved(
        self, mover: int, value: float, reasons: Sequence[dict[str, Any]]
    ) -> dict[str, Any] | None:
        if mover != NO_MOVER:
            return {"feature": self._features[mover], "value": value}
        if reasons:
            return {name: reasons[0][name] for name in ("feature", "value")}
        return None
