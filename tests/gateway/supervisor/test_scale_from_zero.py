"""Wake hints to the autoscaler: one at once for each model with queued requests.

Several workers cause one hint. A hint that the autoscaler does not accept causes a warning.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from fairlead.errors import SettingsError
from fairlead.runtime.clock import ManualClock
from fairlead_gateway.messages import WAKE_HINT_SECONDS
from fairlead_gateway.supervisor.scale_from_zero import ScaleUpNotifier, check_autoscaler_url
from fairlead_testing.http.scripted_servers import tcp_server
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.simulated

KEY = "default/tiny"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"


@asynccontextmanager
async def running_notifier(answer: bytes = OK) -> AsyncIterator[tuple[ScaleUpNotifier, ManualClock, list[bytes]]]:
    """Runs a notifier with a server that keeps the requests it gets."""

    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(next(line for line in head.split(b"\r\n") if line.startswith(b"content-length")).split(b":")[1])
        heard.append(head + await reader.readexactly(length))
        writer.write(answer)
        writer.close()

    async with asyncio.timeout(120), tcp_server(serve) as server:
        port = server.sockets[0].getsockname()[1]
        clock = ManualClock(100.0)
        waker = ScaleUpNotifier(f"http://127.0.0.1:{port}", "secret", clock)
        yield waker, clock, heard
        await waker.close()


async def test_a_hint_is_a_post_with_the_model_and_the_token() -> None:
    async with running_notifier() as (waker, _, heard):
        waker.notify(KEY)
        await wait_until(lambda: len(heard) == 1)
        head, _, body = heard[0].partition(b"\r\n\r\n")
        assert head.startswith(b"POST /wake HTTP/1.1\r\n")
        assert b"authorization: Bearer secret" in head
        assert b"content-type: application/json" in head
        assert json.loads(body) == {"model": KEY}
        assert waker.warnings() == []


async def test_what_several_workers_say_is_told_once_and_again_after_a_while() -> None:
    async with running_notifier() as (waker, clock, heard):
        for _ in range(3):
            waker.notify(KEY)
        waker.notify("default/other")
        await wait_until(lambda: len(heard) == 2)
        clock.advance(WAKE_HINT_SECONDS)
        waker.notify(KEY)
        await wait_until(lambda: len(heard) == 3)


async def test_an_autoscaler_that_does_not_take_it_is_said_until_it_does() -> None:
    async with running_notifier(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n") as (waker, _, _):
        waker.notify(KEY)
        await wait_until(lambda: bool(waker.warnings()))
        assert waker.warnings() == [f"the wake hint for {KEY} did not reach the autoscaler: answered 404"]


@pytest.mark.parametrize("url", ["", "autoscaler", "ftp://a:1", "http://", "http://a:0", "http://a?x=1", "http://[::1"])
def test_a_setting_that_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(SettingsError):
        check_autoscaler_url(url)


def test_a_slash_at_the_end_does_not_matter() -> None:
    assert check_autoscaler_url("http://autoscaler:9092/") == "http://autoscaler:9092"
