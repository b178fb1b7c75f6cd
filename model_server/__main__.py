"""``python -m model_server``: serve one model of a repository."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from model_server import logs
from model_server.mirror import is_url
from model_server.options import ServerOptions
from model_server.server import serve

_EXIT_USAGE = 2


def _models_dir(text: str) -> Path | str:
    return text if is_url(text) else Path(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m model_server",
        description="Serve one model over TensorFlow Serving's API and the Open Inference "
        "Protocol. `streamscore serve` serves several, with more settings.",
    )
    add = parser.add_argument
    defaults = ServerOptions
    add("--models-dir", type=_models_dir, required=True,
        help="root of the model repository: a folder, s3://bucket/models, or models:/name@alias "
        "or models:/name/3 of the MLflow registry at MLFLOW_TRACKING_URI")  # fmt: skip
    add("--model-name", required=True, help="folder in it, and the name clients ask for")
    add("--model-version", type=int, help="version to serve (default: the newest)")
    add("--poll-s", type=float, default=defaults.poll_s,
        help="seconds between two looks for new versions, 0 for none (%(default)s)")  # fmt: skip
    add("--host", default=defaults.host, help="address to listen on (%(default)s)")
    add("--port", type=int, default=defaults.port, help="port, 0 for a free one (%(default)s)")
    add("--http-port", type=int,
        help="port of HTTP, 0 for a free one (default: no HTTP)")  # fmt: skip
    add("--admin-port", type=int,
        help="gRPC port on which models may be loaded and unloaded (default: none)")  # fmt: skip
    add("--admin-http-port", type=int, help="the same for HTTP")
    add("--max-message-bytes", type=int, default=defaults.max_message_bytes,
        help="largest request or response in bytes (%(default)s)")  # fmt: skip
    add("--max-concurrent-rpcs", type=int, default=defaults.max_concurrent_rpcs,
        help="calls at work at once (%(default)s)")  # fmt: skip
    add("--grace-s", type=float, default=defaults.grace_s,
        help="seconds for calls in flight on stop (%(default)s)")  # fmt: skip
    add("--threads", type=int, default=defaults.threads,
        help="large batches worked on at once (%(default)s)")  # fmt: skip
    add("--workers", type=int, default=defaults.workers,
        help="processes that share the ports (%(default)s)")  # fmt: skip
    add("--metrics-port", type=int, help="port of HTTP for Prometheus alone (default: none)")
    add("--model-python", default=defaults.model_python,
        help="interpreter that SavedModels and PyTorch run in (default: this one)")  # fmt: skip
    add("--log-format", choices=("text", "json"), default="text",
        help="of the log on stderr (%(default)s)")  # fmt: skip
    add("--log-calls", action="store_true", help="log every call")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Parse arguments and serve; print ``ready port=<port>`` and other open ports when SERVING.

    Returns:
        0 after a drain, 1 when the server could not start, 2 for wrong arguments.
    """
    given = vars(_parser().parse_args(argv))
    try:
        options = ServerOptions.of_one_model(
            given.pop("models_dir"), given.pop("model_name"), given.pop("model_version"), **given
        )
    except ValueError as exc:
        print(f"model_server: {exc}", file=sys.stderr)
        return _EXIT_USAGE
    logs.configure(options.log_format)
    return serve(options, on_ready=lambda ports: print(f"ready {ports}", flush=True))


if __name__ == "__main__":
    sys.exit(main())
