"""The broker, data and model of the session; the first job starts the one JVM."""

from __future__ import annotations

import os

from jobs import runner
from jobs.environment import QUICK_JVM
from tests.support.fixtures import bootstrap, demo, make_settings, models

__all__ = ["bootstrap", "demo", "make_settings", "models"]

# At once: a test of another folder may start this process' JVM before one of these does.
os.environ.setdefault("JVM_ARGS", QUICK_JVM)
runner.prepare()
