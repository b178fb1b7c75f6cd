"""Card transactions with fraud labels for the demo, made by the simulator synccfd.

The simulator needs newer pandas and numpy than Flink allows, so it lives in an environment of its
own and runs as a subprocess. What it made is cached as ``build/data/<size>/transactions.csv``
beside ``transactions.json``, which holds its row count and SHA-256; a cache that does not fit them
is made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson
import pandas as pd

from jobs.environment import BUILD, ROOT, NotReadyError

DAY_MS = 24 * 60 * 60 * 1000
LABEL_DELAY_MS = 7 * DAY_MS
"""A transaction is known to be fraud, or not, this long after it happened."""

COORDINATE_DECIMALS = 5  # about a metre
FORMAT = 2  # one more whenever `to_events` changes, so that older caches are made again
LOCK = ROOT / "conf" / "requirements-synccfd.lock"
WORKER = Path(__file__).with_name("synccfd_worker.py")

Progress = Callable[[str, float], None]
"""Called with what is being done and which part of that, 0 to 1, is done."""


class DataError(NotReadyError):
    """The demo data cannot be made."""


@dataclass(frozen=True)
class Size:
    """The simulator's arguments.

    Attributes:
        n_customers: Cards.
        n_terminals: Terminals.
        nb_days: Days of transactions.
        start_date: First day, ISO 8601, UTC.
        random_state: Seed.
    """

    n_customers: int
    n_terminals: int
    nb_days: int = 75
    start_date: str = "2025-01-01"
    random_state: int = 42


SIZES = {
    "small": Size(n_customers=1_000, n_terminals=2_000),  # 147,269 transactions, 4.97 % fraud
    "full": Size(n_customers=5_000, n_terminals=10_000),  # 725,968 transactions, 1.10 % fraud
}

_RENAMED = {
    "TX_AMOUNT": "amount",
    "TX_TYPE": "type",
    "TX_BILL_LAT": "billing_lat",
    "TX_BILL_LONG": "billing_lon",
    "TX_SHIPP_LAT": "shipping_lat",
    "TX_SHIPP_LONG": "shipping_lon",
    "TX_TERM_LAT": "terminal_lat",
    "TX_TERM_LONG": "terminal_lon",
}
EVENT_COLUMNS = ("transaction_id", "event_time_ms", "card_id", "terminal_id", *_RENAMED.values())
LABEL_COLUMNS = ("transaction_id", "event_time_ms", "terminal_id", "is_fraud")


def silent(_step: str, _done: float) -> None:
    """A progress callback that shows nothing."""


def load(size: str, build_dir: Path = BUILD, progress: Progress = silent) -> pd.DataFrame:
    """The demo's transactions, made at the first call and cached.

    Args:
        size: A name in ``SIZES``.
        build_dir: Folder of the cache and of the simulator's environment.
        progress: Shown while they are made; a minute or more.

    Returns:
        One row per transaction, sorted by time and id: the columns of an event's JSON and
        ``is_fraud``.

    Raises:
        DataError: there is no such size, or the simulator cannot be installed or failed.
    """
    if size not in SIZES:
        raise DataError(f"no demo data of size {size!r}", f"choose one of: {', '.join(SIZES)}")
    cache = _cache(size, build_dir)
    if not is_intact(cache, SIZES[size]):
        _make(SIZES[size], cache, build_dir, progress)
    return _read(cache)


def _read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, float_precision="round_trip", keep_default_na=False, na_values=[""])


def _cache(size: str, build_dir: Path) -> Path:
    return build_dir / "data" / size / "transactions.csv"


def is_intact(cache: Path, size: Size) -> bool:
    """Whether a cache was made with these arguments and is what was written then."""
    try:
        record = json.loads(cache.with_suffix(".json").read_text(encoding="utf-8"))
        return bool(record == _record(cache, size))
    except (OSError, ValueError):
        return False


def _record(path: Path, size: Size) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    with path.open("rb") as file:
        rows = sum(1 for _ in file) - 1
    return {
        "format": FORMAT,
        "arguments": asdict(size),
        "lock": _lock_digest(),
        "rows": rows,
        "sha256": digest,
    }


def _make(size: Size, cache: Path, build_dir: Path, progress: Progress) -> None:
    python = _simulator_python(build_dir / "synccfd-venv", progress)
    cache.parent.mkdir(parents=True, exist_ok=True)
    raw = cache.with_name(f"raw-{os.getpid()}.csv")
    draft = cache.with_name(f"draft-{os.getpid()}.csv")
    try:
        _simulate(python, size, raw, progress)
        table = pd.read_csv(raw, parse_dates=["TX_DATETIME"], float_precision="round_trip")
        to_events(table).to_csv(draft, index=False)
        record = json.dumps(_record(draft, size), indent=2)
        draft.replace(cache)
        cache.with_suffix(".json").write_text(record, encoding="utf-8")
    finally:
        raw.unlink(missing_ok=True)
        draft.unlink(missing_ok=True)


def _simulator_python(folder: Path, progress: Progress) -> Path:
    """The Python of the simulator's environment, made if it is not there as locked."""
    stamp = folder / "installed.sha256"
    python = folder / "bin" / "python"
    if not stamp.is_file() or stamp.read_text() != _lock_digest() or not python.exists():
        progress("Installing the simulator", 0.0)
        uv = _uv()
        shutil.rmtree(folder, ignore_errors=True)
        _run([uv, "venv", "--quiet", "--python", sys.executable, str(folder)])
        install = [uv, "pip", "install", "--quiet", "--no-deps", "--require-hashes"]
        _run([*install, "--python", str(python), "-r", str(LOCK)])
        stamp.write_text(_lock_digest())
        progress("Installing the simulator", 1.0)
    return python


