"""Ports that are given out before anyone listens on them."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs import ports


@pytest.fixture
def outgoing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file of the kernel's range, for the test to write."""
    monkeypatch.setattr(ports, "_OUTGOING", tmp_path / "ip_local_port_range")
    ports._candidates.cache_clear()
    yield tmp_path / "ip_local_port_range"
    ports._candidates.cache_clear()


def test_each_is_another_and_below_those_of_outgoing_connections(outgoing: Path) -> None:
    outgoing.write_text("32768\t60999\n")
    given = [ports.free_port() for _ in range(200)]
    assert len(set(given)) == 200
    assert all(10_000 <= port < 32_768 for port in given)


def test_one_that_is_listened_on_is_passed_over(outgoing: Path) -> None:
    outgoing.write_text("32768\t60999\n")
    with socket.socket() as taken:
        for _ in range(100):
            following = ports.free_port() + 1
            try:
                taken.bind((ports.HOST, following))
            except OSError:  # someone else's, or the range's end
                continue
            break
        taken.listen()
        assert not ports.is_free(following)
        assert following not in [ports.free_port() for _ in range(10)]


def test_one_that_is_asked_for_otherwise_is_passed_over(outgoing: Path) -> None:
    outgoing.write_text("32768\t60999\n")
    wanted = ports.free_port() + 1
    assert wanted not in [ports.free_port(other_than=wanted) for _ in range(10)]


@pytest.mark.parametrize("known", [None, "", "1024\t65535\n", "10999\t65535\n"])
def test_without_room_below_them_the_kernel_chooses(outgoing: Path, known: str | None) -> None:
    if known is not None:
        outgoing.write_text(known)
    assert ports.is_free(ports.free_port())
    assert next(ports._candidates()) == 0
