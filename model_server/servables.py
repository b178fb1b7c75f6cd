"""Which model versions the server knows, and whether they can be asked yet.

Refusals use TensorFlow Serving's words, as people search for them. One answer differs on purpose:
a model that is still loading is UNAVAILABLE, which clients retry, not NOT_FOUND.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from model_server.backends.base import Model
from model_server.errors import ServableNotFound, ServableNotReady

__all__ = ["Servable", "ServableState", "Servables"]


class ServableState(Enum):
    """Life of a version; the names are ModelVersionStatus.State's."""

    LOADING = "LOADING"
    AVAILABLE = "AVAILABLE"
    UNLOADING = "UNLOADING"
    END = "END"


@dataclass(frozen=True)
class Servable:
    """One loaded version of a model."""

    name: str
    version: int
    model: Model


class Servables:
    """The model of this server: one name, one version at a time."""

    def __init__(self, name: str) -> None:
        """Start without a version."""
        self.name = name
        self._servable: Servable | None = None
        self._versions: dict[int, ServableState] = {}

    def loading(self, version: int) -> None:
        """Note that a version is being loaded."""
        self._versions[version] = ServableState.LOADING

    def failed(self, version: int) -> None:
        """Note that a version could not be loaded."""
        self._versions[version] = ServableState.END

    def publish(self, servable: Servable) -> None:
        """Answer requests with this version from now on."""
        self._servable = servable
        self._versions[servable.version] = ServableState.AVAILABLE

    def retire(self) -> None:
        """Note that the server is stopping; calls in flight are still answered."""
        if self._servable is not None:
            self._versions[self._servable.version] = ServableState.UNLOADING

    def find(self, name: str, version: int | None) -> Servable:
        """Return the version that a request names; any when ``version`` is None.

        Raises:
            ServableNotFound: Another model or version.
            ServableNotReady: It is still loading.
        """
        if name != self.name or (version is not None and version not in self._versions):
            wanted = f"Latest({name})" if version is None else f"Specific({name}, {version})"
            raise ServableNotFound(f"Servable not found for request: {wanted}")
        if self._servable is None:
            raise ServableNotReady(f"model {name} is still loading")
        return self._servable

    def states(self, name: str, version: int | None) -> dict[int, ServableState]:
        """Return the state of one version, or of all when ``version`` is None.

        Raises:
            ServableNotFound: Another model or version.
        """
        versions = self._versions if name == self.name else {}
        if version is None and versions:
            return dict(versions)
        if version in versions:
            return {version: versions[version]}
        if version is None:
            raise ServableNotFound(f"Could not find any versions of model {name}")
        raise ServableNotFound(f"Could not find version {version} of model {name}")
