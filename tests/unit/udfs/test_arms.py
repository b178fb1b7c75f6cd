"""What a shadow that does not answer gets: nearly nothing."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from model_server.breaker import BreakerOptions, BreakerState
from model_server.client import ClientOptions
from model_server.errors import Timeout
from tests.unit.udfs.test_batch import make_batch
from udfs.scoring.arms import Arms
from udfs.scoring.rollout import Address, Limits, Rollout


@pytest.fixture
def hung() -> Iterator[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"127.0.0.1:{listener.getsockname()[1]}"


async def test_a_shadow_that_hangs_gets_one_copy_at_a_time(
    tmp_path: Path, hung: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 0.0
    path = tmp_path / "rollout.json"
    Rollout("r", "running", None, Address(hung, None, 100.0), Limits()).write(path)
    breaker = BreakerOptions(failure_threshold=2, open_ms=100.0)
    options = ClientOptions("127.0.0.1:1", "fraud", deadline_ms=50.0, breaker=breaker, hedge_ms=9.0)
    arms, batch = Arms(options, path), make_batch(6)
    try:
        found = arms.copies(batch, 3)
        assert found is not None
        shadow, copied = found
        assert (shadow.name, len(copied)) == ("shadow", 6)
        assert (shadow.client.options.max_attempts, shadow.client.options.hedge_ms) == (1, 0.0)
        monkeypatch.setattr(shadow.client._breaker, "_clock", lambda: now_s)
        for _ in range(2):
            with pytest.raises(Timeout):
                await shadow.client.predict(np.zeros((1, 3), np.float32))
        assert shadow.client.breaker_state is BreakerState.OPEN
        assert arms.copies(batch, 0) is None
        now_s = 0.1
        assert arms.copies(batch, 1) is None
        assert arms.copies(batch, 0) is not None
    finally:
        await arms.close()
