"""A history of one's own: a Parquet, CSV or JSON Lines file, and the labels in it."""

from __future__ import annotations

from collections.abc import Collection, Hashable
from pathlib import Path

import numpy as np
import orjson
import pandas as pd
import pyarrow.parquet as pq

from jobs.environment import NotReadyError
from jobs.settings import Settings
from udfs.batches.events import FloatArray
from udfs.definition.schema import Schema


class HistoryFileError(NotReadyError):
    """A history cannot be read, or lacks what is needed."""


def read_frame(path: Path, schema: Schema, columns: Collection[str] | None = None) -> pd.DataFrame:
    """Read a history of one's own.

    Args:
        path: A ``.parquet``, ``.csv`` or ``.jsonl`` file.
        schema: Which CSV columns are text: ids like 0012 would lose their zeros.
        columns: Those of a Parquet file to read, where it has them; default: all.

    Raises:
        HistoryFileError: no such file, another ending, or it cannot be read.
    """
    texts: dict[Hashable, type] = {
        f.name: str for f in schema.arriving.fields if f.type == "string"
    }
    repeated = [str(name) for name in texts if name != schema.arriving.id]
    try:
        match path.suffix:
            case ".parquet":
                return _read_parquet(path, repeated, columns)
            case ".csv":
                # Only nothing is missing: "NA" may be a country.
                return pd.read_csv(path, dtype=texts, keep_default_na=False, na_values=[""])
            case ".jsonl":
                return _read_json_lines(path)
    except (OSError, ValueError) as exc:
        raise HistoryFileError(f"{path} cannot be read: {exc}", "check the file") from exc
    raise HistoryFileError(
        f"{path} is of no known kind", "name a .parquet, .csv or .jsonl file in --data"
    )


def _read_json_lines(path: Path) -> pd.DataFrame:
    rows = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                rows.append(dict(orjson.loads(line)))
            except (TypeError, ValueError) as exc:
                raise ValueError(f"line {number} is not a JSON object: {exc}") from exc
    return pd.DataFrame(rows)


def _read_parquet(path: Path, repeated: list[str], columns: Collection[str] | None) -> pd.DataFrame:
    """Repeated texts stay dictionary-encoded: each is one object, however often it comes."""
    wanted = None
    if columns is not None:
        wanted = [name for name in pq.read_schema(path).names if name in columns]
    table = pq.read_table(path, columns=wanted, read_dictionary=repeated)
    frame: pd.DataFrame = table.to_pandas(split_blocks=True, self_destruct=True)
    return frame


def label_column(settings: Settings) -> str | None:
    """The column with the label, or none if the settings name none."""
    return settings.training.label or (settings.labels.value if settings.labels else None)


def labels_in(settings: Settings, frame: pd.DataFrame) -> FloatArray:
    """The label of each row, float64 (n,): 0, 1, or NaN where it is not known.

    Raises:
        HistoryFileError: the settings name no label, or its column is absent or holds others.
    """
    name = label_column(settings)
    if name is None:
        raise HistoryFileError(
            "no label to train on", "name its column in training.label of the settings"
        )
    if name not in frame:
        known = ", ".join(map(str, frame.columns))
        raise HistoryFileError(
            f"no column {name!r} with the label; there are: {known}",
            "add it, or name another in training.label of the settings",
        )
    try:
        values = frame[name].astype("float64").to_numpy()
    except (TypeError, ValueError) as exc:
        raise HistoryFileError(f"label column {name!r}: {exc}", "make its values 0 or 1") from exc
    wrong = values[~np.isnan(values) & ~np.isin(values, (0.0, 1.0))]
    if len(wrong):
        raise HistoryFileError(
            f"label column {name!r} holds {wrong[0]:g}", "make its values 0 or 1"
        )
    return values
