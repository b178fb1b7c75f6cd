"""Which model versions the server has, who uses them, and which one a request means.

Refusals use TensorFlow Serving's words, as people search for them. One answer differs on purpose:
a model that is still loading is UNAVAILABLE, which clients retry, not NOT_FOUND.

All of it belongs to one event loop and is not for threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum

from model_server.backends.base import Model, Signature
from model_server.batching import Batcher, BatchingOptions
from model_server.call_record import current
from model_server.errors import (
    InvalidRequest,
    ServableNotFound,
    ServableNotReady,
    SignatureNotFound,
)

__all__ = ["CallState", "Entry", "Servable", "ServableState", "Servables", "VersionStatus"]


class ServableState(Enum):
    """Life of a version; the names are ModelVersionStatus.State's."""

    LOADING = "LOADING"
    AVAILABLE = "AVAILABLE"
    UNLOADING = "UNLOADING"
    END = "END"


@dataclass(frozen=True)
class VersionStatus:
    """What is known of a version.

    Attributes:
        state: Where in its life it is.
        error: Why it could not be loaded; empty if it could.
    """

    state: ServableState
    error: str = ""


@dataclass
class CallState:
    """What ``calls.Caller`` keeps of a version; it goes when the version does.

    Attributes:
        times_s: By signature, how long a run takes.
        batchers: By signature and outputs, what puts calls together.
    """

    times_s: dict[str, float] = field(default_factory=dict)
    batchers: dict[object, Batcher] = field(default_factory=dict)


@dataclass(frozen=True)
class Servable:
    """One loaded version of a model.

    Attributes:
        name: The model's.
        version: Its number.
        model: What answers.
        batching: How calls are put together.
        calls: The caller's own.
    """

    name: str
    version: int
    model: Model
    batching: BatchingOptions = field(default_factory=BatchingOptions)
    calls: CallState = field(default_factory=CallState, compare=False, repr=False)

    def signature(self, name: str) -> Signature:
        """Return a signature by name.

        Raises:
            SignatureNotFound: The model has none of that name.
        """
        signature = self.model.signatures.get(name)
        if signature is None:
            raise SignatureNotFound(f'Serving signature key "{name}" not found.')
        return signature


class _Users:
    """Counts the calls at work on a version, and tells when the last has ended."""

    def __init__(self) -> None:
        self._count = 0
        self._none = asyncio.Event()
        self._none.set()

    def __enter__(self) -> None:
        self._count += 1
        self._none.clear()

    def __exit__(self, *_: object) -> None:
        self._count -= 1
        if not self._count:
            self._none.set()

    async def wait_for_none(self) -> None:
        await self._none.wait()


@dataclass
class Entry:
    """What one model name stands for.

    Attributes:
        labels: Version by label.
        statuses: Every known version.
        loaded: The versions that answer, and who uses them.
    """

    labels: Mapping[str, int] = field(default_factory=dict)
    statuses: dict[int, VersionStatus] = field(default_factory=dict)
    loaded: dict[int, tuple[Servable, _Users]] = field(default_factory=dict)


