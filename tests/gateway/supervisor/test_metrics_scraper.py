"""The metrics scraper over real sockets: at worst, signals are old or missing."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from fairlead.engines.prometheus_scan import parse_samples
from fairlead.engines.registry import engine_adapter
from fairlead.errors import Unavailable
from fairlead.fleet.model import Fleet, Instance, Model
from fairlead.limits import Limits
from fairlead.runtime.clock import ManualClock
from fairlead.runtime.http_client import fetch as get
from fairlead_gateway.supervisor.metrics_scraper import MetricsScraper
from fairlead_testing.http.scripted_servers import tcp_server
from fairlead_testing.pytest_hooks.coroutine_tests import run_async
from fairlead_testing.simulated.event_loop import running_clock
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.simulated

PAGE = b'vllm:num_requests_running{engine="0",model_name="tiny"} 3.0\nvllm:kv_cache_usage_perc{engine="0",model_name="tiny"} 0.5\n'
PLAIN = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(PAGE), PAGE)
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(PAGE), PAGE)
UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\n\r\n" + PAGE
Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def _engine(answer: bytes | Answer):  # type: ignore[no-untyped-def]  # yields the URL
    """Runs a server that reads a request head and then does what `answer` says; yields its URL."""
    release = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if isinstance(answer, bytes):
            writer.write(answer)
        else:
            waiting = asyncio.ensure_future(release.wait())
            acting = asyncio.ensure_future(answer(reader, writer))
            await asyncio.wait({waiting, acting}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            acting.cancel()
            await asyncio.gather(waiting, acting, return_exceptions=True)
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)

    async with tcp_server(serve) as server:
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            release.set()


async def _silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


def _fetch(answer: bytes | Answer, *, deadline_seconds: float = 20.0, most_bytes: int = 100_000) -> bytes:
    async def fetch() -> bytes:
        async with _engine(answer) as url:
            return await get(f"{url}/metrics", timeout_seconds=deadline_seconds, max_bytes=most_bytes)

    return run_async(fetch())


@pytest.mark.parametrize("answer", [PLAIN, CHUNKED, UNTIL_CLOSE], ids=["length", "chunked", "until-close"])
def test_a_page_arrives_however_it_is_framed(answer: bytes) -> None:
    assert _fetch(answer) == PAGE


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n", "answered 500"),
        (b"HTTP/1.1 307 Go\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n", "answered 307"),
        (b"", "closed without an answer"),
        (PLAIN[:-10], "cut off"),
        (CHUNKED[:-12], "cut off"),
        (b"SSH-2.0-nonsense\r\n\r\n", "Http"),
    ],
    ids=["500", "redirect", "closed", "cut", "cut-chunks", "not-http"],
)
def test_a_bad_answer_says_what_was_wrong(answer: bytes, why: str) -> None:
    with pytest.raises(Unavailable, match=why):
        _fetch(answer)


def test_a_page_beyond_the_limit_is_refused() -> None:
    with pytest.raises(Unavailable, match="longer than 50 bytes"):
        _fetch(PLAIN, most_bytes=50)


def test_an_engine_that_says_nothing_is_given_up_at_the_deadline() -> None:
    with pytest.raises(Unavailable, match=r"no answer within 0\.05 s"):
        _fetch(_silence, deadline_seconds=0.05)


async def test_only_http_is_asked() -> None:
    with pytest.raises(Unavailable, match="only http and https"):
        await get("file:///etc/passwd", timeout_seconds=1, max_bytes=10)


def _fleet(*instances: Instance) -> Fleet:
    return Fleet(1, 1, {"default/tiny": Model("default", "tiny")}, {"default/tiny": instances})


def _instance(url: str, name: str = "main-0/1/0", engine: str = "vllm") -> Instance:
    return Instance(name, "default", "tiny", "main", url, engine)


async def test_signals_are_merged_into_the_fleet_with_their_time() -> None:
    async with _engine(CHUNKED) as url:
        clock = ManualClock(500.0)
        fleet = _fleet(_instance(url), _instance("http://127.0.0.1:9", "main-1/9/0"))
        scraper = MetricsScraper(lambda: fleet, clock)
        await scraper.scrape_once()
        answering, silent = scraper.with_signals(fleet).instances["default/tiny"]
        assert (answering.signals.running, answering.signals.kv_usage, answering.signals.waiting) == (3.0, 0.5, None)
        assert answering.received_at == 500.0
        assert (silent.signals, silent.received_at) == (None, None)
        assert "main-1/9/0" in scraper.errors
        assert scraper.with_signals(fleet) is scraper.with_signals(fleet)


async def test_an_engine_that_stops_answering_keeps_its_last_signals_and_their_time() -> None:
    clock = ManualClock(500.0)
    async with _engine(PLAIN) as url:
        fleet = _fleet(_instance(url))
        scraper = MetricsScraper(lambda: fleet, clock)
        await scraper.scrape_once()
    clock.advance(30.0)
    await scraper.scrape_once()
    assert scraper.readings["main-0/1/0"].received_at == 500.0
    assert scraper.errors.keys() == {"main-0/1/0"}


async def test_an_instance_that_left_the_fleet_is_forgotten() -> None:
    async with _engine(PLAIN) as url:
        present = [_fleet(_instance(url))]
        scraper = MetricsScraper(lambda: present[0], ManualClock())
        await scraper.scrape_once()
        assert scraper.readings
        present[0] = _fleet()
        await scraper.scrape_once()
        assert not scraper.readings


async def test_growing_token_counters_show_that_an_engine_computes() -> None:
    counts = [5.0, 5.0, 9.0, 2.0]

    async def page(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nvllm:generation_tokens_total %.1f\n" % counts.pop(0))

    async with _engine(page) as url:
        present, clock = [_fleet(_instance(url))], ManualClock(500.0)
        scraper, seen = MetricsScraper(lambda: present[0], clock), []
        while counts:
            await scraper.scrape_once()
            seen.append(scraper.progress_times.get("main-0/1/0"))
            clock.advance(10.0)
        assert seen == [None, None, 520.0, 520.0]
        present[0] = _fleet()
        await scraper.scrape_once()
        assert not scraper.progress_times


async def test_ranks_that_share_a_page_each_get_their_own_numbers() -> None:
    body = b'vllm:num_requests_running{engine="0"} 3.0\nvllm:num_requests_running{engine="1"} 7.0\n'
    async with _engine(b"HTTP/1.1 200 OK\r\n\r\n" + body) as url:
        fleet = _fleet(_instance(url, "p/1/0"), _instance(url, "p/1/1"))
        scraper = MetricsScraper(lambda: fleet, ManualClock())
        await scraper.scrape_once()
        assert [scraper.readings[name].signals.running for name in ("p/1/0", "p/1/1")] == [3.0, 7.0]


async def test_an_engine_kind_without_an_adapter_is_named_as_the_problem() -> None:
    fleet = _fleet(_instance("http://127.0.0.1:9", engine="external"))
    scraper = MetricsScraper(lambda: fleet, ManualClock())
    await scraper.scrape_once()
    assert scraper.errors == {"main-0/1/0": "the metrics of engine type external cannot be read"}


@pytest.mark.parametrize("value", ["1e308", "-5", "9007199254740994", "NaN", "-Inf"])
async def test_impossible_values_of_an_engine_count_as_missing(value: str) -> None:
    page = PAGE.replace(b" 3.0", b" " + value.encode()).replace(b" 0.5", b" " + value.encode())
    async with _engine(b"HTTP/1.1 200 OK\r\n\r\n" + page) as url:
        instance = _instance(url)
        scraper = MetricsScraper(lambda: _fleet(instance), ManualClock(), Limits())
        await scraper.scrape_once()
        signals = scraper.readings[instance.id].signals
        assert (signals.running, signals.kv_usage) == (None, None)


async def test_a_defect_at_one_engine_ends_the_reading_of_no_other() -> None:
    """A value that no rule can take, such as one that fits into no message."""

    def fail_for_first(name: str, _: object, __: float) -> None:
        if name == "first":
            raise OverflowError

    async with _engine(PLAIN) as first, _engine(PLAIN) as second:
        fleet = _fleet(_instance(first, "first"), _instance(second, "second"))
        scraper = MetricsScraper(lambda: fleet, ManualClock(), Limits())
        scraper.on_reading = fail_for_first
        for _ in range(2):
            await scraper.scrape_once()
        assert "second" in scraper.readings
        assert set(scraper.errors) == {"first"}


async def test_a_running_scraper_keeps_asking_until_it_is_stopped() -> None:
    asked = asyncio.Queue[None]()

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(PLAIN)
        asked.put_nowait(None)
        await writer.drain()

    async with _engine(answer) as url:
        fleet = _fleet(_instance(url))
        scraper = MetricsScraper(lambda: fleet, running_clock(), replace(Limits(), scrape_seconds=0.01))
        scraper.start()
        for _ in range(3):
            await asyncio.wait_for(asked.get(), 30)
        await scraper.stop()
        await scraper.stop()


def test_page_of_a_thousand_ranks_is_searched_once_for_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[int] = []
    page = b"".join(b'vllm:num_requests_running{engine="%d"} %d\n' % (rank, rank) for rank in range(1_024))
    head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(page)

    def count(content: bytes, name: bytes, max_lines: int) -> list[tuple[bytes, float]]:
        searched.append(len(content))
        return parse_samples(content, name, max_lines)

    monkeypatch.setattr("fairlead.engines.metric_names.parse_samples", count)

    async def check() -> None:
        async with _engine(head + page) as url:
            fleet = _fleet(*(_instance(url, f"main-0/1/{rank}") for rank in range(1_024)))
            scraper = MetricsScraper(lambda: fleet, ManualClock())
            await scraper.scrape_once()
            assert [scraper.readings[f"main-0/1/{rank}"].signals.running for rank in (0, 1_023)] == [0.0, 1_023.0]

    run_async(check())
    assert len(searched) <= 16


def test_page_that_consists_of_one_series_is_not_read_to_its_end() -> None:
    lines = b"vllm:num_requests_running 1\n" * 10_000
    page = PAGE.replace(b"num_requests_running", b"num_requests_waiting") + lines
    signals = engine_adapter("vllm").parse_signals(page)
    assert (signals.running, signals.waiting) == (None, 3.0)


async def test_large_metrics_pages_of_one_namespace_fill_no_memory() -> None:
    large = 600_000
    limits = Limits(scrape_bytes=1_000_000, scrape_timeout_seconds=20.0)
    shares = [0]

    async def never_ends(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (large + 1) + b"x" * large)
        await asyncio.Event().wait()

    async with _engine(never_ends) as url, _engine(PLAIN) as good:
        group = [replace(_instance(f"{url}/{number}", f"a-{number}/1/0"), namespace="a") for number in range(8)]
        other = replace(_instance(good, "b-0/1/0"), namespace="b")
        fleet = Fleet(1, 1, {"a/m": Model("a", "m"), "b/m": Model("b", "m")}, {"a/m": tuple(group), "b/m": (other,)})
        scraper = MetricsScraper(lambda: fleet, ManualClock(), limits)
        scraper.memory.max_bytes = 4_000_000
        scrape = asyncio.create_task(scraper.scrape_once())
        await wait_until(lambda: len(scraper.errors) >= 5 and "b-0/1/0" in scraper.readings)
        shares[0] = scraper.memory.used_bytes
        assert all("too long for the gateway's memory" in text for text in scraper.errors.values())
        scrape.cancel()
        await asyncio.gather(scrape, return_exceptions=True)
        assert scraper.memory.used_bytes == 0
    assert 0 < shares[0] <= 2_000_000


@pytest.mark.parametrize("filler", [b"a", b" ", b'\\"', b"{", b"9", b"\x00"])
@pytest.mark.parametrize("form", [b"n{%b} 1\n", b"n%b1\n", b"n %b\n", b'n%b{a="b"} 1\n'])
def test_long_line_of_a_page_is_skipped_and_the_others_are_read(form: bytes, filler: bytes) -> None:
    page = b"\n" + form % (filler * 4_096) + b'n{a="b"} 7\n'
    assert parse_samples(page, b"n", 10) == [(b'{a="b"}', 7.0)]
