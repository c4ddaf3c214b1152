"""Watermarks: short memory refuses large bodies first, then all."""

import asyncio
import signal
import sys
from functools import partial
from pathlib import Path

import pytest

from fairlead.errors import SettingsError
from fairlead.limits import Limits
from fairlead.runtime.process_tuning import heap_free_bytes
from fairlead_gateway.errors import Overloaded
from fairlead_gateway.proxy.memory_pressure import (
    LARGE_BODY_BYTES,
    IdleRelease,
    MemoryPressure,
    memory_share_reader,
    parse_memory_limit,
    unreadable_limit_warning,
)
from fairlead_testing.engines.scripted import well_behaved
from fairlead_testing.gateway.gateway_process import process_before
from fairlead_testing.gateway.running_gateway import GOOD, gateway_of
from fairlead_testing.http.raw_client import RawConnection, get_request, post_request, request, send
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.simulated

LARGE = GOOD | {"user": "x" * 300_000}
CHUNKED = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"


@pytest.mark.parametrize(
    ("used", "taken", "refused"),
    [
        (None, 1 << 30, None),
        (0.0, 1 << 30, None),
        (0.89, 1 << 30, None),
        (0.91, LARGE_BODY_BYTES, LARGE_BODY_BYTES + 1),
        (0.96, 0, 1),
        (2.0, 0, 1),
    ],
)
def test_what_is_refused_at_which_mark(used: float | None, taken: int, refused: int | None) -> None:
    reports: list[bool] = []
    memory = MemoryPressure(Limits(), lambda: used, reports.append)
    memory.poll()
    memory.check_body(taken)
    assert reports == [refused is not None]
    assert bool(memory.warnings()) == (refused is not None)
    if refused is not None:
        with pytest.raises(Overloaded) as caught:
            memory.check_body(refused)
        assert ("retry-after", "1") in caught.value.headers


def test_what_is_free_is_given_back_before_anything_is_refused_and_not_at_every_look() -> None:
    levels, reports, given = iter([0.8, 0.97, 0.6, 0.97, 0.96, 0.96, 0.96, 0.96, 0.97, 0.96, 0.5]), [], []
    memory = MemoryPressure(Limits(), lambda: next(levels), reports.append, lambda: given.append(len(reports)))
    for _ in range(8):
        memory.poll()
    assert reports == [False, False, True, True, True, True, True, False]
    assert given == [1, 2, 6]  # of a short spell the first look, and every fourth after it
    assert memory.warnings() == []


MIB = 1 << 20


class Heap:
    """The memory of a process in MiB: used, free in memory, and free but returned."""

    def __init__(self) -> None:
        self.used, self.free, self.returned = 20.0, 0.5, 0.0
        self.cpu = self.released = 0.0
        self.check = IdleRelease(
            lambda: int((self.free + self.returned) * MIB),
            lambda: int((self.used + self.free) * MIB),
            self.release,
            lambda: self.cpu,
        ).check

    def fill(self, amount: float) -> None:
        self.used += amount
        taken = min(amount, self.free)
        self.free -= taken
        self.returned = max(0, self.returned - (amount - taken))

    def drop(self, amount: float) -> None:
        self.used -= amount
        self.free += amount

    def release(self) -> None:
        self.released += self.free
        self.returned += self.free
        self.free = 0


def test_memory_that_became_free_is_released_by_an_idle_process() -> None:
    heap = Heap()
    for fills in (70, 70, 30):
        before = heap.released
        heap.fill(fills)
        heap.check()  # in use
        heap.drop(fills)
        heap.check()
        assert heap.released >= before + fills
        released = heap.released
        for _ in range(3):
            heap.check()
        assert heap.released == released


def test_memory_that_is_used_again_meanwhile_is_released_again() -> None:
    heap = Heap()
    heap.fill(70)
    heap.drop(70)
    heap.check()
    heap.fill(60)
    heap.drop(60)  # between two checks
    heap.check()
    assert heap.free == 0
    heap.fill(0.5)
    heap.drop(0.5)
    heap.check()
    assert heap.free == 0.5  # too little


def test_a_process_under_load_keeps_what_it_will_use_again() -> None:
    heap = Heap()
    heap.fill(70)
    heap.drop(70)
    for _ in range(3):
        heap.cpu += 0.5
        heap.check()
    assert not heap.released
    heap.cpu += 0.1
    heap.check()
    assert heap.free == 0


def test_a_system_that_does_not_report_free_memory_gets_none_back() -> None:
    released: list[None] = []
    IdleRelease(lambda: None, lambda: 1, lambda: released.append(None), lambda: 0.0).check()
    assert released == []


@pytest.mark.skipif(heap_free_bytes() is None, reason="only glibc reports free bytes")
def test_freed_memory_of_small_objects_counts_as_free() -> None:
    objects = [bytearray(50_000) for _ in range(400)]
    before = heap_free_bytes()
    del objects[::2]
    after = heap_free_bytes()
    assert before is not None
    assert after is not None
    assert after - before >= 200 * 50_000 - MIB


