"""Model repositories elsewhere, as ``s3://bucket/models``: versions are copied here to be loaded.

Any file system that fsspec knows will do. A version is copied when it is to be loaded, into a
folder that is named after the sizes and tags of its files: when these change, as after a half
upload, the next look copies it anew.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from model_server.copies import Copies
from model_server.errors import RepositoryError
from model_server.repository import check_name, is_version

__all__ = ["Elsewhere", "Mirror", "is_registry", "is_url", "mirror"]

_TAGS = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "created")
_REGISTRY = "models:/"


class Elsewhere(Protocol):
    """A repository that is not a folder here. For one thread at a time."""

    def list_versions(self, name: str) -> list[int]:
        """Return the versions of a model, ascending.

        Raises:
            RepositoryError: The name is not allowed, there is none, or nobody answers.
        """

    def fetch(self, name: str, version: int) -> Path:
        """Copy a version here, unless the copy is there; return its folder.

        Raises:
            RepositoryError: It is gone, or cannot be copied.
        """


def is_registry(models_dir: Path | str) -> bool:
    """Whether a repository is a model of MLflow's registry."""
    return isinstance(models_dir, str) and models_dir.startswith(_REGISTRY)


def is_url(models_dir: Path | str) -> bool:
    """Whether a repository's root is elsewhere."""
    return isinstance(models_dir, str) and ("://" in models_dir or is_registry(models_dir))


@cache
def mirror(url: str, tracking_uri: str = "") -> Elsewhere:
    """Return the one mirror of a repository.

    Args:
        url: Its root; ``models:/name@alias`` or ``models:/name/3`` for MLflow's registry.
        tracking_uri: MLflow's server; MLFLOW_TRACKING_URI's if empty.

    Raises:
        RepositoryError: No package for it is installed, or the address is none.
    """
    if is_registry(url):
        from model_server.mlflow_registry import Registry

        return Registry(url, tracking_uri, Copies.of(f"{tracking_uri} {url}"))
    return Mirror(url, Copies.of(url))


class Mirror:
    """A repository in a file system and the copies of its versions."""

    def __init__(self, url: str, copies: Copies) -> None:
        """Open it.

        Args:
            url: Its root.
            copies: Where versions are copied to.

        Raises:
            RepositoryError: No package for it is installed, or the address is none.
        """
        try:
            import fsspec  # type: ignore[import-untyped, unused-ignore]

            self._files, root = fsspec.core.url_to_fs(url)
        except ImportError as exc:
            raise RepositoryError(
                f"{url} needs fsspec: make setup EXTRA=s3, or pip install 'streamscore[s3]' ({exc})"
            ) from exc
        except ValueError as exc:
            raise RepositoryError(f"{url}: {exc}") from exc
        self._url, self._root, self._copies = url.rstrip("/"), root.rstrip("/"), copies

    def list_versions(self, name: str) -> list[int]:
        """Return the versions of a model; see ``Elsewhere``."""
        check_name(name)
        entries = self._asked(name, lambda folder: self._files.ls(folder, detail=False))
        found = (PurePosixPath(entry).name for entry in entries)
        return sorted(int(entry) for entry in found if is_version(entry))

    def fetch(self, name: str, version: int) -> Path:
        """Copy a version here; see ``Elsewhere``."""
        below = f"{name}/{version}"
        files: dict[str, Any] = self._asked(
            below, lambda folder: self._files.find(folder, detail=True)
        )
        if not files:
            raise RepositoryError(f"{self._url}/{below} has no files")
        relative = {path: _relative(path, f"{self._root}/{below}") for path in files}
        seen = sorted((relative[path], info["size"], _tag(info)) for path, info in files.items())

        def write(draft: Path) -> None:
            for inside in relative.values():
                (draft / inside).parent.mkdir(parents=True, exist_ok=True)
                self._asked(
                    f"{below}/{inside}",
                    lambda source, to=draft / inside: self._files.get_file(source, str(to)),
                )

        return self._copies.get(name, version, seen, write)

    def _asked(self, below: str, ask: Any) -> Any:
        self._files.invalidate_cache()
        try:
            return ask(f"{self._root}/{below}")
        except FileNotFoundError as exc:
            raise RepositoryError(f"{self._url} has no {below}") from exc
        except Exception as exc:  # each file system has exceptions of its own
            reason = str(exc) or type(exc).__name__
            raise RepositoryError(f"cannot read {self._url}/{below}: {reason}") from exc


def _relative(path: str, folder: str) -> str:
    """Return a file's path below a folder; object stores allow any name.

    Raises:
        RepositoryError: It leads out of the folder.
    """
    inside = path.removeprefix("/").removeprefix(folder.removeprefix("/")).lstrip("/")
    if not inside or ".." in PurePosixPath(inside).parts or PurePosixPath(inside).is_absolute():
        raise RepositoryError(f"{path} leads out of {folder}")
    return inside


def _tag(info: dict[str, Any]) -> str:
    return next((str(info[tag]) for tag in _TAGS if info.get(tag)), "")
