"""Asks every gateway for its metrics, all at once, each look anew.

Gateways are given as URLs of their management ports. A name that stands for several addresses (a headless Service) is asked for
them each time, and each address is a gateway of its own. Who does not answer in time is missing, and said to be.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

from fairlead.errors import Unavailable
from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead.runtime.http_client import fetch
from fairlead_autoscaler.collector import metrics_parser as page
from fairlead_autoscaler.collector.counter_deltas import CounterTracker, advance, extrapolate, start_tracking
from fairlead_autoscaler.collector.metrics_parser import GatewayPage
from fairlead_autoscaler.collector.observation import GatewayMetrics, GatewaySnapshot


class FetchPage(Protocol):
    """One GET to a gateway."""

    async def __call__(self, url: str) -> str:
        """The text of a 200 answer. Raises Unavailable in a few words."""
        ...


class ResolveName(Protocol):
    """From a name to addresses."""

    async def __call__(self, host: str, port: int) -> list[str]:
        """Raises OSError."""
        ...


@dataclass(slots=True)
class _GatewayState:
    """What is remembered of one. ``page`` is the last that it gave."""

    counted: CounterTracker
    relayed: CounterTracker
    page: GatewayPage


class GatewayScraper:
    """``urls`` are those that were given; ``fetch`` and ``resolve`` are how they are reached. ``clock`` runs ``speed`` times as
    fast as the gateways'."""

    def __init__(
        self,
        urls: Sequence[str],
        *,
        fetch: FetchPage,
        resolve: ResolveName,
        clock: Clock,
        limits: Limits,
        speed: float = 1.0,
    ) -> None:
        self._speed = speed
        self._urls = tuple(urls)
        self._fetch = fetch
        self._resolve = resolve
        self._clock = clock
        self._limits = limits
        self._known: dict[str, _GatewayState] = {}
        self._addresses: dict[str, list[str]] = {}
        self._looked_at: float | None = None

    async def scrape(self, models: Collection[str]) -> GatewaySnapshot:
        """Everybody's part since the last look, of these models."""
        notes: list[str] = []
        names = await self._resolve_urls(notes)
        pages = await asyncio.gather(*(self._fetch_page(name, models) for name in names))
        now = self._clock.now()
        told = [self._gateway_metrics(name, found, now) for name, found in zip(names, pages, strict=True)]
        notes += [f"gateway {one.name} is missing: {one.error}" for one in told if one.error is not None]
        for gone in self._known.keys() - set(names):
            del self._known[gone]
        self._looked_at = now
        return GatewaySnapshot(tuple(told), tuple(notes))

    async def _resolve_urls(self, notes: list[str]) -> list[str]:
        """The URLs of all gateways there are now, at most so many."""
        found: dict[str, None] = {}
        for url in self._urls:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port or 80
            if _is_address(host):
                found[f"{parts.scheme}://{parts.netloc}"] = None
                continue
            try:
                async with asyncio.timeout(self._limits.autoscaler_read_seconds):
                    self._addresses[url] = sorted(set(await self._resolve(host, port)))
            except (OSError, TimeoutError) as error:
                notes.append(f"the name {host} cannot be resolved ({type(error).__name__}); its last addresses stay")
            for address in self._addresses.get(url, []):
                shown = f"[{address}]" if ":" in address else address
                found[f"{parts.scheme}://{shown}:{port}"] = None
        most = self._limits.autoscaler_gateways
        if len(found) > most:
            notes.append(f"of {len(found)} gateways only {most} are read")
        return list(found)[:most]

    async def _fetch_page(self, name: str, models: Collection[str]) -> GatewayPage | str:
        """Its page, or why there is none."""
        try:
            text = await self._fetch(f"{name}/metrics")
            return await asyncio.to_thread(page.parse_page, text, models, self._speed)
        except Unavailable as error:
            return error.message

    def _gateway_metrics(self, name: str, found: GatewayPage | str, now: float) -> GatewayMetrics:
        known = self._known.get(name)
        if isinstance(found, str):
            if known is None:
                return GatewayMetrics(name, error=found)
            known.counted, counted = extrapolate(known.counted, now, self._limits.autoscaler_carry_forward_seconds)
            return GatewayMetrics(name, counted, None, {} if counted is None else known.page.gauges, error=found)
        if known is None:
            return self._first_metrics(name, found, now)
        known.counted, counted = advance(known.counted, found.counters, now, starts_at_zero=True)
        known.relayed, relayed = advance(known.relayed, found.engine_counters, now, starts_at_zero=False)
        known.page = found
        return GatewayMetrics(name, counted, relayed, found.gauges)

    def _first_metrics(self, name: str, found: GatewayPage, now: float) -> GatewayMetrics:
        """A gateway that is new: all that it counted is of the time since the last look, where it is younger than that."""
        self._known[name] = _GatewayState(
            start_tracking(found.counters, now), start_tracking(found.engine_counters, now), found
        )
        last = self._looked_at
        if last is None or found.uptime_seconds > now - last:
            return GatewayMetrics(name, None, None, found.gauges)
        return GatewayMetrics(name, dict(found.counters), None, found.gauges)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class HttpPageFetcher:
    """Fetches metrics pages over HTTP."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits

    async def __call__(self, url: str) -> str:
        """Returns the text of a response with status 200. Raises Unavailable with a short reason."""
        body = await fetch(
            url,
            timeout_seconds=self._limits.autoscaler_read_seconds,
            max_bytes=self._limits.autoscaler_page_bytes,
            headers={"accept": "text/plain"},
        )
        return body.decode(errors="replace")


async def resolve_name(host: str, port: int) -> list[str]:
    """The addresses of a name, as the system finds them. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]
