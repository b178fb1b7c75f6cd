"""The generated messages, and the service they make."""

from __future__ import annotations

from typing import Any

import grpc  # type: ignore[import-untyped, unused-ignore]

from model_server.oip import open_inference_pb2 as _pb2

__all__ = ["INFERENCE_SERVICE", "add_inference_service", "message", "stub"]

_SERVICE: Any = _pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]

#: Full service name, as health and reflection use it.
INFERENCE_SERVICE: str = _SERVICE.full_name


def message(name: str) -> Any:
    """Return a message class, as ``message("ModelInferRequest")``."""
    return getattr(_pb2, name)


def add_inference_service(servicer: object, server: Any) -> None:
    """Serve an object that has an async method for every call of the service."""
    handlers = {
        method.name: grpc.unary_unary_rpc_method_handler(
            getattr(servicer, method.name),
            request_deserializer=message(method.input_type.name).FromString,
            response_serializer=message(method.output_type.name).SerializeToString,
        )
        for method in _SERVICE.methods
    }
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(INFERENCE_SERVICE, handlers),)
    )


def stub(channel: Any, method_name: str) -> Any:
    """Return one call of the service on a channel."""
    method = _SERVICE.methods_by_name[method_name]
    return channel.unary_unary(
        f"/{INFERENCE_SERVICE}/{method_name}",
        request_serializer=message(method.input_type.name).SerializeToString,
        response_deserializer=message(method.output_type.name).FromString,
    )
