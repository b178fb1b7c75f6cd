"""A history that a job is to begin with: from a file, or from the topics as they are now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from jobs.enrichment import tables_of
from jobs.environment import NotReadyError
from jobs.features.columns import Entities, EventColumns, LabelColumns
from jobs.features.topics import KafkaReader, TopicError, event_columns, label_columns
from jobs.history_files import HistoryFileError, label_column, labels_in, read_frame
from jobs.settings import Settings
from jobs.starting import Position
from udfs.batches.events import Events
from udfs.enrichment.table_readers import TableError
from udfs.features.identities import Identities
from udfs.features.stage_inputs import StageInputs
from udfs.offline.bootstrap import Coded, PastEvents, PastLabels
from udfs.offline.history import HistoryError, Progress, history_of, labels_of


@dataclass(frozen=True, slots=True)
class Past:
    """What a job begins with.

    Attributes:
        events: Accepted events.
        labels: Their labels; none if no feature reads them.
        refused: Records the job would have refused.
        positions: By topic, where the job goes on.
    """

    events: PastEvents
    labels: PastLabels | None
    refused: int
    positions: dict[str, Position]


def reads_labels(settings: Settings) -> bool:
    """Whether a feature reads labels."""
    return any(w.stream == "labels" for w in settings.features.windows)


def refuse_rollup(settings: Settings) -> None:
    """A roll-up's open windows are state too, which is not made.

    Raises:
        NotReadyError: the job has one.
    """
    if settings.rollup is not None:
        raise NotReadyError("a job with a rollup has no bootstrap", "let it read its topic instead")


def of_file(settings: Settings, data: Path, until_ms: int | None, progress: Progress) -> Past:
    """A file's events and labels.

    The job goes on at the allowed lateness before the newest event, with labels from the oldest
    event on: what is in a topic and in the history too is known by its id.

    Args:
        settings: The job's.
        data: A ``.parquet``, ``.csv`` or ``.jsonl`` file.
        until_ms: Later events are left out, epoch ms; none takes all.
        progress: Shown meanwhile.

    Raises:
        NotReadyError: the file cannot be used, or has no event.
    """
    refuse_rollup(settings)
    schema = settings.schema_
    frame = read_frame(data, schema)
    label = label_column(settings)
    needs_label = reads_labels(settings)
    values = labels_in(settings, frame) if needs_label and label in frame else None
    try:
        history = history_of(schema, frame, progress, tables_of(settings))
    except HistoryError as exc:
        raise HistoryFileError(str(exc), "correct the data, or the event section") from exc
    except TableError as exc:
        raise NotReadyError(str(exc), "make the table's topic or file, then try again") from exc
    events, rows = history.events, history.table_rows
    if until_ms is not None:
        chosen = np.flatnonzero(events.times <= until_ms)
        events, rows = events.select(chosen), rows[chosen]
    if not len(events):
        raise HistoryFileError(f"{data} has no event that early", "name another --until")
    labels = None if values is None else labels_of(schema, events, values[rows])
    past = None
    if labels is not None:
        identities = Identities.of_labels(labels.ids, labels.values)
        past = PastLabels(_coded(labels.entities), labels.times, labels.values, identities)
    resume_ms = int(events.times.max()) - schema.event.time.allowed_lateness
    positions = {settings.topics.events: Position(time_ms=resume_ms)}
    if needs_label and settings.topics.labels is not None:
        # All labels of the history's events: one that the file has changes nothing.
        positions[settings.topics.labels] = Position(time_ms=int(events.times.min()))
    return Past(_past(settings, events), past, len(history.rejects), positions)


def _past(settings: Settings, events: Events) -> PastEvents:
    schema = settings.schema_
    inputs = StageInputs(schema)
    of_stage = {schema.key: events.texts[schema.key]} | inputs.entities(events)
    return PastEvents(
        events.times,
        {stage: _coded(names) for stage, names in of_stage.items()},
        inputs.values(events),
        Identities.without_content(events.texts[schema.event.id]),
    )


def _coded(names: list[str]) -> Coded:
    codes, distinct = pd.factorize(np.array(names, object))
    return Coded(codes.astype(np.int64), distinct.tolist())


def of_topics(settings: Settings, properties: Mapping[str, str], progress: Progress) -> Past:
    """All that the events topic and the labels topic hold now; the job goes on right after it.

    Args:
        settings: The job's.
        properties: Further properties of librdkafka.
        progress: Shown meanwhile.

    Raises:
        NotReadyError: a topic cannot be read, or has no event.
    """
    refuse_rollup(settings)
    kafka = settings.kafka
    login = kafka.python_properties() | dict(properties)
    reader = KafkaReader(kafka.bootstrap_servers, login, progress)
    labels, opened = None, tables_of(settings).open()
    try:
        events = event_columns(settings.schema_, reader, settings.topics.events, opened.join)
        if reads_labels(settings) and settings.topics.labels is not None:
            labels = label_columns(settings.schema_, reader, settings.topics.labels)
    except TopicError as exc:
        raise NotReadyError(str(exc), "then try again") from exc
    except TableError as exc:
        raise NotReadyError(str(exc), "make the table's topic or file, then try again") from exc
    finally:
        opened.close()
    if not len(events):
        raise NotReadyError(f"{settings.topics.events} holds no event", "start the job without it")
    positions = {
        topic: Position({n: r.end for n, r in ranges.items()})
        for topic, ranges in reader.ranges.items()
    }
    return Past(_of_columns(events), _of_labels(labels), len(events.refused), positions)


def _of_columns(events: EventColumns) -> PastEvents:
    return PastEvents(
        events.times,
        {stage: _of_entities(entities) for stage, entities in events.entities.items()},
        events.values,
        events.identities,
    )


def _of_entities(entities: Entities) -> Coded:
    return Coded(entities.codes.astype(np.int64), entities.names)


def _of_labels(labels: LabelColumns | None) -> PastLabels | None:
    if labels is None:
        return None
    arrival = np.lexsort((labels.positions[:, 1], labels.positions[:, 2]))
    coded = _of_entities(labels.entities)
    return PastLabels(
        Coded(coded.codes[arrival], coded.names),
        labels.times[arrival],
        labels.values[arrival],
        labels.identities.select(arrival),
    )
