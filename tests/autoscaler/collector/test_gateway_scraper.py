"""Gateways that come, go, restart and fall silent."""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from fairlead.errors import Unavailable
from fairlead.runtime.clock import ManualClock
from fairlead_autoscaler.collector import gateway_scraper, metrics_parser
from fairlead_autoscaler.collector.gateway_scraper import AUTOSCALER_GATEWAYS, GatewayScraper, fetch_page
from fairlead_autoscaler.collector.metrics_parser import GatewayPage
from fairlead_autoscaler.collector.observation import GatewaySnapshot, gateway_traffic
from fairlead_autoscaler.core import GatewayTraffic
from fairlead_testing.pytest_hooks.coroutine_tests import run_async
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.simulated

KEY = "default/tiny"
A, B = "http://10.0.0.1:9091", "http://10.0.0.2:9091"


@dataclass
class World:
    """Gateways by address: (uptime, arrivals); None does not answer."""

    clock: ManualClock = field(default_factory=lambda: ManualClock(1_000.0))
    pages: dict[str, tuple[float, float] | None] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)

    async def fetch(self, url: str) -> str:
        page = self.pages[url.removesuffix("/metrics")]
        if page is None:
            raise Unavailable("no answer within 2 s")
        uptime, arrivals = page
        counted = f'fairlead_gateway_received_total{{model="{KEY}"}} {arrivals}\n'
        return f"fairlead_gateway_uptime_seconds {uptime}\n{counted}"

    async def resolve(self, host: str, port: int) -> list[str]:
        if host not in self.names:
            raise OSError("not known")
        return self.names[host]

    def gateways(self, *urls: str) -> GatewayScraper:
        return GatewayScraper(urls, fetch=self.fetch, resolve=self.resolve, clock=self.clock)


def looks(world: World, gateways: GatewayScraper, *steps: Callable[[], object]) -> list[GatewaySnapshot]:
    """Returns the snapshots of a first tick, and of one 5 s after each step."""

    async def all_of_them() -> list[GatewaySnapshot]:
        snapshots = [await gateways.scrape([KEY])]
        for step in steps:
            step()
            world.clock.advance(5.0)
            snapshots.append(await gateways.scrape([KEY]))
        return snapshots

    return run_async(all_of_them())


def arrivals(readings: GatewaySnapshot) -> float | None:
    seen = gateway_traffic(KEY, readings)
    return None if seen is None else seen.arrivals


def test_the_first_look_only_begins_and_the_next_tells_what_came_since() -> None:
    world = World(pages={A: (900.0, 50.0), B: (900.0, 70.0)})
    snapshots = looks(world, world.gateways(A, B), lambda: world.pages.update({A: (905.0, 53.0), B: (905.0, 71.0)}))
    assert gateway_traffic(KEY, snapshots[0]) is None
    assert gateway_traffic(KEY, snapshots[1]) == GatewayTraffic(4.0, 0.0, kept=0.0, kept_tokens=0.0)


def test_a_gateway_that_is_silent_is_named_and_taken_to_go_on_as_before() -> None:
    world = World(pages={A: (900.0, 0.0), B: (900.0, 0.0)})
    snapshots = looks(
        world,
        world.gateways(A, B),
        lambda: world.pages.update({A: (905.0, 10.0), B: (905.0, 20.0)}),
        lambda: world.pages.update({A: (910.0, 20.0), B: None}),
        lambda: world.pages.update({A: (915.0, 30.0), B: (915.0, 60.0)}),
    )
    assert [arrivals(snapshot) for snapshot in snapshots] == [None, 30.0, 30.0, 30.0]
    assert snapshots[2].notes == (f"gateway {B} is missing: no answer within 2 s",)
    assert snapshots[3].notes == ()


def test_with_all_gateways_silent_for_long_nothing_is_known() -> None:
    world = World(pages={A: (900.0, 0.0)})
    gone = [lambda: world.pages.update({A: None})] * 13
    snapshots = looks(world, world.gateways(A), lambda: world.pages.update({A: (905.0, 10.0)}), *gone)
    assert [arrivals(snapshot) for snapshot in snapshots] == [None, 10.0, *[10.0] * 12, None]


