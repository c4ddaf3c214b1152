"""Gateway scraper: requests the metrics of every gateway, all at once, at each tick.

Gateways are given as URLs of their management ports. A name with several addresses (a headless
Service) is resolved each time, and each address counts as one gateway. A gateway that does not
answer in time is missing, and the snapshot's notes say so.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final, Protocol
from urllib.parse import urlsplit

from fairlead.errors import Unavailable
from fairlead.runtime.clock import Clock
from fairlead.runtime.http_client import fetch
from fairlead_autoscaler.collector import metrics_parser
from fairlead_autoscaler.collector.counter_deltas import (
    MAX_INCREASE,
    CounterTracker,
    advance,
    extrapolate,
    start_tracking,
)
from fairlead_autoscaler.collector.metrics_parser import GatewayPage
from fairlead_autoscaler.collector.observation import GatewayMetrics, GatewaySnapshot

AUTOSCALER_PAGE_BYTES: Final = 64 * 1024 * 1024
"""Limit: a gateway's metrics page; one with 4,096 engines has about 12 MB."""
AUTOSCALER_GATEWAYS: Final = 256
"""Limit: gateways that are scraped; a warning names the number of others."""
AUTOSCALER_READ_SECONDS: Final = 2.0
"""Limit: a gateway whose metrics take longer is missing from the observation."""
AUTOSCALER_CARRY_FORWARD_SECONDS: Final = 60.0
"""Limit: the last values of a missing gateway are used this long, then it counts as gone."""

_PARSE_SECONDS: Final = 5.0
"""A gateway whose page takes longer to parse is missing, and is not read until that ends."""


class FetchPage(Protocol):
    """A function that requests one page of a gateway."""

    async def __call__(self, url: str) -> str:
        """Returns the text of a response with status 200. Raises Unavailable with a short
        reason.
        """


class ResolveName(Protocol):
    """A function that resolves a name to its addresses."""

    async def __call__(self, host: str, port: int) -> list[str]:
        """Returns the addresses. Raises OSError."""


@dataclass(slots=True)
class _GatewayState:
    """The counters and the last page of one gateway."""

    counted: CounterTracker
    relayed: CounterTracker
    page: GatewayPage


