"""A model that is a Python class of the user's, named in the server's settings.

The class is imported, never unpickled. It has what ``Model`` asks for, ``load(version_dir,
threads=1)`` among it; subclassing ``Tabular`` leaves only ``predict``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from model_server.backends.base import Model
from model_server.errors import ModelError, ModelServerError

__all__ = ["loader"]


def loader(reference: str) -> Callable[[Path, int], Model]:
    """Return what loads version folders by a class.

    Args:
        reference: ``package.module:Class``.

    Raises:
        ModelError: It cannot be imported or has no ``load``.
    """
    module_name, colon, class_name = reference.partition(":")
    if not colon or not module_name or not class_name:
        raise ModelError(f"{reference!r} is no class: write package.module:Class")
    try:
        found: Any = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as exc:
        raise ModelError(f"cannot import {reference}: {exc}") from exc
    if not callable(getattr(found, "load", None)):
        raise ModelError(f"{reference} has no load(version_dir, threads=1)")
    return partial(_load, reference, found)


def _load(reference: str, found: Any, version_dir: Path, threads: int) -> Model:
    try:
        model = found.load(version_dir, threads=threads)
    except ModelServerError:
        raise
    except Exception as exc:
        raise ModelError(f"{reference}.load failed: {type(exc).__name__}: {exc}") from exc
    if not isinstance(model, Model):
        raise ModelError(f"{reference}.load returned {type(model).__name__}, which is no Model")
    return model
