"""The model that an operator scores with; a newer version takes its place while the job runs.

A control record beside the versions, ``<model.path>/<name>/serve.json``, names the version to
score with::

    {"version": 3}

Without one it is the newest. A version is loaded and warmed up in a thread of its own, while the
old one scores; the operator changes over between two batches. One that cannot be used is refused,
the old one goes on, and the log says why; it is tried again when its files change.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

from model_server.backends import load_table
from model_server.backends.tabular import Tabular
from model_server.errors import ModelError, RepositoryError
from model_server.repository import list_versions
from udfs.preparation.preparation import Preparation

__all__ = ["CONTROL_FILE", "FollowedModel", "Loaded"]

logger = logging.getLogger(__name__)

CONTROL_FILE = "serve.json"
_JOIN_S = 5.0


@dataclass(frozen=True, slots=True)
class Loaded:
    """A version that is ready.

    Attributes:
        version: Its number.
        model: Warm.
        preparation: From features to its columns.
    """

    version: int
    model: Tabular
    preparation: Preparation


class FollowedModel:
    """A model's version, and the one after it.

    Args:
        version_dir: The version to begin with.
        preparation: Its own, from the job's features to its columns.
        follow_ms: How often to look for another; 0 never looks.
    """

    def __init__(self, version_dir: Path, preparation: Preparation, follow_ms: int) -> None:
        self._folder, self._follow_s = version_dir.parent, follow_ms / 1_000.0
        self._now = _load(version_dir, preparation)
        self._first = preparation
        self._next: Loaded | None = None
        self._refused: dict[int, object] = {}
        self._complaint = ""
        self._ended = Event()
        self._thread: Thread | None = None
        if follow_ms:
            self._thread = Thread(target=self._follow, name="streamscore-model", daemon=True)
            self._thread.start()

    def current(self) -> Loaded:
        """The version to score the next batch with; only the operator calls this."""
        found, self._next = self._next, None
        if found is not None:
            old, self._now = self._now, found
            old.model.close()
            logger.info("model version %d takes the place of %d", found.version, old.version)
        return self._now

    def close(self) -> None:
        """Look no longer, and let go of the model."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(_JOIN_S)
        for loaded in (self._now, self._next):
            if loaded is not None:
                loaded.model.close()

    def _follow(self) -> None:
        while not self._ended.wait(self._follow_s):
            if self._next is None:  # else it waits for a batch
                try:
                    self._look()
                except Exception:  # a thread that ended would never look again
                    logger.exception("cannot look for a newer model in %s", self._folder)

    def _look(self) -> None:
        wanted = self._wanted()
        if wanted is None or wanted == self._now.version:
            return
        files = _files_of(self._folder / str(wanted))
        if self._refused.get(wanted) == files:
            return
        try:
            folder = self._folder / str(wanted)
            loaded = _load(folder, self._checked(folder))
        except (RepositoryError, ModelError) as exc:
            self._refused[wanted] = files
            logger.warning("model version %d goes on: %s", self._now.version, exc)
            return
        if self._ended.is_set():
            loaded.model.close()  # close() may have waited in vain
        else:
            self._next = loaded

    def _wanted(self) -> int | None:
        control = self._folder / CONTROL_FILE
        try:
            version = json.loads(control.read_bytes())["version"]
        except FileNotFoundError:
            return max(list_versions(self._folder.parent, self._folder.name), default=None)
        except (OSError, ValueError, TypeError, KeyError) as exc:
            self._complain(f'{control} is not like {{"version": 3}}: {exc!r}')
            return None
        if type(version) is not int:
            self._complain(f"{control}: version {version!r} is no whole number")
            return None
        self._complaint = ""
        return version

    def _complain(self, complaint: str) -> None:
        """Once, not with every look."""
        if complaint != self._complaint:
            logger.warning("model version %d goes on: %s", self._now.version, complaint)
        self._complaint = complaint

    def _checked(self, folder: Path) -> Preparation:
        """A version's preparation, if it is of the job's features."""
        found, first = Preparation.load(folder), self._first
        if found.names != first.names or found.categories != first.categories:
            raise RepositoryError(
                f"version {folder.name} was trained with other features than the job's: "
                "train it with the job's settings"
            )
        return found


def _load(version_dir: Path, preparation: Preparation) -> Loaded:
    """Load a version and warm it up.

    Raises:
        RepositoryError: The folder is not as it must be.
        ModelError: The model cannot be used.
    """
    model = load_table(version_dir)
    model.warm_up()
    return Loaded(int(version_dir.name), model, preparation)


def _files_of(folder: Path) -> object:
    """Names, sizes and times of a folder's files: others when it has changed."""
    try:
        stats = sorted((path.name, path.stat()) for path in folder.iterdir())
    except OSError:
        return None
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
