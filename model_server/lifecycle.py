"""Which versions ought to be served, and how they come and go.

A model's folder is looked at again every ``poll_s``. A version that its policy asks for is loaded
and warmed up in a thread while the others go on answering; then requests switch to it at once; then
those that are not asked for any more get no new calls, finish what they have, and are closed. So a
model that has had a version has one at every moment.

A version that cannot be loaded is refused and its status says why; what answers stays, and the
version is tried again when its files change, for it may have been half copied.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from model_server import repository, warmup_requests
from model_server.backends.base import Model
from model_server.batching import BatchingOptions
from model_server.errors import ModelError, ModelServerError, RepositoryError
from model_server.mirror import is_url, mirror
from model_server.servables import Servable, Servables, ServableState

__all__ = ["LoadModel", "Manager", "ModelConfig", "VersionPolicy"]

logger = logging.getLogger(__name__)

LoadModel = Callable[[Path, int], Model]
"""Takes a version folder and the threads per call; may block."""

_LOADING_THREADS = 1
"""XGBoost threads of one call: calls are spread over the cores instead."""


@dataclass(frozen=True)
class VersionPolicy:
    """Which of the versions in a folder are served.

    Attributes:
        kind: ``latest`` n, ``all`` or ``specific`` ones.
        count: How many of the latest.
        versions: Which specific ones.

    Raises:
        ValueError: No version can meet it.
    """

    kind: Literal["latest", "all", "specific"] = "latest"
    count: int = 1
    versions: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a policy that no version can meet."""
        if self.count < 1:
            raise ValueError(f"count must be at least 1, is {self.count}")
        if (self.kind == "specific") != bool(self.versions):
            raise ValueError("name versions with kind specific, and only then")

    def choose(self, present: Sequence[int]) -> tuple[int, ...]:
        """Return the versions to serve, ascending.

        Args:
            present: The versions in the folder.
        """
        ordered = sorted(present)
        if self.kind == "latest":
            return tuple(ordered[-self.count :])
        if self.kind == "all":
            return tuple(ordered)
        return tuple(version for version in ordered if version in self.versions)


@dataclass(frozen=True)
class ModelConfig:
    """A model to be served.

    Attributes:
        name: What clients ask for.
        models_dir: Root of its repository; a text such as ``s3://bucket/models`` for one elsewhere,
            or ``models:/name@alias`` for a model of MLflow's registry.
        folder: Its folder there; the name if empty.
        policy: Which of its versions are served.
        labels: Version by label, as {"stable": 3, "canary": 4}.
        batching: How calls are put together.
        load: Loads its version folders; the server's own loader if None.
        tracking_uri: MLflow's server, for its registry; MLFLOW_TRACKING_URI's if empty.
    """

    name: str
    models_dir: Path | str
    folder: str = ""
    policy: VersionPolicy = field(default_factory=VersionPolicy)
    labels: Mapping[str, int] = field(default_factory=dict)
    batching: BatchingOptions = field(default_factory=BatchingOptions)
    load: LoadModel | None = None
    tracking_uri: str = ""

    def list_versions(self) -> list[int]:
        """Return the versions that are there, ascending.

        Raises:
            RepositoryError: The name is not allowed or there is no such folder.
        """
        folder = self.folder or self.name
        if is_url(self.models_dir):
            return mirror(str(self.models_dir), self.tracking_uri).list_versions(folder)
        return repository.list_versions(Path(self.models_dir), folder)

    def find(self, version: int) -> Path:
        """Return the folder of a version; of a repository elsewhere it is copied here first.

        Raises:
            RepositoryError: There is none, or it leads outside the repository.
        """
        folder = self.folder or self.name
        if is_url(self.models_dir):
            return mirror(str(self.models_dir), self.tracking_uri).fetch(folder, version)
        return repository.find_version(Path(self.models_dir), folder, version).path


