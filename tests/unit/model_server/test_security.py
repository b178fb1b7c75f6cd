"""TLS, client certificates and the token, on both kinds of ports."""

from __future__ import annotations

import asyncio
import datetime as dt
import ssl
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import numpy as np
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from model_server.client import ClientOptions, PredictClient
from model_server.endpoints import ChannelSecurity
from model_server.errors import Rejected, StartupError, Unavailable
from model_server.oip.messages import message, stub
from model_server.protos import PredictionServiceStub
from model_server.security import TlsOptions
from tests.support.hidden import TOKEN

ROWS = np.zeros((1, 5), np.float32)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def identity(authority: trustme.CA, tmp_path: Path) -> TlsOptions:
    issued = authority.issue_cert("127.0.0.1")
    certificate, key = tmp_path / "server.crt", tmp_path / "server.key"
    for blob in issued.cert_chain_pems:
        blob.write_to_path(certificate, append=True)
    issued.private_key_pem.write_to_path(key)
    return TlsOptions(certificate, key)


def grpc_channel(port: int, authority: trustme.CA, client: Any = None) -> grpc.aio.Channel:
    credentials = grpc.ssl_channel_credentials(
        authority.cert_pem.bytes(),
        client.private_key_pem.bytes() if client else None,
        client.cert_chain_pems[0].bytes() if client else None,
    )
    return grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials)