def test_the_share_is_the_process_s_own_or_the_container_s_without_cached_files(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 200000\nactive_file 3\n")
    container = memory_share_reader(None, cgroup=tmp_path)
    assert container is not None
    assert container() == 0.5
    (tmp_path / "memory.current").unlink()
    assert container() is None
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_share_reader(None, cgroup=tmp_path) is None
    assert memory_share_reader(None, cgroup=tmp_path / "none") is None
    (tmp_path / "statm").write_text("9 2 1")
    own = memory_share_reader("1MiB", statm=tmp_path / "statm")
    assert own is not None
    assert (own() or 0) * (1 << 20) % 8_192 == 0
    (tmp_path / "statm").write_text("")
    assert own() is None


def test_the_limit_of_a_container_under_cgroup_version_1_protects_too(tmp_path: Path) -> None:
    memory = tmp_path / "memory"
    memory.mkdir()
    (memory / "memory.limit_in_bytes").write_text("1000000\n")
    (memory / "memory.usage_in_bytes").write_text("700000\n")
    (memory / "memory.stat").write_text("inactive_file 1\ntotal_inactive_file 200000\ntotal_active_file 3\n")
    container = memory_share_reader(None, cgroup=tmp_path)
    assert container is not None
    assert container() == 0.5
    assert unreadable_limit_warning(None, cgroup=tmp_path) is None
    (memory / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert memory_share_reader(None, cgroup=tmp_path) is None
    assert unreadable_limit_warning(None, cgroup=tmp_path) is None


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has cgroups")
def test_a_limit_that_cannot_be_read_is_a_warning_and_not_silence(tmp_path: Path) -> None:
    warning = unreadable_limit_warning(None, cgroup=tmp_path)
    assert warning is not None
    assert "FAIRLEAD_MEMORY_LIMIT" in warning
    assert unreadable_limit_warning("1GiB", cgroup=tmp_path) is None
    (tmp_path / "cgroup.controllers").write_text("memory\n")  # the root of version 2 has no limit
    assert unreadable_limit_warning(None, cgroup=tmp_path) is None


def test_sizes_are_read_and_what_is_none_is_said() -> None:
    assert [parse_memory_limit(text) for text in ("512MiB", "1.5GiB", "2000000", "3MB")] == [
        1 << 29,
        3 << 29,
        2_000_000,
        3_000_000,
    ]
    for text in ("", "much", "-1MiB", "0", "1 TB"):
        with pytest.raises(SettingsError):
            parse_memory_limit(text)


async def test_short_memory_refuses_large_bodies_however_they_come_and_recovers() -> None:
    level = 0.5
    limits = Limits(memory_check_seconds=0.01)
    async with gateway_of(well_behaved, limits=limits, memory_share=lambda: level) as (running, *_):
        begun, chunked = await RawConnection.connect(running.url), await RawConnection.connect(running.url)
        await begun.send(post_request(LARGE)[:200_000])
        await chunked.send(CHUNKED + b"249f0\r\n" + b" " * 0x249F0 + b"\r\n")
        listener = running.gateway.listener
        await wait_until(lambda: listener.buffered_bytes >= 300_000)
        level = 0.92
        await wait_until(lambda: listener.under_memory_pressure)
        assert (await request(running.url, LARGE)).status == 503
        assert (await request(running.url, GOOD)).status == 200
        for connection in (begun, chunked):  # large bodies on their way are not read on
            await connection.send(b" " * 1_000 if connection is begun else b"5\r\nhello\r\n")
            answer = await connection.read_response()
            assert (answer.status, answer.error["code"], answer.fields["retry-after"]) == (
                503,
                "overloaded",
                "1",
            )
            await connection.close()
        level = 0.97
        await wait_until(lambda: not running.gateway.memory_pressure.max_body_bytes)
        assert (await request(running.url, GOOD)).status == 503
        small = CHUNKED + b"2\r\n{}\r\n0\r\n\r\n"
        assert [answer.status for answer in await send(running.url, small)] == [503]
        assert [answer.status for answer in await send(running.url, get_request("/v1/models"))] == [200]
        (ready,) = await send(running.url, get_request("/readyz"))
        assert (ready.status, b"degraded" in ready.body, b"97 %" in ready.body) == (200, True, False)
        assert "97 % of the limit" in running.gateway.readiness()[1][0]
        level = 0.5
        await wait_until(lambda: not listener.under_memory_pressure)
        assert (await request(running.url, LARGE)).status == 200


@pytest.mark.sockets
@pytest.mark.usefixtures("new_interpreters")  # a fork has the memory of all imported modules
async def test_a_process_near_its_limit_refuses_large_bodies_and_comes_back(tmp_path: Path) -> None:
    async with process_before(tmp_path, well_behaved, environ={"FAIRLEAD_MEMORY_LIMIT": "150MiB"}) as (gateway, *_):
        held = [await RawConnection.connect(gateway.url) for _ in range(40)]  # 40 × 8 MiB: far more than there is
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 9000000\r\n\r\n"
        sending = [asyncio.create_task(_send_slowly(connection, head + b" " * (8 << 20))) for connection in held]
        refusals = [asyncio.create_task(connection.read_response()) for connection in held]
        try:
            async with asyncio.timeout(120):
                for refusal in asyncio.as_completed(refusals):
                    if (await refusal).status == 503:
                        break
                else:
                    pytest.fail("no body was refused for lack of memory")
            assert [answer.status for answer in await send(gateway.url, get_request("/v1/models"))] == [200]
        finally:
            for connection, task in zip(held, sending, strict=True):
                task.cancel()
                connection.writer.transport.abort()
                await connection.close()
            await asyncio.gather(*sending, *refusals, return_exceptions=True)
        await wait_until(partial(_answers, gateway.url, LARGE, 200))
        gateway.process.send_signal(signal.SIGTERM)
        assert await gateway.wait() == 0


async def _send_slowly(connection: RawConnection, data: bytes) -> None:
    """Sends `data`, then a byte each 20 ms, so that some come after the memory was read."""
    await connection.send(data)
    while True:
        await connection.send(b" ")
        await asyncio.sleep(0.02)


async def _answers(url: str, body: object, status: int) -> bool:
    return (await request(url, body)).status == status