class Manager:
    """Keeps ``Servables`` in line with the configuration and the folders."""

    def __init__(
        self,
        servables: Servables,
        load_model: LoadModel,
        *,
        on_loaded: Callable[[str, float], None] = lambda _model, _took_s: None,
        on_refused: Callable[[str], None] = lambda _model: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start without a model.

        Args:
            servables: What is kept in line.
            load_model: Loads a version folder.
            on_loaded: Is told a model's name and the seconds that a version took.
            on_refused: Is told the name of a model of which a version is broken.
            clock: Seconds.
        """
        self._servables = servables
        self._load_model = load_model
        self._on_loaded = on_loaded
        self._on_refused = on_refused
        self._clock = clock
        self._configs: dict[str, ModelConfig] = {}
        self._lost_labels: dict[str, object] = {}
        self._broken: dict[tuple[str, int], object] = {}
        self._busy = asyncio.Lock()  # one change at a time

    async def configure(self, configs: Iterable[ModelConfig]) -> None:
        """Serve these models from now on, and then withdraw others; these stay if one fails.

        Raises:
            RepositoryError: A model has no folder or version to serve.
            ModelError: None of a model's versions can be served.
        """
        wanted = {config.name: config for config in configs}
        async with self._busy:
            gone = self._configs.keys() - wanted.keys()
            self._configs |= wanted
            for config in wanted.values():
                self._servables.declare(config.name, config.labels)
            failures: list[ModelServerError] = []
            for config in wanted.values():
                try:
                    await self._align(config)
                except ModelServerError as exc:  # the others must not wait for it
                    failures.append(exc)
            if failures:
                raise failures[0]
            for name in gone:  # last: what takes their place answers by now
                await self._drop(name)

    async def load(self, config: ModelConfig) -> None:
        """Serve one more model, or reload it as this config says.

        Raises:
            RepositoryError: The model has no folder or version to serve.
            ModelError: None of its versions can be served.
        """
        async with self._busy:
            self._servables.declare(config.name, config.labels)
            self._forget_broken(config.name)
            try:
                await self._align(config)
            finally:
                if self._servables.loaded(config.name):
                    self._configs[config.name] = config
                elif config.name not in self._configs:
                    self._servables.forget(config.name)

    async def unload(self, name: str) -> bool:
        """Withdraw a model until it is loaded again; return whether there was one."""
        async with self._busy:
            known = name in self._configs
            await self._drop(name)
            return known

    async def poll(self) -> None:
        """Look at every folder once. What is wrong with one is logged."""
        async with self._busy:
            for config in list(self._configs.values()):
                try:
                    await self._align(config)
                except ModelServerError as exc:
                    logger.warning("event=poll_failed model=%s message=%s", config.name, exc)

    async def poll_forever(self, period_s: float) -> None:
        """Poll until cancelled."""
        while True:
            await asyncio.sleep(period_s)
            try:
                await self.poll()
            except Exception:  # a folder on a sick disk must not end the polling
                logger.exception("event=poll_failed")

    async def _drop(self, name: str) -> None:
        await asyncio.gather(*(self._withdraw(name, v) for v in self._servables.loaded(name)))
        self._forget_broken(name)
        if self._configs.pop(name, None) is not None:
            self._servables.forget(name)

    def _forget_broken(self, name: str) -> None:
        """Try a model's broken versions anew when they are asked for again."""
        self._broken = {key: seen for key, seen in self._broken.items() if key[0] != name}

    async def _align(self, config: ModelConfig) -> None:
        """Load what is asked for and not there, then withdraw what is not asked for.

        Raises:
            RepositoryError: There is no folder or version to serve.
            ModelError: No version is left that answers.
        """
        present = await asyncio.to_thread(config.list_versions)
        wanted = config.policy.choose(present)
        if not wanted and not self._servables.loaded(config.name):
            raise RepositoryError(_nothing_to_serve(config, present))
        failure: ModelServerError | None = None
        for version in reversed(wanted):  # the newest first: it is what most ask for
            if version not in self._servables.loaded(config.name):
                failure = await self._load(config, version) or failure
        if not self._servables.loaded(config.name) and config.policy.kind == "latest":
            for version in sorted(set(present) - set(wanted), reverse=True):
                await self._load(config, version)
                if self._servables.loaded(config.name):  # better an old one than none
                    break
        loaded = self._servables.loaded(config.name)
        if not loaded and failure is not None:
            raise failure
        self._check_labels(config)
        if any(version in wanted for version in loaded):
            old = [version for version in loaded if version not in wanted]
            await asyncio.gather(*(self._withdraw(config.name, version) for version in old))

    def _check_labels(self, config: ModelConfig) -> None:
        """Say once for each state of affairs which labels lead nowhere."""
        loaded = self._servables.loaded(config.name)
        lost = {name: v for name, v in config.labels.items() if v not in loaded}
        if lost and self._lost_labels.get(config.name) != (lost, loaded):
            logger.warning(
                "event=labels_without_version model=%s labels=%s served=%s",
                config.name,
                lost,
                list(loaded),
            )
        self._lost_labels[config.name] = lost, loaded

    async def _load(self, config: ModelConfig, version: int) -> ModelServerError | None:
        """Load, warm up and publish one version; return why not."""
        name, begun_s = config.name, self._clock()
        seen: object = None
        try:
            folder = await asyncio.to_thread(config.find, version)
            seen = await asyncio.to_thread(_fingerprint, folder)
            if (name, version) in self._broken and self._broken[name, version] == seen:
                return None
            self._servables.note(name, version, ServableState.LOADING)
            # In a thread: requests, health and status are answered meanwhile.
            load = config.load or self._load_model
            model = await asyncio.to_thread(_load_warm, load, folder)
        except asyncio.CancelledError:
            self._servables.note(name, version, ServableState.END, "the load was cancelled")
            raise
        except Exception as exc:  # whatever a model's library raises: the others must go on
            error = exc if isinstance(exc, ModelServerError) else _unexpected(config, version, exc)
            self._broken[name, version] = seen
            self._servables.note(name, version, ServableState.END, str(error))
            self._on_refused(name)
            logger.error("event=load_failed model=%s version=%d message=%s", name, version, error)
            return error
        self._broken.pop((name, version), None)
        self._servables.publish(Servable(name, version, model, config.batching))
        took_s = self._clock() - begun_s
        self._on_loaded(name, took_s)
        logger.info("event=loaded model=%s version=%d took_ms=%.0f", name, version, took_s * 1e3)
        return None

    async def _withdraw(self, name: str, version: int) -> None:
        await self._servables.withdraw(name, version)
        logger.info("event=unloaded model=%s version=%d", name, version)


def _load_warm(load: LoadModel, folder: Path) -> Model:
    model = load(folder, _LOADING_THREADS)
    try:
        model.warm_up()
        warmup_requests.replay(model, folder)
    except BaseException:
        model.close()
        raise
    return model


def _nothing_to_serve(config: ModelConfig, present: Sequence[int]) -> str:
    folder = f"{config.models_dir}/{config.folder or config.name}"
    if not present:
        return f"{folder} has no version folder: name one by a number, as 1"
    return f"{folder} has no version {list(config.policy.versions)}: it has {list(present)}"


def _unexpected(config: ModelConfig, version: int, exc: Exception) -> ModelServerError:
    return ModelError(f"model {config.name} version {version}: {type(exc).__name__}: {exc}")


def _fingerprint(folder: Path) -> object:
    """What changes when a file below a folder does."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [(path, stat.st_size, stat.st_mtime_ns) for path in files for stat in [path.stat()]]
