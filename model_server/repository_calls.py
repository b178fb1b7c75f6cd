"""Loading, unloading and reconfiguring models on request, on the admin ports alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from model_server.errors import (
    AdminNotAllowed,
    LoadFailed,
    ModelServerError,
    RequestRefused,
    ServableNotFound,
)
from model_server.lifecycle import ModelConfig

__all__ = ["Changes", "RepositoryCalls"]


class Changes(Protocol):
    """What can be changed: ``lifecycle.Manager``, or those of several processes."""

    async def configure(self, configs: Iterable[ModelConfig]) -> None:
        """Serve these models and no others."""

    async def load(self, config: ModelConfig) -> None:
        """Serve one more model, or look for its new versions."""

    async def unload(self, name: str) -> bool:
        """Withdraw a model; return whether there was one."""


class RepositoryCalls:
    """Load and unload, if the server's settings allow them."""

    def __init__(self, manager: Changes, known: tuple[ModelConfig, ...], *, allowed: bool) -> None:
        """Act on ``manager``.

        Args:
            manager: Loads and unloads.
            known: The models of the settings, which alone may be loaded.
            allowed: Whether anybody may.
        """
        self._manager = manager
        self._known = {config.name: config for config in known}
        self._allowed = allowed

    async def load(self, name: str) -> None:
        """Load a model, or look for its new versions now.

        Raises:
            AdminNotAllowed: Such calls are off.
            ServableNotFound: The settings have no such model.
            LoadFailed: Its files cannot be served.
        """
        self._check_allowed()
        config = self._known.get(name)
        if config is None:
            raise ServableNotFound(f"Model {name} not found")
        try:
            await self._manager.load(config)
        except RequestRefused:
            raise
        except ModelServerError as exc:
            raise LoadFailed(str(exc)) from exc

    async def unload(self, name: str) -> None:
        """Withdraw a model until it is loaded again.

        Raises:
            AdminNotAllowed: Such calls are off.
            ServableNotFound: No such model is served.
        """
        self._check_allowed()
        if not await self._manager.unload(name):
            raise ServableNotFound(f"Model {name} not found")

    async def configure(self, configs: tuple[ModelConfig, ...]) -> None:
        """Serve these models from now on, and no others.

        Raises:
            AdminNotAllowed: Such calls are off.
            LoadFailed: The files of one cannot be served; the others are.
        """
        self._check_allowed()
        self._known = {config.name: config for config in configs}
        try:
            await self._manager.configure(configs)
        except ModelServerError as exc:
            raise LoadFailed(str(exc)) from exc

    def _check_allowed(self) -> None:
        if not self._allowed:
            raise AdminNotAllowed(
                "models are loaded, unloaded and configured on the admin port only: start the "
                "server with one"
            )
