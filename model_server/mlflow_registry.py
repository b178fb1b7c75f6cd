"""A model of MLflow's registry: ``models:/name@alias`` or ``models:/name/3``.

MLflow's client, an extra, asks where the alias points and downloads; what the version's files mean
is ``mlflow_layout``'s. Nothing of MLflow's ever loads the model.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from model_server import mlflow_layout
from model_server.copies import Copies
from model_server.errors import RepositoryError
from model_server.repository import check_name

__all__ = ["Registry"]

_ADDRESS = re.compile(
    r"models:/(?P<name>[^/@]+)(@(?P<alias>[^/@]+)|/(?P<version>[1-9][0-9]{0,17}))"
)
# The next look tries again: one attempt must not hold up the other models for minutes.
_CLIENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}

_Answer = TypeVar("_Answer")


class Registry:
    """The version that an alias points at now, or one version. For one thread at a time."""

    def __init__(self, address: str, tracking_uri: str, copies: Copies) -> None:
        """Open it; MLflow's tracking URI is then this one in the whole process.

        Args:
            address: ``models:/name@alias`` or ``models:/name/3``.
            tracking_uri: MLflow's server; MLFLOW_TRACKING_URI's if empty.
            copies: Where versions are copied to.

        Raises:
            RepositoryError: The client is not installed, the address is none, or no server known.
        """
        match = _ADDRESS.fullmatch(address)
        if match is None:
            raise RepositoryError(f"{address} must be as models:/name@alias or models:/name/3")
        self._address, self._name, self._alias = address, match["name"], match["alias"]
        self._version = int(match["version"] or 0)
        self._copies = copies
        tracking_uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", "")
        if not tracking_uri:
            raise RepositoryError(
                f"{address}: say where MLflow is, by mlflow_tracking_uri or MLFLOW_TRACKING_URI"
            )
        for name, value in _CLIENT.items():
            os.environ.setdefault(name, value)
        try:
            import mlflow
            import mlflow.artifacts
        except ImportError as exc:
            raise RepositoryError(
                f"{address} needs MLflow's client: make setup EXTRA=mlflow, or "
                f"pip install 'streamscore[mlflow]' ({exc})"
            ) from exc
        mlflow.set_tracking_uri(tracking_uri)  # what its downloads go by
        self._download = mlflow.artifacts.download_artifacts
        self._client = mlflow.MlflowClient(tracking_uri)
        self._tracking_uri = tracking_uri

    def list_versions(self, name: str) -> list[int]:
        """Return the one version that is meant; see ``Elsewhere``."""
        check_name(name)
        if self._alias:
            found = self._asked(
                lambda: self._client.get_model_version_by_alias(self._name, self._alias)
            )
            return [int(found.version)]
        return [int(self._described(self._version).version)]

    def fetch(self, name: str, version: int) -> Path:
        """Copy a version here and lay it out; see ``Elsewhere``."""
        said = self._described(version)
        if said.status != "READY":
            raise RepositoryError(f"{self._at(version)} is {said.status}: {said.status_message}")
        # A model that was deleted and registered anew has the same numbers again.
        state = (said.source, said.run_id, said.creation_timestamp)
        return self._copies.get(name, version, state, lambda draft: self._write(version, draft))

    def _write(self, version: int, draft: Path) -> None:
        address = self._at(version)
        with tempfile.TemporaryDirectory(dir=draft.parent) as folder:
            # First what it is: a pickle of gigabytes need not come here to be refused.
            said = self._fetched(f"{address}/{mlflow_layout.MLMODEL}", folder)
            description = mlflow_layout.read(said, address)
            mlflow_layout.check(description, address)
            files = self._fetched(address, folder)
            mlflow_layout.lay_out(description, files, draft, address)

    def _fetched(self, address: str, folder: str) -> Path:
        return Path(
            self._asked(
                lambda: self._download(
                    artifact_uri=address,
                    dst_path=tempfile.mkdtemp(dir=folder),
                    tracking_uri=self._tracking_uri,
                )
            )
        )

    def _described(self, version: int) -> Any:
        return self._asked(lambda: self._client.get_model_version(self._name, str(version)))

    def _at(self, version: int) -> str:
        return f"models:/{self._name}/{version}"

    def _asked(self, ask: Callable[[], _Answer]) -> _Answer:
        try:
            return ask()
        except Exception as exc:  # MLflow's, and those of the stores behind it
            reason = str(exc).splitlines()[0] if str(exc) else type(exc).__name__
            raise RepositoryError(f"cannot read {self._address}: {reason}") from exc
