"""The simulated event loop: its time, connections and threads, and what it reports."""

import asyncio
import socket
import threading

import httpx
import pytest

from fairlead_testing.engines.scripted import scripted_engine
from fairlead_testing.http.raw_client import RawConnection
from fairlead_testing.http.scripted_servers import tcp_server
from fairlead_testing.pytest_hooks.coroutine_tests import REAL_LOOPS
from fairlead_testing.simulated.event_loop import MAX_TURNS, SimulatedLoop, run_simulated, running_clock

BODY = {"model": "tiny"}


def test_an_hour_passes_at_once() -> None:
    async def main() -> None:
        clock = running_clock()
        before = clock.now(), clock.wall()
        await asyncio.sleep(3_600.0)
        assert 3_600.0 < clock.now() - before[0] < 3_601.0
        assert 3_600.0 < clock.wall() - before[1] < 3_601.0

    run_simulated(main())


def test_servers_have_ports_of_the_loop_alone() -> None:
    async def main() -> None:
        async with scripted_engine() as first, scripted_engine(host="::1") as second, httpx.AsyncClient() as client:
            assert first.url != second.url
            assert (await client.post(first.url, json=BODY)).status_code == 200
            assert (await client.post(second.url, json=BODY)).status_code == 200
            with pytest.raises(OSError, match="in use"):
                await asyncio.start_server(lambda *_: None, "127.0.0.1", int(first.url.rpartition(":")[2]))
            with pytest.raises(ConnectionRefusedError), socket.socket() as outside:
                outside.connect(("127.0.0.1", int(first.url.rpartition(":")[2])))
        with pytest.raises(ConnectionRefusedError):
            await RawConnection.connect(first.url)

    run_simulated(main())


def test_server_with_a_bound_socket_has_its_address() -> None:
    async def main() -> None:
        bound = socket.create_server(("127.0.0.1", 0))
        address = bound.getsockname()
        async with await asyncio.start_server(lambda _, writer: writer.close(), sock=bound):
            reader, writer = await asyncio.open_connection(*address)
            assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()
        assert bound.fileno() < 0

    run_simulated(main())


def test_both_ends_know_their_addresses() -> None:
    async def main() -> None:
        ends = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            ends.append((writer.get_extra_info("peername"), writer.get_extra_info("sockname")))
            writer.close()

        async with tcp_server(serve, "0.0.0.0") as server:
            host, port = server.sockets[0].getsockname()
            _, writer = await asyncio.open_connection("localhost", port)
            await asyncio.sleep(0.1)
            assert host == "0.0.0.0"
            assert ends == [(writer.get_extra_info("sockname"), writer.get_extra_info("peername"))]
            assert ends[0][1] == ("127.0.0.1", port)
            writer.close()

    run_simulated(main())


def test_time_stands_still_while_a_thread_works() -> None:
    async def main() -> None:
        release = threading.Event()
        threading.Timer(0.05, release.set).start()
        began = running_clock().now()
        async with asyncio.timeout(1.0):
            await asyncio.to_thread(release.wait)
        assert running_clock().now() - began < 1.0

    run_simulated(main())


def test_coroutine_that_waits_for_nothing_fails_and_is_named() -> None:
    async def waits_for_ever() -> None:
        await asyncio.Event().wait()

    with pytest.raises(AssertionError, match=r"waits for nothing: .*waits_for_ever"):
        run_simulated(waits_for_ever())


def test_coroutine_that_is_busy_for_ever_fails() -> None:
    async def spins() -> None:
        for _ in range(MAX_TURNS + 1):
            await asyncio.sleep(0)

    with pytest.raises(AssertionError, match=r"busy without end: .*spins"):
        run_simulated(spins())


def test_errors_of_callbacks_fail_the_test() -> None:
    async def main() -> None:
        asyncio.get_running_loop().call_soon(int, "no number")
        await asyncio.sleep(0)

    with pytest.raises(AssertionError, match="no number"):
        run_simulated(main())


@pytest.mark.simulated
async def test_marker_chooses_the_loop() -> None:
    assert isinstance(asyncio.get_running_loop(), SimulatedLoop) is not REAL_LOOPS


@pytest.mark.simulated
@pytest.mark.sockets
async def test_sockets_overrule_the_marker() -> None:
    assert not isinstance(asyncio.get_running_loop(), SimulatedLoop)
