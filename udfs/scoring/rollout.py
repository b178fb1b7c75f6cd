"""A rollout: a share of the keys to another version or server, or copies to one, while a job runs.

It is one JSON file that every scoring operator looks at each second, so it must lie where all of
them can read it; an operator that aborts a canary writes it, if it may. A key belongs to the canary
by a hash of itself and the rollout's id: raising the percentage adds keys and moves none back.

::

    {"id": "2026-11-25T11:00:00Z", "state": "running", "reason": "",
     "canary": {"server": "", "version": 4, "percent": 10.0},
     "shadow": {"server": "models-b:8500", "version": null, "percent": 100.0},
     "limits": {"error_rate": 0.05, "latency_ratio": 2.0, "psi": 0.25, "min_rows": 500}}
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import orjson
import xxhash

from udfs.batches.events import FloatArray

__all__ = ["Address", "Guard", "Limits", "Rollout", "RolloutError", "population_stability"]

State = Literal["running", "promoted", "aborted"]

_SHARES = 10_000
_PSI_BINS = 10
_PSI_FLOOR = 1e-4
_RECENT_CALLS = 200
_MIN_CALLS = 20
_LATENCY_FLOOR_MS = 5.0
"""What a canary may always be slower by: on quiet servers a ratio of milliseconds means nothing."""


class RolloutError(ValueError):
    """A rollout file cannot be used; the text says why."""


@dataclass(frozen=True)
class Address:
    """Where a share of the keys goes.

    Attributes:
        server: host:port; the job's own server if empty.
        version: Version to ask for; the server's choice if None.
        percent: Of the keys, 0 to 100.
    """

    server: str = ""
    version: int | None = None
    percent: float = 100.0


@dataclass(frozen=True)
class Limits:
    """What ends a canary.

    Attributes:
        error_rate: Share of its rows without an answer, beyond the stable version's share.
        latency_ratio: Its 90th percentile of a call's time, in stable ones.
        psi: Population stability index of its scores against the stable ones'.
        min_rows: Rows of each before anything is judged.
    """

    error_rate: float = 0.05
    latency_ratio: float = 2.0
    psi: float = 0.25
    min_rows: int = 500


@dataclass(frozen=True)
class Rollout:
    """What a rollout file says.

    Attributes:
        id: Names the rollout, and spreads the keys.
        state: ``promoted``: the canary gets all keys; ``aborted``: none.
        canary: Which version is tried on a share of the keys.
        shadow: Which version gets copies whose answers are only recorded.
        limits: What ends the canary.
        reason: Why it was aborted.
    """

    id: str
    state: State = "running"
    canary: Address | None = None
    shadow: Address | None = None
    limits: Limits = field(default_factory=Limits)
    reason: str = ""

    def in_canary(self, keys: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Which keys are the canary's, bool (n,)."""
        if self.canary is None or self.state == "aborted":
            return np.zeros(len(keys), np.bool_)
        if self.state == "promoted":
            return np.ones(len(keys), np.bool_)
        return self._chosen(keys, self.canary.percent)

    def in_shadow(self, keys: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Of which keys copies are sent, bool (n,)."""
        if self.shadow is None:
            return np.zeros(len(keys), np.bool_)
        return self._chosen(keys, self.shadow.percent)

    def _chosen(self, keys: Sequence[str], percent: float) -> npt.NDArray[np.bool_]:
        below = round(percent * _SHARES / 100)
        if below >= _SHARES:
            return np.ones(len(keys), np.bool_)
        salt = f"{self.id}\0"
        return np.fromiter(
            (xxhash.xxh3_64_intdigest((salt + key).encode()) % _SHARES < below for key in keys),
            np.bool_,
            len(keys),
        )

    def aborted(self, reason: str) -> Rollout:
        """The same, with the canary ended."""
        return replace(self, state="aborted", reason=reason)

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Read a rollout file; None if there is none.

        Raises:
            RolloutError: It cannot be read or is no rollout.
        """
        try:
            return cls.parse(orjson.loads(path.read_bytes()))
        except FileNotFoundError:
            return None
        except (OSError, orjson.JSONDecodeError) as exc:
            raise RolloutError(f"{path} cannot be read: {exc}") from exc
        except RolloutError as exc:
            raise RolloutError(f"{path}: {exc}") from exc

    @classmethod
    def parse(cls, document: Any) -> Self:
        """Check a document.

        Raises:
            RolloutError: It is no rollout.
        """
        if not isinstance(document, dict):
            raise RolloutError("must hold an object")
        unknown = document.keys() - cls.__dataclass_fields__.keys()
        if unknown:
            raise RolloutError(f"unknown: {', '.join(sorted(unknown))}")
        identity, state = document.get("id"), document.get("state", "running")
        if not isinstance(identity, str) or not identity:
            raise RolloutError('"id" must be a text that is not empty')
        if state not in ("running", "promoted", "aborted"):
            raise RolloutError(f'"state" is {state!r}, must be running, promoted or aborted')
        canary, shadow = (_address(document, name) for name in ("canary", "shadow"))
        if canary is None and shadow is None:
            raise RolloutError("must have a canary or a shadow")
        limits = _limits(document.get("limits") or {})
        return cls(identity, state, canary, shadow, limits, str(document.get("reason", "")))

    def write(self, path: Path) -> None:
        """Store it; a reader finds the old file or the whole new one.

        Raises:
            RolloutError: The file cannot be written.
        """
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            draft.write_bytes(orjson.dumps(asdict(self), option=orjson.OPT_INDENT_2))
            draft.replace(path)
        except OSError as exc:
            raise RolloutError(f"{path} cannot be written: {exc.strerror}") from exc


def _address(document: Mapping[str, Any], name: str) -> Address | None:
    found = document.get(name)
    if found is None:
        return None
    if not isinstance(found, dict) or found.keys() - {"server", "version", "percent"}:
        raise RolloutError(f'"{name}" must be an object of server, version and percent')
    server, version = found.get("server", ""), found.get("version")
    percent = found.get("percent", 100.0)
    if not isinstance(server, str) or (server and ":" not in server):
        raise RolloutError(f'{name}: "server" is {server!r}, must be host:port')
    if version is not None and (type(version) is not int or version < 1):
        raise RolloutError(f'{name}: "version" is {version!r}, must be a whole number from 1')
    if type(percent) not in (int, float) or not 0 <= percent <= 100:
        raise RolloutError(f'{name}: "percent" is {percent!r}, must be 0 to 100')
    if not server and version is None:
        raise RolloutError(f"{name}: name a server or a version other than the job's own")
    return Address(server, version, float(percent))


def _limits(document: Any) -> Limits:
    names = Limits.__dataclass_fields__.keys()
    if not isinstance(document, dict) or document.keys() - names:
        raise RolloutError(f'"limits" must be an object of {", ".join(names)}')
    for name, value in document.items():
        if type(value) not in (int, float) or value < 0:
            raise RolloutError(f'limits: "{name}" is {value!r}, must be a number from 0')
    return Limits(**document)


class _Record:
    """What is known of the calls of one side."""

    def __init__(self) -> None:
        self.rows = 0
        self.calls: deque[tuple[int, bool, float]] = deque(maxlen=_RECENT_CALLS)
        self.bins = np.zeros(_PSI_BINS, np.int64)

    def error_rate(self) -> float:
        rows = sum(count for count, _, _ in self.calls)
        return sum(count for count, failed, _ in self.calls if failed) / rows if rows else 0.0

    def latency_ms(self) -> float:
        return float(np.percentile([time_ms for _, _, time_ms in self.calls], 90))


class Guard:
    """Compares a canary with the stable version, and says when it is to end."""

    def __init__(self, limits: Limits) -> None:
        """Judge by ``limits``."""
        self._limits = limits
        self._sides = {"stable": _Record(), "canary": _Record()}
        self._first: list[FloatArray] = []
        self._edges: FloatArray | None = None

    def observe(
        self,
        side: Literal["stable", "canary"],
        rows: int,
        scores: FloatArray | None,
        call_ms: float,
    ) -> str | None:
        """Note a call; return why the canary is to end, if it is.

        Args:
            side: Whose call it was.
            rows: Its rows.
            scores: What it brought; None if it failed.
            call_ms: How long it took.
        """
        record = self._sides[side]
        record.rows += rows
        record.calls.append((rows, scores is None, call_ms))
        if scores is not None:
            self._count(side, record, scores)
        return self._verdict() if side == "canary" else None

    def _count(self, side: str, record: _Record, scores: FloatArray) -> None:
        """Sort scores into bins, which are deciles of the stable version's first ones."""
        if self._edges is None:
            if side == "stable":
                self._first.append(scores)
                if sum(map(len, self._first)) >= self._limits.min_rows:
                    first = np.concatenate(self._first)
                    self._edges = np.quantile(first, np.linspace(0, 1, _PSI_BINS + 1)[1:-1])
            return
        places = np.searchsorted(self._edges, scores, side="right")
        record.bins += np.bincount(places, minlength=_PSI_BINS)

    def _verdict(self) -> str | None:
        stable, canary, limits = self._sides["stable"], self._sides["canary"], self._limits
        if min(stable.rows, canary.rows) < limits.min_rows or len(canary.calls) < _MIN_CALLS:
            return None
        errors, usual_errors = canary.error_rate(), stable.error_rate()
        if errors > usual_errors + limits.error_rate:
            return (
                f"{errors:.1%} of the canary's rows got no answer, "
                f"{usual_errors:.1%} of the stable version's"
            )
        took_ms, usual_ms = canary.latency_ms(), stable.latency_ms()
        if took_ms > limits.latency_ratio * usual_ms + _LATENCY_FLOOR_MS:
            return (
                f"the canary's calls take {took_ms:.0f} ms at p90, the stable ones {usual_ms:.0f}"
            )
        if min(stable.bins.sum(), canary.bins.sum()) >= limits.min_rows:
            psi = population_stability(stable.bins, canary.bins)
            if psi > limits.psi:
                return f"the scores' population stability index is {psi:.2f}"
        return None


def population_stability(expected: npt.NDArray[np.int64], actual: npt.NDArray[np.int64]) -> float:
    """Return the population stability index of two histograms over the same bins.

    Below 0.1 is commonly read as no shift, above 0.25 as a large one.
    """
    p = np.maximum(expected / expected.sum(), _PSI_FLOOR)
    q = np.maximum(actual / actual.sum(), _PSI_FLOOR)
    return float(((q - p) * np.log(q / p)).sum())
