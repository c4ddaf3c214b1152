"""Failed connects: the fault of the engine, or of the gateway itself."""

import asyncio
import errno
import socket
import ssl
from dataclasses import replace

import pytest

from fairlead.engines.credentials import EngineCredentials
from fairlead.fleet.endpoint_resolver import EndpointResolver
from fairlead.fleet.model import Fleet, Instance
from fairlead.limits import Limits
from fairlead_gateway.resilience.worker.retry import AttemptFailure, to_client_error
from fairlead_gateway.telemetry.status_types import HealthState
from fairlead_gateway.upstream.connection import (
    LOCAL_CAUSES,
    UpstreamError,
    connect_error,
    is_exhaustion,
)
from fairlead_gateway.upstream.connection_pool import ConnectionPool
from fairlead_testing.engines.scripted import responds, scripted_engine, silent
from fairlead_testing.gateway.recording_sink import RecordingSink
from fairlead_testing.gateway.running_gateway import (
    fleet_of,
    gateway_before,
    running_gateway,
)
from fairlead_testing.http.raw_client import RawConnection, post_request
from fairlead_testing.processes import no_descriptors
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.sockets


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), "refused"),
        (OSError(errno.EHOSTUNREACH, "no route"), "refused"),
        (OSError(errno.ENETUNREACH, "no network"), "refused"),
        (ConnectionResetError("in the TLS handshake"), "refused"),
        (OSError(errno.ETIMEDOUT, "timed out"), "connect-timeout"),
        (OSError("Multiple exceptions: [Errno 111] to ::1, [Errno 24] Too many open files"), "refused"),
        (OSError(errno.EMFILE, "too many open files"), "gateway-full"),
        (OSError(errno.ENFILE, "too many open files in system"), "gateway-full"),
        (OSError(errno.EADDRNOTAVAIL, "no port"), "gateway-full"),
        (OSError(errno.ENOMEM, "no memory"), "gateway-full"),
        (OSError("Multiple exceptions: [Errno 99] to ::1, [Errno 99] to 127.0.0.1"), "gateway-full"),
        (socket.gaierror(socket.EAI_NONAME, "unknown name"), "unresolved"),
        (OSError(errno.EPERM, "a local firewall"), "gateway-error"),
        (OSError("getaddrinfo() returned empty list"), "gateway-error"),
    ],
)
def test_failed_connects_are_the_engines_fault_or_the_gateways(error: OSError, cause: str) -> None:
    failure = connect_error(error)
    assert (failure.cause, failure.was_sent, failure.is_crash) == (cause, False, False)
    assert (failure.cause in LOCAL_CAUSES) is (cause not in ("refused", "connect-timeout"))


def test_only_the_lack_of_resources_counts_as_exhaustion() -> None:
    assert is_exhaustion(OSError(errno.EMFILE, ""))
    assert not is_exhaustion(OSError(errno.ENOENT, ""))
    assert not is_exhaustion(ssl.SSLError("no certificate"))
    assert not is_exhaustion(None)


def test_a_connect_that_fails_locally_is_answered_503_with_retry_after() -> None:
    error = to_client_error([AttemptFailure("status-500"), AttemptFailure("gateway-full", was_sent=False)], 4)
    assert (error.status, error.code, error.headers) == (503, "overloaded", (("retry-after", "4"),))
    assert "2 engines tried, last: gateway-full" in str(error)


async def test_shortage_of_descriptors_ejects_no_engine_and_is_answered_503() -> None:
    async with gateway_before([responds({"object": "chat.completion", "choices": [{"index": 0}]})] * 4) as running:
        client = await RawConnection.connect(running.url)
        with no_descriptors():
            for number in range(20):
                body = {"model": "tiny", "messages": [{"role": "user", "content": (f"{number} " * 300)}]}
                await client.send(post_request(body, close=False))
                answer = await client.read_response()
                assert (answer.status, answer.error["code"]) == (503, "overloaded")
                assert int(answer.fields["retry-after"]) >= 1
        describe = running.gateway.stages.failures.describe
        assert {describe(f"e-{n}/{n}/0")[0] for n in range(4)} == {HealthState.HEALTHY}
        await client.send(post_request({"model": "tiny", "messages": [{"role": "user", "content": "now"}]}))
        assert (await client.read_response()).status == 200
        await client.close()


async def test_shortage_of_descriptors_gives_up_no_silent_stream() -> None:
    loop = asyncio.get_running_loop()
    pool = ConnectionPool(Limits(), loop, EngineCredentials({}, loop.time))
    async with scripted_engine(silent) as engine:
        sink, connection = RecordingSink(waits=True), await pool.connect(engine.url)
        connection.send_request([b"GET / HTTP/1.1\r\n\r\n"], sink, 60.0)
        await wait_until(lambda: bool(engine.calls))
        with no_descriptors():
            pool.probe_listening(connection)
            await wait_until(lambda: not pool._probes)
        assert sink.ended == []
        connection.abort()
        pool.close()


async def test_a_name_that_cannot_be_resolved_ejects_no_engine() -> None:
    async with scripted_engine() as engine:
        urls = ["http://engine.invalid:1", engine.url]
        async with running_gateway(fleet_of(urls, preset="round-robin")) as running:
            client = await RawConnection.connect(running.url)
            for number in range(10):
                body = {"model": "tiny", "messages": [{"role": "user", "content": f"{number} " * 300}]}
                await client.send(post_request(body, close=False))
                assert (await client.read_response()).status == 200
            assert running.gateway.stages.failures.describe("e-0/0/0")[0] is HealthState.HEALTHY
            await client.close()


async def test_a_name_that_is_not_resolved_in_time_is_not_the_engines_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(resolver: EndpointResolver, host: str, port: int) -> str:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(EndpointResolver, "resolve", never)
    loop = asyncio.get_running_loop()
    credentials = EngineCredentials({}, loop.time)
    instance = Instance("i", "x", "tiny", "main", "http://slow.example:80", checks_address=True)
    credentials.update_fleet(Fleet(1, 1, {}, {"x/tiny": (instance,)}))
    pool = ConnectionPool(replace(Limits(), connect_seconds=0.0), loop, credentials)
    with pytest.raises(UpstreamError, match="unresolved"):
        await pool.connect(instance.url)
