"""What must be so before any test module is imported."""

from __future__ import annotations

import os

# gRPC's fork handlers run in the child between fork and exec. Once, when a test started Flink's
# gateway, the child ended there ("epoll_wait error: Bad file descriptor") and Java never began. No
# test calls gRPC in a forked child.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
