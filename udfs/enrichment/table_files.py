"""Reference tables out of files."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import orjson

from udfs.definition.enrichment import TableSpec
from udfs.enrichment.tables import ALWAYS, Row, TableRecordError, VersionedTable

__all__ = ["TableFileError", "put_file", "state_of"]

Refused = Callable[[str, str], None]
"""Called with where a row is and why it is refused."""


class TableFileError(ValueError):
    """A table's file cannot be read; the text says why."""


def state_of(path: Path) -> tuple[int, int, int] | None:
    """Changes when the file does: its time, size and inode; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def put_file(table: VersionedTable, path: Path, refused: Refused) -> None:
    """Put a file's rows into a table; keys that it does not have any more lose their row.

    Without ``time`` in the table's spec the file is the table: earlier rows are forgotten. With it
    they stay as versions. A refused row leaves its key as it was.

    Args:
        table: Gets the rows.
        path: The file.
        refused: Called for each row that is refused.

    Raises:
        TableFileError: It cannot be read, or lacks a column; the table is as it was.
    """
    spec = table.spec
    try:
        found = [*_READERS[path.suffix](spec, path)]
    except (OSError, ValueError, ArithmeticError) as exc:
        raise TableFileError(f"{path}: {exc}") from exc
    if found and (lacking := _needed(spec) - found[0].keys()):
        raise TableFileError(f"{path} has no column {', '.join(sorted(lacking))}")
    seen: set[str] = set()
    rows: list[tuple[str, Row, int]] = []
    for number, document in enumerate(found, start=1):
        key = document.get(spec.key)
        seen.add(str(key))
        try:
            rows.append((_key(spec, key), table.row_of(document), _time(spec, document)))
        except TableRecordError as exc:
            refused(f"row {number}", str(exc))
    for key, row, time_ms in rows:
        table.put(key, row, time_ms)
    if spec.time is None:
        for key in table.keys() - seen:
            table.put(key, None, ALWAYS)


def _needed(spec: TableSpec) -> set[str]:
    return {spec.key} | ({spec.time} if spec.time else set())


def _key(spec: TableSpec, key: object) -> str:
    if not isinstance(key, str) or not key:
        raise TableRecordError(f"{spec.key} must be text, is {key!r}")
    return key


def _time(spec: TableSpec, document: Mapping[str, Any]) -> int:
    if spec.time is None:
        return ALWAYS
    try:
        return int(document[spec.time])
    except (KeyError, TypeError, ValueError) as exc:
        message = f"{spec.time} must be epoch milliseconds, is {document.get(spec.time)!r}"
        raise TableRecordError(message) from exc


def _of_csv(spec: TableSpec, path: Path) -> Iterable[dict[str, Any]]:
    """Rows of text as JSON would have them; nothing between two commas is missing."""
    types = {field.name: field.type for field in spec.fields}
    with path.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            yield {name: _typed(text, types.get(name, "string")) for name, text in row.items()}


_TRUTH = {"true": True, "1": True, "false": False, "0": False}


def _typed(text: str | None, kind: str) -> Any:
    """The value that a text stands for; the text itself, which will be refused, if none."""
    if not text:
        return None
    try:
        match kind:
            case "float":
                return float(text)
            case "int":
                return int(text)
            case "bool":
                return _TRUTH.get(text.lower(), text)
    except ValueError:
        pass
    return text


def _of_json_lines(_spec: TableSpec, path: Path) -> Iterable[dict[str, Any]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            document = orjson.loads(line)
            if not isinstance(document, dict):
                raise ValueError(f"line {number} is not a JSON object")
            yield document


def _of_parquet(_spec: TableSpec, path: Path) -> Iterable[dict[str, Any]]:
    from pyarrow import parquet

    rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    return rows


_READERS: dict[str, Callable[[TableSpec, Path], Iterable[dict[str, Any]]]] = {
    ".csv": _of_csv,
    ".jsonl": _of_json_lines,
    ".parquet": _of_parquet,
}
