"""A short attack on the model server; bench/fuzz.py has the long one."""

from __future__ import annotations

from bench import fuzz
from jobs.exit_codes import ExitCode


def test_every_answer_to_a_mutated_request_is_clean() -> None:
    assert fuzz.main(["--requests", "2000"]) == ExitCode.OK