class GatewayScraper:
    """The reader of the metrics of all gateways.

    urls: as given by the user.
    speed: how many times as fast as the gateways' clocks `clock` runs.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        fetch: FetchPage,
        resolve: ResolveName,
        clock: Clock,
        speed: float = 1.0,
        read_seconds: float = AUTOSCALER_READ_SECONDS,
    ) -> None:
        self._speed = speed
        self._urls = tuple(urls)
        self._fetch = fetch
        self._resolve = resolve
        self._clock = clock
        self._read_seconds = read_seconds
        self._known: dict[str, _GatewayState] = {}
        self._addresses: dict[str, list[str]] = {}
        self._looked_at: float | None = None
        self._parsing: dict[str, asyncio.Future[GatewayPage]] = {}

    async def scrape(self, models: Collection[str]) -> GatewaySnapshot:
        """Returns the metrics of all gateways since the last call, for these models."""
        notes: list[str] = []
        names = await self._resolve_urls(notes)
        pages = await asyncio.gather(*(self._fetch_page(name, models) for name in names))
        now = self._clock.now()
        metrics = [self._gateway_metrics(name, found, now) for name, found in zip(names, pages, strict=True)]
        notes += [
            f"gateway {gateway.name} is missing: {gateway.error}" for gateway in metrics if gateway.error is not None
        ]
        for gone in self._known.keys() - set(names):
            del self._known[gone]
        self._looked_at = now
        return GatewaySnapshot(tuple(metrics), tuple(notes))

    async def _resolve_urls(self, notes: list[str]) -> list[str]:
        """Returns the URLs of all gateways, up to the limit, and adds problems to `notes`.

        A name that cannot be resolved keeps its last addresses.
        """
        urls: dict[str, None] = {}
        for url in self._urls:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port or 80
            if _is_address(host):
                urls[f"{parts.scheme}://{parts.netloc}"] = None
                continue
            try:
                async with asyncio.timeout(self._read_seconds):
                    self._addresses[url] = sorted(set(await self._resolve(host, port)))
            except (OSError, TimeoutError) as error:
                notes.append(f"the name {host} cannot be resolved ({type(error).__name__}); its last addresses stay")
            for address in self._addresses.get(url, []):
                shown = f"[{address}]" if ":" in address else address
                urls[f"{parts.scheme}://{shown}:{port}"] = None
        most = AUTOSCALER_GATEWAYS
        if len(urls) > most:
            notes.append(f"of {len(urls)} gateways only {most} are read")
        return list(urls)[:most]

    async def _fetch_page(self, name: str, models: Collection[str]) -> GatewayPage | str:
        """Returns the page, or the reason why there is none."""
        try:
            if name in self._parsing:
                raise Unavailable("its last page is still being parsed")
            return await self._parse(name, await self._fetch(f"{name}/metrics"), models)
        except Unavailable as error:
            return error.message

    async def _parse(self, name: str, text: str, models: Collection[str]) -> GatewayPage:
        """Returns the parsed page. Raises Unavailable if that takes too long.

        Why: a gateway chooses its page, and no tick waits for one gateway.
        """
        parsing = asyncio.ensure_future(asyncio.to_thread(metrics_parser.parse_page, text, models, self._speed))
        done, _ = await asyncio.wait({parsing}, timeout=_PARSE_SECONDS)
        if done:
            return parsing.result()
        self._parsing[name] = parsing
        parsing.add_done_callback(lambda ended: self._on_parsed(name, ended))
        raise Unavailable(f"its page takes longer than {_PARSE_SECONDS:g} s to parse")

    def _on_parsed(self, name: str, ended: asyncio.Future[GatewayPage]) -> None:
        """Drops a page that came too late."""
        del self._parsing[name]
        if not ended.cancelled():
            ended.exception()

    def _gateway_metrics(self, name: str, page: GatewayPage | str, now: float) -> GatewayMetrics:
        known = self._known.get(name)
        if isinstance(page, str):
            if known is None:
                return GatewayMetrics(name, error=page)
            known.counted, counted = extrapolate(known.counted, now, AUTOSCALER_CARRY_FORWARD_SECONDS)
            return GatewayMetrics(name, counted, None, {} if counted is None else known.page.gauges, error=page)
        if known is None:
            return self._first_metrics(name, page, now)
        known.counted, counted = advance(known.counted, page.counters, now, starts_at_zero=True)
        known.relayed, relayed = advance(known.relayed, page.engine_counters, now, starts_at_zero=False)
        known.page = page
        return GatewayMetrics(name, counted, relayed, page.gauges)

    def _first_metrics(self, name: str, page: GatewayPage, now: float) -> GatewayMetrics:
        """Returns the metrics of a new gateway.

        All of its counts belong to this tick if it started after the last one.
        """
        self._known[name] = _GatewayState(
            start_tracking(page.counters, now), start_tracking(page.engine_counters, now), page
        )
        last = self._looked_at
        if last is None or page.uptime_seconds > now - last:
            return GatewayMetrics(name, None, None, page.gauges)
        counted = {key: value for key, value in page.counters.items() if value <= MAX_INCREASE}
        return GatewayMetrics(name, counted, None, page.gauges)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def fetch_page(url: str) -> str:
    """Returns the text of a response with status 200. Raises Unavailable with a short reason."""
    body = await fetch(
        url,
        timeout_seconds=AUTOSCALER_READ_SECONDS,
        max_bytes=AUTOSCALER_PAGE_BYTES,
        headers={"accept": "text/plain"},
    )
    return body.decode(errors="replace")


async def resolve_name(host: str, port: int) -> list[str]:
    """Returns the addresses of a name, by the system's resolver. Raises OSError."""
    infos = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in infos]