def http_context(authority: trustme.CA, client: Any = None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    if client:
        client.configure_cert(context)
    return context


async def test_tls(
    serving: Any, predict_request: Any, authority: trustme.CA, identity: TlsOptions
) -> None:
    async with (
        serving(tls=identity) as running,
        grpc_channel(running.port, authority) as channel,
        aiohttp.ClientSession() as web,
    ):
        await PredictionServiceStub(channel).Predict(predict_request(ROWS))
        url = f"https://127.0.0.1:{running.ports.http}/v2/health/ready"
        async with web.get(url, ssl=http_context(authority)) as response:
            assert response.status == 200
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await web.get(url)


async def test_clients_must_show_a_certificate_if_asked(
    serving: Any,
    predict_request: Any,
    authority: trustme.CA,
    identity: TlsOptions,
    tmp_path: Path,
) -> None:
    signers = tmp_path / "clients.crt"
    authority.cert_pem.write_to_path(signers)
    mutual = TlsOptions(identity.certificate, identity.key, signers)
    client = authority.issue_cert("client")
    async with serving(tls=mutual) as running, aiohttp.ClientSession() as web:
        url = f"https://127.0.0.1:{running.ports.http}/v2/health/ready"
        async with grpc_channel(running.port, authority, client) as channel:
            await PredictionServiceStub(channel).Predict(predict_request(ROWS))
        async with web.get(url, ssl=http_context(authority, client)) as response:
            assert response.status == 200
        async with grpc_channel(running.port, authority) as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await PredictionServiceStub(channel).Predict(predict_request(ROWS))
        with pytest.raises(aiohttp.ClientError):
            async with web.get(url, ssl=http_context(authority)) as response:
                await response.read()


async def test_identity_that_cannot_be_read_stops_the_start(serving: Any, tmp_path: Path) -> None:
    missing = TlsOptions(tmp_path / "none.crt", tmp_path / "none.key")
    with pytest.raises(StartupError, match="none"):
        async with serving(tls=missing):
            pass
    with pytest.raises(StartupError, match="none"):
        missing.for_http()


@pytest.mark.parametrize(
    ("header", "right"),
    [
        (f"Bearer {TOKEN}", True),
        ("Bearer other", False),
        (TOKEN, False),
        ("Bearer ", False),
        (None, False),
    ],
)
async def test_token(serving: Any, predict_request: Any, header: str | None, right: bool) -> None:
    metadata = (("authorization", header),) if header is not None else ()
    headers = {"Authorization": header} if header is not None else {}
    async with (
        serving(token=TOKEN) as running,
        grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel,
        aiohttp.ClientSession(f"http://127.0.0.1:{running.ports.http}") as web,
    ):
        health = health_pb2_grpc.HealthStub(channel)
        await health.Check(health_pb2.HealthCheckRequest())
        call = PredictionServiceStub(channel).Predict(predict_request(ROWS), metadata=metadata)
        if right:
            await call
        else:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        async with web.get("/v1/models/fraud", headers=headers) as response:
            assert response.status == (200 if right else 401)
        async with web.get("/v2/health/ready") as response:
            assert response.status == 200


async def test_reflection_needs_the_token_too(serving: Any) -> None:
    async with (
        serving(token=TOKEN) as running,
        grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel,
    ):
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in stub.ServerReflectionInfo(iter([request])):
                pass
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_our_client_by_tls_with_certificate_and_token(
    serving: Any, authority: trustme.CA, identity: TlsOptions, tmp_path: Path
) -> None:
    ca, pair = tmp_path / "ca.pem", tmp_path / "client.pem"
    authority.cert_pem.write_to_path(ca)
    authority.issue_cert("job").private_key_and_cert_chain_pem.write_to_path(pair)
    ended = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
    expired, strangers = tmp_path / "expired.pem", tmp_path / "stranger.pem"
    late = authority.issue_cert("job", not_after=ended)
    late.private_key_and_cert_chain_pem.write_to_path(expired)
    stranger, other = trustme.CA(), tmp_path / "other.pem"
    stranger.cert_pem.write_to_path(other)
    stranger.issue_cert("job").private_key_and_cert_chain_pem.write_to_path(strangers)
    tls = replace(identity, client_ca=ca)
    known = ChannelSecurity(tls=True, ca=ca, certificate=pair, key=pair)
    cases = [
        (known, TOKEN, None),
        (known, "wrong", Rejected),
        (ChannelSecurity(tls=True, ca=ca), TOKEN, Unavailable),
        (replace(known, certificate=expired, key=expired), TOKEN, Unavailable),
        (replace(known, certificate=strangers, key=strangers), TOKEN, Unavailable),
        (replace(known, ca=other), TOKEN, Unavailable),
        (ChannelSecurity(tls=True), TOKEN, Unavailable),
        (replace(known, server_name="other"), TOKEN, Unavailable),
        (ChannelSecurity(), TOKEN, Unavailable),
        (replace(known, ca=tmp_path / "gone.pem"), TOKEN, Unavailable),
    ]
    async with serving(tls=tls, token=TOKEN) as running:
        for security, token, expected in cases:
            target = f"127.0.0.1:{running.port}"
            options = ClientOptions(
                target, "fraud", deadline_ms=5_000.0, max_attempts=1, security=security, token=token
            )
            client = PredictClient(options)
            try:
                if expected is None:
                    assert len((await client.predict(ROWS)).values) == 1
                else:
                    with pytest.raises(expected):
                        await client.predict(ROWS)
            finally:
                await client.close()


async def test_a_header_that_is_no_text_is_refused_like_any_other(serving: Any) -> None:
    async with serving(token=TOKEN) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.ports.http)
        writer.write(b"GET /v2 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer \xff\r\n\r\n")
        assert (await reader.readline()).split()[1] == b"401"
        writer.close()


async def test_health_needs_no_token_by_either_protocol(serving: Any) -> None:
    async with serving(token=TOKEN) as running:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel:
            assert (await stub(channel, "ServerLive")(message("ServerLiveRequest")())).live
            assert (await stub(channel, "ServerReady")(message("ServerReadyRequest")())).ready
            with pytest.raises(grpc.aio.AioRpcError):
                await stub(channel, "ServerMetadata")(message("ServerMetadataRequest")())
        async with aiohttp.ClientSession(f"http://127.0.0.1:{running.ports.http}") as web:
            assert (await web.get("/v2/health/ready")).status == 200
