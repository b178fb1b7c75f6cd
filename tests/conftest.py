"""What must be so before any test module is imported."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from jobs.environment import BUILD
from tests.support.hidden import shown

# gRPC's fork handlers run in the child between fork and exec. Once, when a test started Flink's
# gateway, the child ended there ("epoll_wait error: Bad file descriptor") and Java never began. No
# test calls gRPC in a forked child.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")


# By default an example may take 200 ms, and ten of them a second to be drawn, which a busy machine
# or a first compilation exceeds.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture(scope="session", autouse=True)
def no_secret_in_a_log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Of what the processes of all tests have written: brokers, clusters, jobs, servers."""
    yield
    assert shown([tmp_path_factory.getbasetemp(), BUILD / "logs", BUILD / "stack" / "logs"]) == []
