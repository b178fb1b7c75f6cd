"""`streamscore features backfill`: a history's features as a Parquet file, one row an event.

The file is written beside its place and renamed: whoever looks finds all of it or none.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.enrichment import tables_of
from jobs.environment import NotReadyError
from jobs.history_files import HistoryFileError, label_column, labels_in, read_frame
from jobs.settings import Settings
from udfs.batches.events import FloatArray
from udfs.enrichment.table_readers import TableError
from udfs.offline.history import History, HistoryError, Progress, history_of, labels_of, silent
from udfs.offline.offline import OfflineFeatures, Order, features_of

METADATA_KEY = b"streamscore"
"""Of the file's metadata: what ``Backfilled.metadata`` holds, as JSON."""

Precision = Literal["float64", "float32"]
_GROUP_ROWS = 131_072


@dataclass(frozen=True, slots=True)
class Backfilled:
    """A training set that was written.

    Attributes:
        path: The file.
        metadata: ``config_hash``, ``order``, and how many rows of the history became what:
            ``history``, ``rows``, ``refused`` (by reason), ``duplicates``, ``conflicts``, ``late``.
        features: How many feature columns it has.
        seconds: What it took, reading and writing included.
    """

    path: Path
    metadata: dict[str, Any]
    features: int
    seconds: float


def backfill(
    settings: Settings,
    data: Path,
    out: Path,
    order: Order = "time",
    precision: Precision = "float64",
    progress: Progress = silent,
) -> Backfilled:
    """Compute the features of a history as the job would, and write them.

    The file has the id, the event time in UTC, the key fields, the label if the history has it, and
    all features; an event a row, in the order of the history. Without duplicates and refused rows.

    Args:
        settings: The job's settings.
        data: A ``.parquet``, ``.csv`` or ``.jsonl`` file.
        out: A ``.parquet`` file; one that is there is replaced.
        order: As if each event had arrived at its own time, or in the order of the history.
        precision: Of the features.
        progress: Shown while it goes on.

    Raises:
        NotReadyError: a file cannot be read or written, or a column is missing or wrong.
    """
    start = time.monotonic()
    _refuse(settings, data, out)
    label = label_column(settings)
    progress("Reading", 0.0)
    fields = [f.name for f in settings.schema_.arriving.fields]
    wanted = [*fields, *settings.schema_.lookup_columns, label or ""]
    frame = read_frame(data, settings.schema_, wanted)
    labels = labels_in(settings, frame) if _needs_label(settings) or label in frame else None
    try:
        history = history_of(settings.schema_, frame, progress, tables_of(settings), order)
        computed = _computed(settings, history, labels, order, progress)
    except HistoryError as exc:
        raise HistoryFileError(
            str(exc), "correct the data, or the settings' event section"
        ) from exc
    except TableError as exc:
        raise NotReadyError(str(exc), "make the table's topic or file, then try again") from exc
    metadata = {
        "config_hash": settings.features_hash,
        "order": order,
        "history": len(frame),
        "rows": len(computed.rows),
        "refused": Counter(reject.code for reject in history.rejects),
        "duplicates": computed.duplicates + history.duplicates,
        "conflicts": computed.conflicts,
        "late": computed.late,
    }
    del frame
    _write(out, _Rows(settings, history, labels, computed, precision), metadata, progress)
    columns = len(settings.schema_.columns)
    return Backfilled(out, metadata, columns, time.monotonic() - start)


def _refuse(settings: Settings, data: Path, out: Path) -> None:
    """Refuse what would only fail at the end."""
    if out.suffix != ".parquet":
        raise NotReadyError(f"{out} is no .parquet file", "name one in --out")
    if out.exists() and data.exists() and out.samefile(data):
        raise NotReadyError(f"{out} is the history itself", "name another file in --out")
    if not out.parent.is_dir():
        raise NotReadyError(f"there is no folder {out.parent}", "make it, or name another in --out")
    fields = {*_fields(settings), label_column(settings)}
    if shared := [name for name in settings.schema_.columns if name in fields]:
        raise NotReadyError(
            f"feature {shared[0]!r} has the name of an id, key, time or label column",
            "give the feature another name",
        )


def _fields(settings: Settings) -> list[str]:
    """The id, the time and the keys."""
    event = settings.schema_.event
    return list(dict.fromkeys((event.id, event.time.field, *settings.schema_.key_fields)))