class Servables:
    """The versions of all models of this server."""

    def __init__(self) -> None:
        """Start without a model."""
        self._entries: dict[str, Entry] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The models, whether a version of them is loaded or not."""
        return tuple(self._entries)

    @property
    def all_ready(self) -> bool:
        """Whether every model has a version that answers."""
        return all(entry.loaded for entry in self._entries.values())

    def declare(self, name: str, labels: Mapping[str, int]) -> None:
        """Make a model known, and say which versions its labels stand for from now on."""
        self._entries.setdefault(name, Entry()).labels = dict(labels)

    def forget(self, name: str) -> None:
        """Make a model unknown; all its versions are withdrawn before."""
        del self._entries[name]

    def note(self, name: str, version: int, state: ServableState, error: str = "") -> None:
        """Note where in its life a version is."""
        self._entries[name].statuses[version] = VersionStatus(state, error)

    def publish(self, servable: Servable) -> None:
        """Answer requests with this version from now on."""
        entry = self._entries[servable.name]
        entry.loaded[servable.version] = servable, _Users()
        entry.statuses[servable.version] = VersionStatus(ServableState.AVAILABLE)

    async def withdraw(self, name: str, version: int) -> None:
        """Give a version no more calls, wait for those at work, and close it."""
        servable, users = self._entries[name].loaded.pop(version)
        self.note(name, version, ServableState.UNLOADING)
        await users.wait_for_none()
        await asyncio.to_thread(servable.model.close)
        self.note(name, version, ServableState.END)

    def retire(self) -> None:
        """Note that the server is stopping; calls in flight are still answered."""
        for name, entry in self._entries.items():
            for version in entry.loaded:
                self.note(name, version, ServableState.UNLOADING)

    async def close(self) -> None:
        """Close what is loaded; the server has stopped."""
        for entry in self._entries.values():
            for servable, _users in entry.loaded.values():
                await asyncio.to_thread(servable.model.close)
            entry.loaded.clear()

    def loaded(self, name: str) -> tuple[int, ...]:
        """Return the versions that answer, ascending; none for an unknown model."""
        entry = self._entries.get(name)
        return tuple(sorted(entry.loaded)) if entry else ()

    @contextmanager
    def use(self, name: str, version: int | None = None, label: str = "") -> Iterator[Servable]:
        """Hold the version that a request names, so that it is not unloaded meanwhile.

        Args:
            name: The model.
            version: Version to take; with neither this nor a label, the newest.
            label: Label to take instead.

        Raises:
            ServableNotFound: Another model or version.
            ServableNotReady: It is still loading.
            InvalidRequest: The model has no such label.
        """
        record = current.get()
        if record is not None and name in self._entries:  # also of a call that is refused
            record.model = name
        servable, users = self._find(name, version, label)
        if record is not None:
            record.version = servable.version
        with users:
            yield servable

    def _find(self, name: str, version: int | None, label: str) -> tuple[Servable, _Users]:
        entry = self._entries.get(name)
        if entry is None:
            raise _not_found(name, version)
        if label:
            version = _version_of_label(entry, label)
        if version is None and entry.loaded:
            version = max(entry.loaded)
        if version in entry.loaded:
            return entry.loaded[version]
        if version is None and entry.statuses:
            statuses = list(entry.statuses.values())
        elif version in entry.statuses:
            statuses = [entry.statuses[version]]
        else:
            raise _not_found(name, version)
        if any(status.state is ServableState.LOADING for status in statuses):
            raise ServableNotReady(f"model {name} is still loading")
        raise _not_found(name, version)

    def entries(self) -> Iterator[tuple[str, Entry]]:
        """Yield every model with what is known of it."""
        yield from self._entries.items()

    def all_statuses(self) -> Iterator[tuple[str, int, VersionStatus]]:
        """Yield every known version with its status."""
        for name, entry in self._entries.items():
            for version, status in entry.statuses.items():
                yield name, version, status

    def statuses(
        self, name: str, version: int | None = None, label: str = ""
    ) -> dict[int, VersionStatus]:
        """Return the status of one version, or of all, the newest first.

        Raises:
            ServableNotFound: Another model or version.
            InvalidRequest: The model has no such label.
        """
        entry = self._entries.get(name)
        if entry is not None and label:
            version = _version_of_label(entry, label)
        known = entry.statuses if entry else {}
        if version is None and known:
            return dict(sorted(known.items(), reverse=True))
        if version is not None and version in known:
            return {version: known[version]}
        if version is None:
            raise ServableNotFound(f"Could not find any versions of model {name}")
        raise ServableNotFound(f"Could not find version {version} of model {name}")


def _not_found(name: str, version: int | None) -> ServableNotFound:
    wanted = f"Latest({name})" if version is None else f"Specific({name}, {version})"
    return ServableNotFound(f"Servable not found for request: {wanted}")


def _version_of_label(entry: Entry, label: str) -> int:
    version = entry.labels.get(label)
    if version is None:
        raise InvalidRequest(f"Unrecognized servable version label: {label}")
    return version
