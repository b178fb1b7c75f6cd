"""The broker, data and model of the session."""

from __future__ import annotations

from tests.support.fixtures import bootstrap, demo, models

__all__ = ["bootstrap", "demo", "models"]