def _needs_label(settings: Settings) -> bool:
    return any(w.stream == "labels" for w in settings.features.windows)


def _computed(
    settings: Settings,
    history: History,
    labels: FloatArray | None,
    order: Order,
    progress: Progress,
) -> OfflineFeatures:
    schema, late_labels = settings.schema_, None
    if labels is not None:
        late_labels = labels_of(schema, history.events, history.labels(labels))
    return features_of(schema, history.events, late_labels, progress, order=order)


class _Rows:
    """The rows of the file, in the order of the history."""

    def __init__(
        self,
        settings: Settings,
        history: History,
        labels: FloatArray | None,
        computed: OfflineFeatures,
        precision: Precision,
    ) -> None:
        self._settings, self._events, self._features = settings, history.events, computed.features
        self._type = np.dtype(precision)
        rows, order = computed.rows, np.arange(len(computed.rows))
        if (np.diff(rows) < 0).any():
            order = np.argsort(rows)
            self._features = self._features[order]
        self._rows = rows[order]
        self._label = None if labels is None else history.labels(labels)
        self._names = _fields(settings)

    def __len__(self) -> int:
        return len(self._rows)

    def table(self, start: int) -> pa.Table:
        """The rows of a row group."""
        rows = self._rows[start : start + _GROUP_ROWS]
        columns = {name: self._field(name, rows) for name in self._names}
        if self._label is not None:
            columns[label_column(self._settings) or ""] = pa.array(
                self._label[rows], from_pandas=True
            )
        features = self._features[start : start + _GROUP_ROWS]
        by_column = np.ascontiguousarray(features.T, self._type)
        columns |= zip(self._settings.schema_.columns, map(pa.array, by_column), strict=True)
        return pa.table(columns)

    def _field(self, name: str, rows: npt.NDArray[np.intp]) -> pa.Array:
        if name == self._settings.schema_.event.time.field:
            return pa.array(self._events.times[rows], pa.timestamp("ms", "UTC"))
        texts, first, last = self._events.texts[name], int(rows[0]), int(rows[-1]) + 1
        if last - first == len(rows):
            return pa.array(texts[first:last])
        return pa.array([texts[row] for row in rows.tolist()])


def _write(out: Path, rows: _Rows, metadata: dict[str, Any], progress: Progress) -> None:
    draft = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        _write_groups(draft, _groups(rows, progress), metadata)
        draft.replace(out)
    except OSError as exc:
        raise NotReadyError(
            f"{out} cannot be written: {exc}", "free space, or name another"
        ) from exc
    finally:
        draft.unlink(missing_ok=True)


def _groups(rows: _Rows, progress: Progress) -> Iterator[pa.Table]:
    """Each made while the one before it is written."""
    with ThreadPoolExecutor(1) as ahead:
        made = ahead.submit(rows.table, 0)
        for start in range(_GROUP_ROWS, len(rows), _GROUP_ROWS):
            group, made = made.result(), ahead.submit(rows.table, start)
            yield group
            progress("Writing", start / len(rows))
        yield made.result()
    progress("Writing", 1.0)


def _write_groups(path: Path, groups: Iterator[pa.Table], metadata: dict[str, Any]) -> None:
    first = next(groups)
    schema = first.schema.with_metadata({METADATA_KEY: orjson.dumps(metadata)})
    texts = [f.name for f in schema if pa.types.is_string(f.type)]
    with pq.ParquetWriter(path, schema, compression="snappy", use_dictionary=texts) as writer:
        writer.write_table(first)
        for group in groups:
            writer.write_table(group)


def summary(done: Backfilled) -> dict[str, str]:
    """What ``streamscore features backfill`` shows."""
    counts = done.metadata
    refused = ", ".join(f"{code} {n:,}" for code, n in counts["refused"].items())
    return {
        "rows": f"{counts['rows']:,} of {counts['history']:,}",
        "refused": refused or "0",
        "duplicates": f"{counts['duplicates']:,}, and {counts['conflicts']:,} with other content",
        "late": f"{counts['late']:,}",
        "features": str(done.features),
        "config hash": counts["config_hash"][:12],
        "seconds": f"{done.seconds:.1f}, {counts['history'] / done.seconds:,.0f} events/s",
        "file": str(done.path),
    }
