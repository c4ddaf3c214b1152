"""Limits of tenants over gateways that share a real server, which restarts and loses its state."""

import os
from pathlib import Path

import msgspec
import pytest
from redis import Redis

from fairlead.runtime.clock import SystemClock
from fairlead.tenants.model import Enforcement, Limit, LimitUnit, Tenant, Window
from fairlead_gateway.limits.exchange import GRANTED, Exchange, LimitReport, Need
from fairlead_gateway.limits.supervisor.redis_limit_store import RedisLimitStore
from fairlead_kvstore.index import redis_keys
from fairlead_kvstore.redis.link import RedisLink
from fairlead_testing.gateway.limited_gateway import known_use, limited_gateways, send_chats
from fairlead_testing.redis.valkey import Valkey
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.sockets

_LIMIT = Limit(LimitUnit.REQUESTS, 40, Window.DAY)


@pytest.mark.parametrize("enforcement", [Enforcement.ESTIMATED, Enforcement.STRICT])
async def test_three_gateways_share_one_limit_exactly(server: Valkey, enforcement: Enforcement) -> None:
    tenants = [Tenant("acme", limits=(_LIMIT,), enforcement=enforcement)]
    async with limited_gateways(server.url, tenants, 3) as gateways:
        codes = await send_chats(gateways, 70)
        assert (codes.count(200), codes.count(429)) == (40, 30)


async def test_a_flushed_server_learns_again_what_was_used(server: Valkey) -> None:
    async with limited_gateways(server.url, [Tenant("acme", limits=(_LIMIT,))], 2) as gateways:
        assert (await send_chats(gateways, 20)).count(200) == 20
        await wait_until(lambda: known_use(gateways) == {20})
        with Redis(unix_socket_path=str(server.path)) as redis:
            redis.flushall()
        assert (await send_chats(gateways, 40)).count(200) == 20


async def test_a_restarted_server_gets_the_script_again(server: Valkey) -> None:
    async with limited_gateways(server.url, [Tenant("acme", limits=(_LIMIT,))], 1) as gateways:
        assert (await send_chats(gateways, 5)).count(200) == 5
        server.kill()
        server.start()
        codes: list[int] = []
        while 429 not in codes:
            codes += await send_chats(gateways, 1)
        assert codes.count(200) == 35


async def test_strict_windows_close_after_a_loss_without_checkpoints(server: Valkey) -> None:
    limit = Limit(LimitUnit.REQUESTS, 2_000, Window.DAY)  # more than a gateway takes at once
    tenants = [Tenant("acme", limits=(limit,), enforcement=Enforcement.STRICT)]
    async with limited_gateways(server.url, tenants, 1) as gateways:
        assert (await send_chats(gateways, 5)).count(200) == 5
        with Redis(unix_socket_path=str(server.path)) as redis:
            redis.flushall()
        answered = await gateways[0].chat("acme")
        while answered.status_code == 200:  # from the slice that is left
            answered = await gateways[0].chat("acme")
        assert answered.status_code == 503
        assert answered.json()["error"]["code"] == "limits_unavailable"


async def test_strict_windows_open_again_once_checkpoints_are_merged(server: Valkey, tmp_path: Path) -> None:
    tenants = [Tenant("acme", limits=(_LIMIT,), enforcement=Enforcement.STRICT)]
    async with limited_gateways(server.url, tenants, 2, tmp_path) as gateways:
        assert (await send_chats(gateways, 30)).count(200) == 30
        ledgers = [gateway.service.ledgers["acme"] for gateway in gateways]
        before = ledgers[0].epoch
        with Redis(unix_socket_path=str(server.path)) as redis:
            redis.flushall()
        await wait_until(lambda: all(ledger.is_open and ledger.epoch != before for ledger in ledgers))
        assert (await send_chats(gateways, 20)).count(200) == 10
    assert sum(name.endswith(".quota") for name in os.listdir(tmp_path)) == 2


async def test_holder_whose_name_is_no_text_stops_the_limits_of_its_tenant_alone(server: Valkey) -> None:
    report = LimitReport("requests", "Day", 100, needs=[Need("gateway", 1, 1)])
    exchange = Exchange(False, 10_000, 60_000, "", is_merged=False, wants_rows=True, limits=[report])
    link = RedisLink(server.url, SystemClock())
    link.start()
    store = RedisLimitStore(link)
    try:
        await link.wait_connected()
        await store.apply([("acme", exchange)])
        with Redis(unix_socket_path=str(server.path)) as redis:
            (key,) = redis.keys(f"{redis_keys.tenant_limits('acme')}|*")
            redis.hset(key, b"h\xff", b"\x01" + msgspec.msgpack.encode([1, 0, 1, 0, 1 << 50]))
        acme, zeta = await store.apply([("acme", exchange), ("zeta", exchange)])
    finally:
        await link.stop()
    assert acme is None
    assert zeta.limits[0].grants[0].status == GRANTED
    assert store.problem is not None
