"""Control requests whose answer is a nested gzip bomb: memory and seconds of each read.

The reads are those of the product: the gateway's scrape of an engine, the indexer's query, and the
autoscaler's two. The least of several repeats counts for the time, since other processes of the
machine add to it and never shorten it. For the memory, the largest of all repeats counts.
"""

import asyncio
import tracemalloc
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from time import perf_counter

from fairlead.engines.credentials import EngineCredentials
from fairlead.engines.sleep_mode import send_request
from fairlead.errors import Unavailable
from fairlead.fleet.model import Fleet, Instance, Model, SloTargets
from fairlead.limits import Limits
from fairlead.runtime.clock import SystemClock
from fairlead_autoscaler.collector.gateway_scraper import HttpPageFetcher
from fairlead_gateway.supervisor.metrics_scraper import MetricsScraper
from fairlead_kvstore.reader.engine_info_client import HttpEngineQuery
from fairlead_testing.http.gzip_bomb import nested_gzip_response, one_response_server

_LIMITS = Limits()
_WARM_UP = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"


@dataclass(frozen=True, slots=True)
class AnswerCost:
    """The cost of refusing one answer."""

    allocated_bytes: int
    seconds: float


async def _scrape_engine(url: str) -> str:
    instance = _instance(url)
    model = Model("default", "tiny", SloTargets(), "dual-hash")
    fleet = Fleet(1, 1, {model.key: model}, {model.key: (instance,)})
    scraper = MetricsScraper(lambda: fleet, SystemClock(), _LIMITS)
    await scraper.scrape_once()
    return scraper.errors.get(instance.id, "")


async def _query_engine(url: str) -> str:
    query = HttpEngineQuery(EngineCredentials({}, SystemClock().now))
    return await _refusal(query(_instance(url), "/kv_event_sources"))


async def _fetch_gateway_page(url: str) -> str:
    return await _refusal(HttpPageFetcher(_LIMITS)(f"{url}/metrics"))


async def _query_sleep_mode(url: str) -> str:
    return await _refusal(send_request("GET", f"{url}/is_sleeping", None, 5.0))


READS: Mapping[str, Callable[[str], Awaitable[str]]] = {
    "an engine's /metrics, by a gateway": _scrape_engine,
    "an engine's /kv_event_sources, by an indexer": _query_engine,
    "a gateway's /metrics, by the autoscaler": _fetch_gateway_page,
    "an engine's /is_sleeping, by the autoscaler": _query_sleep_mode,
}
"""Functions of a URL that return why the answer was refused; empty if it was not."""


def measure(repeats: int) -> dict[str, AnswerCost]:
    """Returns the cost by read. Raises AssertionError if a read accepts the bomb."""
    bomb = nested_gzip_response()
    found = {}
    for name, read in READS.items():
        _read_once(read, _WARM_UP)  # imports and caches are not part of the cost
        seconds = min(_read_once(read, bomb)[0] for _ in range(repeats))
        allocated = []
        for _ in range(repeats):
            tracemalloc.start()
            try:
                refusal = _read_once(read, bomb)[1]
                allocated.append(tracemalloc.get_traced_memory()[1])
            finally:
                tracemalloc.stop()
            assert "content-encoding" in refusal, f"{name}: {refusal or 'accepted'}"
        found[name] = AnswerCost(max(allocated), seconds)
    return found


def _read_once(read: Callable[[str], Awaitable[str]], response: bytes) -> tuple[float, str]:
    """Returns the seconds of a read, and why the answer was refused."""

    async def run(url: str) -> tuple[float, str]:
        started = perf_counter()
        refusal = await read(url)
        return perf_counter() - started, refusal

    with one_response_server(response) as (url, _):
        return asyncio.run(run(url))


async def _refusal(reply: Awaitable[object]) -> str:
    try:
        await reply
    except Unavailable as error:
        return error.message
    return ""


def _instance(url: str) -> Instance:
    return Instance("main-0/8000/0", "default", "tiny", "main", url, "vllm")