def test_a_gateway_that_restarted_counts_from_zero_and_a_new_one_from_its_beginning() -> None:
    world = World(pages={A: (900.0, 50.0)}, names={"gateways": ["10.0.0.1"]})
    snapshots = looks(
        world,
        world.gateways("http://gateways:9091"),
        lambda: world.pages.update({A: (1.0, 6.0)}),
        lambda: (
            world.names.update(gateways=["10.0.0.2", "10.0.0.1"]),
            world.pages.update({A: (6.0, 7.0), B: (3.0, 4.0)}),
        ),
    )
    assert [arrivals(snapshot) for snapshot in snapshots] == [None, 6.0, 5.0]


def test_an_old_gateway_that_is_seen_for_the_first_time_is_only_a_beginning() -> None:
    world = World(pages={A: (900.0, 0.0), B: (900.0, 400.0)}, names={"gateways": ["10.0.0.1"]})
    snapshots = looks(
        world,
        world.gateways("http://gateways:9091"),
        lambda: (world.names.update(gateways=["10.0.0.1", "10.0.0.2"]), world.pages.update({A: (905.0, 2.0)})),
        lambda: world.pages.update({A: (910.0, 4.0), B: (910.0, 403.0)}),
    )
    assert [arrivals(snapshot) for snapshot in snapshots] == [None, 2.0, 5.0]


def test_a_name_that_fails_to_resolve_keeps_its_last_addresses() -> None:
    world = World(pages={A: (900.0, 0.0), B: (900.0, 0.0)}, names={"gateways": ["10.0.0.1", "10.0.0.2"]})
    snapshots = looks(
        world,
        world.gateways("http://gateways:9091"),
        lambda: (world.names.update(gateways=["10.0.0.1"]), world.pages.update({A: (905.0, 10.0)})),
        lambda: (world.names.clear(), world.pages.update({A: (910.0, 20.0)})),
    )
    assert [arrivals(snapshot) for snapshot in snapshots] == [None, 10.0, 10.0]
    assert snapshots[1].notes == ()
    assert snapshots[2].notes == ("the name gateways cannot be resolved (OSError); its last addresses stay",)


def test_a_name_that_is_not_found_in_time_holds_nobody_up() -> None:
    world = World(pages={A: (900.0, 0.0)})

    async def hang(host: str, port: int) -> list[str]:
        await asyncio.Event().wait()
        return []

    gateways = GatewayScraper(
        [A, "http://slow:1"], fetch=world.fetch, resolve=hang, clock=world.clock, read_seconds=0.01
    )
    (snapshot,) = looks(world, gateways)
    assert [gateway.name for gateway in snapshot.gateways] == [A]
    assert snapshot.notes == ("the name slow cannot be resolved (TimeoutError); its last addresses stay",)


def test_no_more_gateways_are_read_than_the_limit_allows() -> None:
    most = AUTOSCALER_GATEWAYS
    urls = [f"http://10.0.{n // 256}.{n % 256}:9091" for n in range(most + 1)]
    world = World(pages=dict.fromkeys(urls, (900.0, 0.0)))
    snapshots = looks(world, world.gateways(*urls))
    assert len(snapshots[0].gateways) == most
    assert snapshots[0].notes == (f"of {most + 1} gateways only {most} are read",)


async def test_a_port_where_nobody_listens_is_away_in_a_few_words() -> None:
    with pytest.raises(Unavailable, match=r"^ConnectionRefusedError: "):
        await fetch_page("http://127.0.0.1:9/metrics")


@pytest.mark.sockets
async def test_page_that_is_parsed_for_long_delays_no_tick_and_no_other_gateway(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(pages={A: (900.0, 50.0), B: (900.0, 70.0)})
    begun: list[str] = []
    go_on = threading.Event()
    parse_page = metrics_parser.parse_page

    def parse(text: str, *given: Any) -> GatewayPage:
        if "} 50" in text:
            begun.append(text)
            assert go_on.wait(60.0)
        return parse_page(text, *given)

    monkeypatch.setattr(metrics_parser, "parse_page", parse)
    monkeypatch.setattr(gateway_scraper, "_PARSE_SECONDS", 0.5)
    gateways = world.gateways(A, B)
    notes = [(await gateways.scrape([KEY])).notes for _ in range(2)]
    go_on.set()
    monkeypatch.setattr(gateway_scraper, "_PARSE_SECONDS", 60.0)
    await wait_until(lambda: not gateways._parsing)
    assert [*notes, (await gateways.scrape([KEY])).notes] == [
        (f"gateway {A} is missing: its page takes longer than 0.5 s to parse",),
        (f"gateway {A} is missing: its last page is still being parsed",),
        (),
    ]
    assert len(begun) == 2
