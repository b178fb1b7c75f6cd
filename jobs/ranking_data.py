"""What a ranking model is trained on: logs of purchases, and labelled examples of the feedback."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd

from jobs.demo import retail
from jobs.features.topics import KafkaReader, TopicError
from jobs.history_files import HistoryFileError, read_frame
from jobs.settings import Settings
from udfs.ranking.examples import Examples, Progress
from udfs.ranking.features import FEATURES
from udfs.ranking.log import PurchaseLog, log_of

__all__ = ["TrainingData", "examples_of", "load"]

_NEEDED = ("user", "item", "event_time_ms")


@dataclass(frozen=True)
class TrainingData:
    """What to train on.

    Attributes:
        log: Purchases.
        source: What they are, for reports.
        feedback: Labelled examples of what was shown; none if there are none.
    """

    log: PurchaseLog
    source: str
    feedback: Examples | None = None


def load(
    settings: Settings, data: Path | None, from_topics: bool, progress: Progress
) -> TrainingData:
    """Read purchases and feedback.

    Args:
        settings: A ranking job's.
        data: A .parquet, .csv or .jsonl with ``user``, ``item``, ``event_time_ms`` (epoch) and, if
            known, ``price``, ``category`` and ``kind``; of the latter those in ``ranking.weights``
            are taken, as in a dump of the events topic.
        from_topics: Whether the events topic's purchases and the examples topic are read, too.
        progress: Shown while topics are read.

    Raises:
        HistoryFileError: A file or topic cannot be read, or has no purchase.
    """
    if data is None and not from_topics:
        return _demo()
    frames, sources = list[pd.DataFrame](), list[str]()
    if data is not None:
        frames.append(read_frame(data, settings.schema_))
        sources.append(str(data))
    feedback = None
    if from_topics:
        topics = settings.topics
        frames.append(pd.DataFrame(_documents(settings, topics.events, progress)))
        assert topics.examples is not None  # a ranking job's settings name it
        feedback = examples_of(_documents(settings, topics.examples, progress))
        sources.append(f"topics {topics.events} and {topics.examples}")
    frame = pd.concat([_purchases(settings, one) for one in frames], ignore_index=True)
    if frame.empty:
        raise HistoryFileError(
            f"no purchase in {' and '.join(sources)}",
            f"each needs {', '.join(_NEEDED)}, and a kind of ranking.weights if there is one",
        )
    return TrainingData(_log_of(frame), " and ".join(sources), feedback)


def _demo() -> TrainingData:
    """Online Retail if it lies beside the repository, else a synthetic log, labelled so."""
    path = retail.retail_file()
    if path is None:
        return TrainingData(retail.synthetic(), "synthetic: Online Retail is not there")
    return TrainingData(retail.read(path), "Online Retail")


def _purchases(settings: Settings, frame: pd.DataFrame) -> pd.DataFrame:
    """The rows that are purchases; a row that came twice counts once."""
    missing = [name for name in _NEEDED if name not in frame]
    if missing and len(frame):
        raise HistoryFileError(
            f"no column {missing[0]!r} of purchases", f"each row needs {', '.join(_NEEDED)}"
        )
    frame = frame.reindex(columns=[*_NEEDED, "kind", "price", "category"])
    assert settings.ranking is not None
    kinds = frame["kind"].isna() | frame["kind"].isin(settings.ranking.weights)
    known = frame[[*_NEEDED]].notna().all(axis=1)
    return frame[kinds & known].drop_duplicates(list(_NEEDED))


def _log_of(frame: pd.DataFrame) -> PurchaseLog:
    items = frame["item"].astype(str)
    named = frame["category"].notna()
    categories = frame["category"][named].astype(str).tolist()
    return log_of(
        frame["user"].astype(str).to_numpy(str),
        items.to_numpy(str),
        frame["event_time_ms"].to_numpy(np.int64),
        frame["price"].to_numpy(np.float32),
        dict(zip(items[named].tolist(), categories, strict=True)),
    )


def _documents(settings: Settings, topic: str, progress: Progress) -> Iterator[dict[str, Any]]:
    kafka = settings.kafka
    reader = KafkaReader(kafka.bootstrap_servers, kafka.python_properties(), progress)
    try:
        for chunk in reader.read(topic):
            for message in chunk:
                yield from _document(message.value())
    except TopicError as exc:
        raise HistoryFileError(str(exc), "see kafka and topics in the settings") from exc


def _document(raw: bytes | None) -> Iterator[dict[str, Any]]:
    """A record's object; what is none became a dead letter in the job."""
    try:
        document = orjson.loads(raw or b"null")
    except ValueError:
        return
    if isinstance(document, dict):
        yield document


def examples_of(documents: Iterable[dict[str, Any]]) -> Examples:
    """Examples of the feedback join as rows to train on.

    A request that is there twice counts once; a feature that an example does not have is missing.
    An interaction that came after its request's example sets the label that it would have set. A
    request with no label says nothing of its items' order and is left out, as in a log.
    """
    found, late = dict[str, dict[str, Any]](), set[tuple[str, str]]()
    for document in documents:
        if document.get("kind") == "example":
            found.setdefault(document["example_id"], document)
        elif document.get("kind") == "late":
            late.add((document["request_id"], document["item"]))
    features, labels, requests = list[list[float | None]](), list[float](), 0
    for request_id, document in found.items():
        own = [max(one["label"], (request_id, one["item"]) in late) for one in document["items"]]
        if not any(own):
            continue
        places = {name: n for n, name in enumerate(document["columns"])}
        order = [places.get(name) for name in FEATURES]
        for one in document["items"]:
            row = one["features"]
            features.append([None if n is None else row[n] for n in order])
        labels += own
        requests += 1
    matrix = np.array(features, np.float64).reshape(-1, len(FEATURES)).astype(np.float32)
    return Examples(matrix, np.array(labels, np.float32), requests)