def _lock_digest() -> str:
    return hashlib.sha256(LOCK.read_bytes()).hexdigest()


def _uv() -> str:
    path = os.pathsep.join([str(ROOT / "build" / "tools" / "bin"), os.environ.get("PATH", "")])
    found = shutil.which("uv", path=path)
    if found is None:
        raise DataError("uv is missing from build/tools", "run: make setup")
    return found


def _run(command: list[str]) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        raise DataError(
            f"the simulator cannot be installed: {_last_line(done.stderr.splitlines())}",
            "check the network, then retry",
        )


def _simulate(python: Path, size: Size, target: Path, progress: Progress) -> None:
    command = [str(python), str(WORKER), json.dumps(asdict(size)), str(target)]
    # Its own packages only: ours are of other versions.
    variables = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=variables,
    ) as process:
        assert process.stdout is not None
        others = _relay(process.stdout, progress)
    if process.returncode != 0:
        raise DataError(f"the simulator failed: {_last_line(others)}", "run: make clean setup")


def _relay(lines: Iterable[str], progress: Progress) -> Iterable[str]:
    """Pass the worker's reports on; returns the last lines that are none."""
    others: deque[str] = deque(maxlen=20)
    for line in lines:
        if line.startswith('{"step"'):
            report = json.loads(line)
            progress(report["step"], report["done"] / max(report["total"], 1))
        else:
            others.append(line)
    return others


def _last_line(lines: Iterable[str]) -> str:
    return next((line.strip() for line in reversed(list(lines)) if line.strip()), "no error text")


def to_events(raw: pd.DataFrame) -> pd.DataFrame:
    """The simulator's transactions as the events of our topics.

    Ids become text of a fixed width, times milliseconds since the epoch (the simulator's are read
    as UTC), coordinates lose what is below a metre.
    """
    columns: dict[str, Any] = {
        "transaction_id": _ids(raw["TRANSACTION_ID"], "t", 10),
        "event_time_ms": raw["TX_DATETIME"].astype("datetime64[ms]").astype("int64"),
        "card_id": _ids(raw["CUSTOMER_ID"], "c", 5),
        "terminal_id": _ids(raw["TERMINAL_ID"], "m", 5),
    }
    for theirs, ours in _RENAMED.items():
        is_coordinate = ours.endswith(("_lat", "_lon"))
        columns[ours] = raw[theirs].round(COORDINATE_DECIMALS) if is_coordinate else raw[theirs]
    columns["is_fraud"] = raw["TX_FRAUD"].astype("int64")
    frame = pd.DataFrame(columns)
    return frame.sort_values(["event_time_ms", "transaction_id"], ignore_index=True)


def _ids(numbers: pd.Series[int], prefix: str, digits: int) -> list[str]:
    return [f"{prefix}{number:0{digits}d}" for number in numbers.tolist()]


def summary(frame: pd.DataFrame, size: str, build_dir: Path = BUILD) -> dict[str, str]:
    """What ``streamscore data`` shows of the demo data."""
    times = pd.to_datetime(frame["event_time_ms"], unit="ms", utc=True)
    return {
        "transactions": f"{len(frame):,}",
        "fraud": f"{frame['is_fraud'].mean():.2%}",
        "cards": f"{frame['card_id'].nunique():,}",
        "terminals": f"{frame['terminal_id'].nunique():,}",
        "from": times.min().isoformat(),
        "to": times.max().isoformat(),
        "file": str(_cache(size, build_dir)),
    }


def event_json(frame: pd.DataFrame) -> Iterator[tuple[bytes, bytes]]:
    """Kafka records of transactions: the card's id as key, JSON as value; unknown numbers null."""
    key = EVENT_COLUMNS.index("card_id")
    for row in _rows(frame, EVENT_COLUMNS):
        yield row[key].encode(), orjson.dumps(dict(zip(EVENT_COLUMNS, row, strict=True)))


def label_json(frame: pd.DataFrame) -> Iterator[tuple[bytes, bytes]]:
    """Kafka records of labels: the terminal's id as key, JSON as value.

    A label's ``event_time_ms`` is its transaction's; ``known_at_ms`` is seven days later.
    """
    for transaction_id, event_time_ms, terminal_id, is_fraud in _rows(frame, LABEL_COLUMNS):
        value = {
            "transaction_id": transaction_id,
            "event_time_ms": event_time_ms,
            "terminal_id": terminal_id,
            "is_fraud": is_fraud,
            "known_at_ms": event_time_ms + LABEL_DELAY_MS,
        }
        yield terminal_id.encode(), orjson.dumps(value)


def _rows(frame: pd.DataFrame, columns: tuple[str, ...]) -> Iterator[tuple[Any, ...]]:
    """Rows of plain Python values: faster than any of the frame's own iterators."""
    return zip(*(frame[name].tolist() for name in columns), strict=True)
