"""Limits of tenants on a Redis Cluster, and after failovers to a replica that lags."""

import asyncio
from pathlib import Path

import pytest
from redis import Redis
from redis.crc import key_slot

from fairlead.tenants.model import Enforcement, Limit, LimitUnit, Tenant, Window
from fairlead_kvstore.index import redis_keys
from fairlead_testing.gateway.limited_gateway import LimitedGateway, limited_gateways, send_chats, send_until_spent
from fairlead_testing.processes import block_until
from fairlead_testing.redis.valkey_cluster import HOST, ValkeyGroup, ValkeyNode
from fairlead_testing.waiting import wait_until

pytestmark = [pytest.mark.sockets, pytest.mark.timeout(300)]
_LIMIT = Limit(LimitUnit.REQUESTS, 40, Window.DAY)
_TENANTS = [Tenant(f"team-{number}", limits=(_LIMIT,)) for number in range(6)]
_SLOTS_OF_A_MASTER = 16_384 // 3


def _slot(tenant: str) -> int:
    return int(key_slot(redis_keys.tenant_limits(tenant).encode()))


async def _get_answers(gateways: list[LimitedGateway], count: int, tenant: str = "acme") -> None:
    """Sends until so many requests were answered; while the store is away, they get 503."""
    while count > 0:
        codes = await send_chats(gateways, count, tenant)
        assert 429 not in codes
        count -= codes.count(200)


def _reported(gateways: list[LimitedGateway], tenant: str = "acme") -> int:
    """Returns what workers have reported to their gateways as used of a tenant's limits."""
    spent: dict[str, int] = {}
    for gateway in gateways:
        for _, row in gateway.service.ledgers[tenant].rows():
            spent[row.holder] = max(spent.get(row.holder, 0), row.spent)
    return sum(spent.values())


def _copies(node: ValkeyNode) -> list[tuple[bytes, bytes]]:
    with Redis(host=HOST, port=node.port, password=node.password, protocol=2) as redis:
        return [(key, redis.dump(key)) for key in redis.scan_iter("fl1:{acme}:lim*")]


def _is_copied(master: ValkeyNode, replica: ValkeyNode) -> bool:
    """Returns whether a replica has every write of its master."""
    written, copied = (int(node.execute("INFO", "replication")["master_repl_offset"]) for node in (master, replica))
    return written == copied


def _go_back(node: ValkeyNode, copies: list[tuple[bytes, bytes]]) -> None:
    with Redis(host=HOST, port=node.port, password=node.password, protocol=2) as redis:
        for key, value in copies:
            redis.restore(key, 600_000, value, replace=True)


@pytest.mark.parametrize("enforcement", [Enforcement.ESTIMATED, Enforcement.STRICT])
async def test_a_replica_that_lags_becomes_master_and_no_request_counts_twice_or_never(
    pair: ValkeyGroup, tmp_path: Path, enforcement: Enforcement
) -> None:
    folder = tmp_path / "checkpoints" if enforcement is Enforcement.STRICT else None
    master, replica = pair.nodes
    tenants = [Tenant("acme", limits=(_LIMIT,), enforcement=enforcement)]
    async with limited_gateways(pair.url, tenants, 2, folder) as gateways:
        await _get_answers(gateways, 8)
        await wait_until(lambda: _reported(gateways) == 8)
        await asyncio.to_thread(block_until, lambda: len(_copies(replica)) == 2, "the replica has the limits")
        old = await asyncio.to_thread(_copies, replica)
        await _get_answers(gateways, 12)
        await wait_until(lambda: _reported(gateways) == 20)
        await asyncio.to_thread(replica.execute, "CONFIG", "SET", "replica-read-only", "no")
        before = gateways[0].service.ledgers["acme"].epoch
        master.kill()
        await asyncio.to_thread(_go_back, replica, old)
        ledgers = [gateway.service.ledgers["acme"] for gateway in gateways]

        admitted = 0

        async def is_another_epoch() -> bool:
            nonlocal admitted
            admitted += (await send_chats(gateways, 2)).count(200)  # an idle gateway asks the store nothing
            return all(ledger.is_open and ledger.epoch != before for ledger in ledgers)

        await wait_until(is_another_epoch)
        assert admitted + await send_until_spent(gateways, 40) == 20
        assert replica.execute("ROLE")[0] == "master"


async def test_tenants_on_all_masters_of_a_cluster_share_their_limits_exactly(ring: ValkeyGroup) -> None:
    assert {_slot(tenant.name) // _SLOTS_OF_A_MASTER for tenant in _TENANTS} == {0, 1, 2}
    async with limited_gateways(ring.url, _TENANTS, 2, lease_seconds=60) as gateways:
        admitted = await asyncio.gather(*(send_until_spent(gateways, 40, tenant.name) for tenant in _TENANTS))
        assert admitted == [40] * len(_TENANTS)
    for tenant in _TENANTS:
        node = ring.nodes[_slot(tenant.name) // _SLOTS_OF_A_MASTER]
        keys = await asyncio.to_thread(node.execute, "KEYS", f"{redis_keys.tenant_limits(tenant.name)}*")
        assert len(keys) == 2, "the tenant and its window, in one slot"


async def test_a_master_of_a_cluster_dies_and_its_tenants_keep_their_limits(ring: ValkeyGroup) -> None:
    (first, *_) = (tenant for tenant in _TENANTS if _slot(tenant.name) < _SLOTS_OF_A_MASTER)
    async with limited_gateways(ring.url, [first], 2, lease_seconds=60) as gateways:
        await _get_answers(gateways, 20, first.name)
        await wait_until(lambda: _reported(gateways, first.name) == 20)
        await asyncio.to_thread(block_until, lambda: _is_copied(*ring.nodes[0:4:3]), "the replica has all of it")
        ring.nodes[0].kill()
        await asyncio.to_thread(
            block_until, lambda: ring.nodes[3].execute("ROLE")[0] == "master", "the replica took over"
        )
        assert await send_until_spent(gateways, 40, first.name) == 20


async def test_a_slot_that_moves_takes_its_limits_along(ring: ValkeyGroup) -> None:
    tenant = next(tenant for tenant in _TENANTS if _slot(tenant.name) // _SLOTS_OF_A_MASTER == 1)
    async with limited_gateways(ring.url, [tenant], 2, lease_seconds=60) as gateways:
        await _get_answers(gateways, 20, tenant.name)
        await wait_until(lambda: _reported(gateways, tenant.name) == 20)
        await asyncio.to_thread(_move_slot, _slot(tenant.name), ring.nodes[1], ring.nodes[2])
        assert await send_until_spent(gateways, 40, tenant.name) == 20
        keys = await asyncio.to_thread(ring.nodes[2].execute, "KEYS", f"{redis_keys.tenant_limits(tenant.name)}*")
        assert len(keys) == 2


def _move_slot(slot: int, source: ValkeyNode, target: ValkeyNode) -> None:
    """Moves a slot with its keys, as a resharding does."""
    source_id, target_id = (str(node.execute("CLUSTER", "MYID")) for node in (source, target))
    target.execute("CLUSTER", "SETSLOT", str(slot), "IMPORTING", source_id)
    source.execute("CLUSTER", "SETSLOT", str(slot), "MIGRATING", target_id)
    with Redis(host=HOST, port=source.port, protocol=2) as redis:
        while keys := redis.execute_command("CLUSTER GETKEYSINSLOT", slot, 100):
            redis.execute_command("MIGRATE", HOST, target.port, "", 0, 5_000, "KEYS", *keys)
    for node in (target, source):
        node.execute("CLUSTER", "SETSLOT", str(slot), "NODE", target_id)
