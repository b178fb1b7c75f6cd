"""A savepoint and what lies beside it: which settings' state it is, and where to go on reading."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import orjson

from jobs.environment import NotReadyError
from jobs.features.changes import Changes, changes_of
from jobs.running_job import RunningJob
from jobs.settings import Settings
from jobs.starting import Position, Start
from udfs.features.fingerprint import Fingerprint, fingerprint

MANIFEST = "streamscore.json"
"""Beside a savepoint's ``_metadata``: what ``Manifest`` holds."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is known of a savepoint.

    Attributes:
        fingerprint: Of the settings that its histories are of.
        features_hash: Of these settings.
        positions: Where to go on, by topic; empty if the savepoint knows it itself.
        made: Whether it was made from a history: then it has the stages' state alone.
        facts: What else a reader may want to know.
    """

    fingerprint: Fingerprint
    features_hash: str
    positions: dict[str, Position] = field(default_factory=dict)
    made: bool = False
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: Settings, **more: Any) -> Manifest:
        """That of a savepoint of a job with these settings."""
        known = fingerprint(settings.schema_, settings.batch.buckets)
        return cls(known, settings.features_hash, **more)

    def write(self, savepoint: Path) -> None:
        """Put it beside the savepoint's ``_metadata``."""
        options = orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS
        (savepoint / MANIFEST).write_bytes(orjson.dumps(self, option=options))

    @classmethod
    def read(cls, savepoint: str) -> Manifest | None:
        """That of a savepoint; none if it has none or lies where this process cannot look.

        Raises:
            NotReadyError: the file is broken.
        """
        folder = local_folder(savepoint)
        if folder is None or not (folder / MANIFEST).is_file():
            return None
        try:
            document = orjson.loads((folder / MANIFEST).read_bytes())
            document["positions"] = {
                topic: Position(
                    p["offsets"] and {int(n): at for n, at in p["offsets"].items()}, p["time_ms"]
                )
                for topic, p in document["positions"].items()
            }
            return cls(**document)
        except (OSError, ValueError, TypeError, KeyError) as exc:
            raise NotReadyError(
                f"{folder / MANIFEST} is broken: {exc!r}", "make the savepoint anew"
            ) from exc


def local_folder(savepoint: str) -> Path | None:
    """The folder of a savepoint that lies on this machine's file systems."""
    parts = urlparse(savepoint)
    if parts.scheme in ("", "file"):
        return Path(unquote(parts.path))
    return None


def from_savepoint(settings: Settings, savepoint: str, *, drops: bool = False) -> Start:
    """How a job starts from a savepoint.

    Args:
        settings: The job's.
        savepoint: Folder or URL.
        drops: Whether state that the settings have no use for may be lost.

    Raises:
        NotReadyError: there is no savepoint, or its histories cannot be read with these settings.
    """
    folder = local_folder(savepoint)
    if folder is not None and not (folder / "_metadata").is_file():
        raise NotReadyError(f"{savepoint} is no savepoint", "name the folder that has _metadata")
    url = folder.absolute().as_uri() if folder is not None else savepoint
    manifest = Manifest.read(savepoint)
    if manifest is None:
        return Start(url, drops)
    changes = changes_of(manifest.fingerprint, settings)
    if refused := [c for c in changes if c.effect == "refused"]:
        reasons = "; ".join(f"{c.kind} {c.reason}" for c in refused)
        raise NotReadyError(
            f"{savepoint} is of other settings: {reasons}", "correct the settings, or name another"
        )
    _check_lost(changes, drops or manifest.made)
    return Start(url, drops or manifest.made, manifest.positions)


def stop_with_savepoint(
    job: RunningJob, settings: Settings, folder: str, *, drain: bool = False
) -> str:
    """Stop a job with a savepoint that says what its state depends on; returns its URL.

    Args:
        job: The running job.
        settings: Its settings.
        folder: Where the savepoint goes: a folder or URL that every TaskManager reaches. The
            manifest is written if it is a folder that this process reaches too.
        drain: See ``changes.needs_drain``.

    Raises:
        JobError: there is no savepoint; the job then still runs.
    """
    savepoint = job.stop_with_savepoint(folder, drain=drain)
    found = local_folder(savepoint)
    if found is not None and found.is_dir():
        Manifest.of(settings).write(found)
    return savepoint


def _check_lost(changes: Changes, drops: bool) -> None:
    lost = [c.feature for c in changes if c.kind == "stage" and c.effect == "lost"]
    if lost and not drops:
        raise NotReadyError(
            f"the savepoint has histories that the settings do not read: {', '.join(lost)}",
            "name --drop-state if they may be lost",
        )
