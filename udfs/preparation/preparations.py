"""The preparation of the model version that is asked: a version is given columns that it knows."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from model_server.client import ClientOptions, Scores
from model_server.errors import BadResponse, Rejected, RepositoryError, Timeout
from model_server.repository import list_versions
from udfs.batches.events import FloatArray
from udfs.preparation.encoders import Matrix
from udfs.preparation.preparation import Preparation

__all__ = ["Answer", "Preparations"]

logger = logging.getLogger(__name__)

Ask: TypeAlias = Callable[[Matrix], Awaitable[Scores]]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said, and of what.

    Attributes:
        scores: Its scores.
        matrix: Its input.
        preparation: What made that of the features.
    """

    scores: Scores
    matrix: Matrix
    preparation: Preparation


class Preparations:
    """The preparations of a model's versions, read from their folders when first needed.

    A version whose folder is not here gets what the job started with, as long as that encodes no
    category and adds no column; otherwise nobody knows what the version's columns mean, and it is
    refused.
    """

    def __init__(self, first: Preparation, version_dir: Path | None) -> None:
        """Begin with one version.

        Args:
            first: The preparation that the job starts with.
            version_dir: The folder it is from, the others beside it; none if there is only one.
        """
        self._first = first
        self._folder = None if version_dir is None else version_dir.parent
        self._start = 0 if version_dir is None else int(version_dir.name)
        self._known = {self._start: first, 0: first}  # 0: the server does not say
        self._latest: dict[str, int] = {}

    def of(self, version: int) -> Preparation:
        """A version's preparation.

        Raises:
            RepositoryError: It cannot be told, or is of other features than the job's.
        """
        if version not in self._known:
            self._known[version] = self._read(version)
        return self._known[version]

    def _read(self, version: int) -> Preparation:
        if self._folder is None:
            return self._first
        try:
            found = Preparation.load(self._folder / str(version))
            if found.names != self._first.names or found.categories != self._first.categories:
                raise RepositoryError(
                    f"version {version} was trained with other features than the job's: "
                    "train it with the job's settings"
                )
        except RepositoryError as exc:
            if not self._first.is_plain:
                raise
            logger.warning("version %d gets the start's imputed values: %s", version, exc)
            return self._first
        return found

    async def predict(self, ask: Ask, options: ClientOptions, features: FloatArray) -> Answer:
        """Ask for scores, a second time if a version with other columns turns out to answer.

        Without a pinned version a server may go over to a newer one at any moment. Which one
        answered is only known afterwards, unless it refuses the old one's columns.

        Args:
            ask: Makes the call.
            options: Whose call it is.
            features: float64 (n, features).

        Raises:
            PredictError: One of its subclasses.
        """
        begun_s, used = time.monotonic(), await self._wanted(options)
        matrix = used.transform(features)
        try:
            scores = await ask(matrix)
            own = await self._answered(options, scores.model_version)
        except Rejected:
            own = await self._newest(options)
            if own.is_like(used):
                raise
        else:
            if own.is_like(used):
                return Answer(scores, matrix, used)
        matrix, left_s = own.transform(features), options.deadline_ms / 1_000.0
        left_s -= time.monotonic() - begun_s
        try:
            async with asyncio.timeout(left_s):
                scores = await ask(matrix)
        except TimeoutError as exc:
            raise Timeout("no time is left to ask a version with other columns") from exc
        if not (await self._answered(options, scores.model_version)).is_like(own):
            raise BadResponse("versions with different columns answer by turns")
        return Answer(scores, matrix, own)

    async def _wanted(self, options: ClientOptions) -> Preparation:
        """The preparation of the version that a call is expected to reach."""
        version = options.model_version or self._latest.get(options.target, self._start)
        return await self._loaded(version, Rejected)

    async def _answered(self, options: ClientOptions, version: int) -> Preparation:
        """The preparation of the version that answered; the next call expects that one."""
        found = await self._loaded(version, BadResponse)
        self._latest[options.target] = version
        return found

    async def _newest(self, options: ClientOptions) -> Preparation:
        """The preparation of the newest version here, for a call that names none."""
        if options.model_version is not None or self._folder is None:
            return await self._wanted(options)
        try:
            versions = list_versions(self._folder.parent, self._folder.name)
        except RepositoryError as exc:
            raise Rejected(str(exc)) from exc
        return await self._loaded(max(versions, default=self._start), Rejected)

    async def _loaded(self, version: int, error: type[Rejected | BadResponse]) -> Preparation:
        known = self._known.get(version)
        if known is not None:
            return known
        try:
            return await asyncio.to_thread(self.of, version)
        except RepositoryError as exc:
            raise error(str(exc)) from exc
