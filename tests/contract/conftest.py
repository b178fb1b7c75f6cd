"""The session's broker, for what reads topics without a job."""

from __future__ import annotations

from tests.support.fixtures import bootstrap

__all__ = ["bootstrap"]
