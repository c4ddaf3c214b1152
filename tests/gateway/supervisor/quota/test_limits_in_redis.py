"""Limits of tenants over gateways that share a real server, which restarts and loses its state."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from redis import Redis

from fairlead.limits import Limits
from fairlead.runtime.clock import SystemClock
from fairlead.tenants.model import Enforcement, Limit, LimitUnit, Tenant, Window
from fairlead_gateway.supervisor.quota.quota_service import QuotaService
from fairlead_gateway.supervisor.quota.redis_limit_store import RedisLimitStore
from fairlead_kvstore.redis.link import RedisLink
from fairlead_testing.engines.scripted import EngineCall
from fairlead_testing.gateway.limited_gateway import LimitedGateway, answer, limited_gateway
from fairlead_testing.gateway.running_gateway import run_async
from fairlead_testing.redis.valkey import Valkey
from fairlead_testing.waiting import wait_until

_LIMITS = dataclasses.replace(
    Limits(), quota_report_seconds=0.02, quota_renew_seconds=0.05, quota_lease_seconds=1.0, redis_pause_seconds=0.1
)
_LIMIT = Limit(LimitUnit.REQUESTS, 40, Window.DAY)


async def _answer(call: EngineCall) -> None:
    await call.respond(answer())


@asynccontextmanager
async def _gateways(
    server: Valkey, tenants: Sequence[Tenant], count: int, folder: Path | None = None
) -> AsyncIterator[list[LimitedGateway]]:
    """Gateways that share a server, each with its own link."""
    async with AsyncExitStack() as stack:
        found = []
        for number in range(count):
            link = RedisLink(server.url, SystemClock(), limits=_LIMITS)
            link.start()
            stack.push_async_callback(link.stop)
            await link.wait_connected()
            service = QuotaService(
                RedisLimitStore(link), f"gw{number}", clock=SystemClock(), limits=_LIMITS, checkpoint_folder=folder
            )
            running = limited_gateway(_answer, tenants, _LIMITS, service=service)
            found.append(await stack.enter_async_context(running))
        yield found


def _known_use(gateways: Sequence[LimitedGateway]) -> set[int]:
    """Returns what the gateways know to be used of the limit."""
    return {sum(row.spent for _, row in gateway.service.ledgers["acme"].rows()) for gateway in gateways}


async def _send(gateways: Sequence[LimitedGateway], count: int) -> list[int]:
    answers = await asyncio.gather(*(gateways[number % len(gateways)].chat("acme") for number in range(count)))
    return [one.status_code for one in answers]


@pytest.mark.parametrize("enforcement", [Enforcement.ESTIMATED, Enforcement.STRICT])
def test_three_gateways_share_one_limit_exactly(server: Valkey, enforcement: Enforcement) -> None:
    async def main() -> None:
        tenants = [Tenant("acme", limits=(_LIMIT,), enforcement=enforcement)]
        async with _gateways(server, tenants, 3) as gateways:
            codes = await _send(gateways, 70)
            assert (codes.count(200), codes.count(429)) == (40, 30)

    run_async(main())


def test_a_flushed_server_learns_again_what_was_used(server: Valkey) -> None:
    async def main() -> None:
        async with _gateways(server, [Tenant("acme", limits=(_LIMIT,))], 2) as gateways:
            assert (await _send(gateways, 20)).count(200) == 20
            await wait_until(lambda: _known_use(gateways) == {20})
            with Redis(unix_socket_path=str(server.path)) as redis:
                redis.flushall()
            codes = await _send(gateways, 40)
            assert codes.count(200) == 20

    run_async(main())


def test_a_restarted_server_gets_the_script_again(server: Valkey) -> None:
    async def main() -> None:
        async with _gateways(server, [Tenant("acme", limits=(_LIMIT,))], 1) as gateways:
            assert (await _send(gateways, 5)).count(200) == 5
            server.kill()
            server.start()
            codes: list[int] = []
            while 429 not in codes:
                codes += await _send(gateways, 1)
            assert codes.count(200) == 35

    run_async(main())


def test_strict_windows_close_after_a_loss_without_checkpoints(server: Valkey) -> None:
    async def main() -> None:
        tenants = [Tenant("acme", limits=(_LIMIT,), enforcement=Enforcement.STRICT)]
        async with _gateways(server, tenants, 1) as gateways:
            assert (await _send(gateways, 5)).count(200) == 5
            with Redis(unix_socket_path=str(server.path)) as redis:
                redis.flushall()
            answered = await gateways[0].chat("acme")
            while answered.status_code == 200:  # from the slice that is left
                answered = await gateways[0].chat("acme")
            assert answered.status_code == 503
            assert answered.json()["error"]["code"] == "limits_unavailable"

    run_async(main())


def test_strict_windows_open_again_once_checkpoints_are_merged(server: Valkey, tmp_path: Path) -> None:
    async def main() -> None:
        tenants = [Tenant("acme", limits=(_LIMIT,), enforcement=Enforcement.STRICT)]
        async with _gateways(server, tenants, 2, tmp_path) as gateways:
            assert (await _send(gateways, 30)).count(200) == 30
            ledgers = [gateway.service.ledgers["acme"] for gateway in gateways]
            before = ledgers[0].epoch
            with Redis(unix_socket_path=str(server.path)) as redis:
                redis.flushall()
            await wait_until(lambda: all(ledger.is_open and ledger.epoch != before for ledger in ledgers))
            codes = await _send(gateways, 20)
            assert codes.count(200) == 10

    run_async(main())
    assert len(list(tmp_path.glob("*.quota"))) == 2
