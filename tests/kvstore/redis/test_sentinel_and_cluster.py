"""The link to several real servers: a master behind sentinels, and a cluster."""

import asyncio
from dataclasses import replace

import pytest
from redis.exceptions import ResponseError

from fairlead.limits import Limits
from fairlead.runtime.clock import SystemClock
from fairlead_kvstore.redis.backends import Command
from fairlead_kvstore.redis.link import RedisLink
from fairlead_testing.processes import block_until
from fairlead_testing.redis.valkey import connected_link
from fairlead_testing.redis.valkey_cluster import ValkeyGroup
from fairlead_testing.waiting import wait_until as until

pytestmark = [pytest.mark.sockets, pytest.mark.timeout(300)]
QUICK = replace(Limits(), redis_pause_seconds=0.2, redis_ping_seconds=0.05, redis_timeout_seconds=2.0)
NAME = "fairlead-gw"
KEYS = [f"fl1:{{ns/model-{number}}}:gw" for number in range(12)]
"""In slots of every master."""


async def test_master_is_found_by_sentinels_and_after_a_failover(pair: ValkeyGroup) -> None:
    async with connected_link(pair.url, QUICK, NAME) as link:
        assert await link.run([("SET", "a", "1"), ("INCR", "a"), ("GET", "a")]) == [True, 2, b"2"]
        assert link.describe().startswith("connected to shared by sentinels 127.0.0.1:")
        master, replica = pair.nodes
        await asyncio.to_thread(block_until, lambda: replica.execute("GET", "a") == "2", "the replica has it")
        master.kill()
        await until(lambda: not link.state.connected)
        assert await link.run([("GET", "a")]) is None
        await until(lambda: link.state.connected)
        assert await link.run([("INCR", "a")]) == [3]
        assert replica.execute("ROLE")[0] == "master"


async def test_hanging_sentinel_is_skipped_and_a_missing_master_reported(pair: ValkeyGroup) -> None:
    link = RedisLink(pair.url.replace("/shared/", "/other/"), SystemClock(), limits=QUICK)
    link.start()
    await until(lambda: "knows a running master" in link.describe())
    assert "word" not in link.describe(), "the password"
    assert not link.state.connected
    await link.stop()
    pair.sentinels[0].freeze()
    async with connected_link(pair.url, QUICK, NAME) as link:
        assert await link.run([("PING",)]) == [True]
    pair.sentinels[0].kill()
    async with connected_link(pair.url, QUICK, NAME) as link:
        assert await link.run([("PING",)]) == [True]


async def test_demoted_master_is_left(pair: ValkeyGroup) -> None:
    async with connected_link(pair.url, QUICK, NAME) as link:
        master, replica = pair.nodes
        await asyncio.to_thread(pair.sentinels[0].execute, "SENTINEL", "FAILOVER", "shared")
        await asyncio.to_thread(block_until, lambda: replica.execute("ROLE")[0] == "master", "the replica was promoted")
        await asyncio.to_thread(block_until, lambda: master.execute("ROLE")[0] != "master", "the master was demoted")

        async def written() -> None:
            while await link.run([("SET", "b", "1")]) != [True]:
                async with asyncio.timeout(60):
                    await link.wait_connected()

        await written()
        assert await asyncio.to_thread(replica.execute, "GET", "b") == "1"


async def test_commands_reach_their_slots_master_and_a_refusal_stays_single(ring: ValkeyGroup) -> None:
    async with connected_link(ring.url, QUICK, NAME) as link:
        commands: list[Command] = [("SET", key, key) for key in KEYS]
        assert await link.run(commands) == [True] * len(KEYS)
        assert await link.run([("GET", key) for key in KEYS]) == [key.encode() for key in KEYS]
        held = [await asyncio.to_thread(node.execute, "DBSIZE") for node in ring.nodes[:3]]
        assert sum(held) == len(KEYS)
        assert all(held), "the names are spread over all masters"
        replies = await link.run([("INCR", KEYS[0]), ("GET", KEYS[1])])
        assert replies is not None
        assert isinstance(replies[0], ResponseError)
        assert replies[1] == KEYS[1].encode()
        assert link.state.connected


async def test_reply_of_a_cluster_takes_a_bounded_memory(ring: ValkeyGroup) -> None:
    async with connected_link(ring.url, replace(QUICK, redis_reply_bytes=1_000_000)) as link:
        for key in KEYS[:4]:
            assert await link.run([("SET", key, b"x" * 900_000)]) == [True]
            assert await link.run([("GET", key), ("GET", key)]) is not None
            assert await link.run([("APPEND", key, b"x" * 900_000)]) == [1_800_000]
            assert await link.run([("GET", key)]) is None
            assert "more than 1000000 bytes" in link.state.reason
            await link.wait_connected()


async def test_keys_of_all_masters_match_a_pattern(ring: ValkeyGroup) -> None:
    async with connected_link(ring.url, QUICK, NAME) as link:
        await link.run([("SET", key, "1") for key in [*KEYS, "other"]])
        assert await link.scan_keys("fl1:{*}:gw", 100) == {key.encode() for key in KEYS}
        assert len(await link.scan_keys("fl1:{*}:gw", 5) or ()) == 5


async def test_memory_of_a_cluster_is_that_of_its_smallest_master(ring: ValkeyGroup) -> None:
    async with connected_link(ring.url, QUICK, NAME) as link:
        assert await link.max_memory() == 0
        for number, node in enumerate(ring.nodes[:2]):
            await asyncio.to_thread(node.execute, "CONFIG", "SET", "maxmemory", f"{64 + number}mb")
        assert await link.max_memory() == 64 * 1024 * 1024


async def test_dead_master_is_reported_and_its_replica_found(ring: ValkeyGroup) -> None:
    async with connected_link(ring.url, QUICK, NAME) as link:
        assert await link.run([("SET", key, "1") for key in KEYS]) is not None
        first, replica = ring.nodes[0], ring.nodes[3]
        held = await asyncio.to_thread(first.execute, "DBSIZE")
        await asyncio.to_thread(block_until, lambda: replica.execute("DBSIZE") == held, "the replica has all of it")
        first.kill()
        await until(lambda: not link.state.connected)
        assert await link.run([("GET", KEYS[0])]) is None
        await until(lambda: link.state.connected)
        assert await link.run([("INCR", key) for key in KEYS]) == [2] * len(KEYS)


async def test_hanging_node_is_skipped_for_another(ring: ValkeyGroup) -> None:
    """Only hosts that answer are queried; the slots of the hanging one have moved to its
    replica.
    """
    ring.nodes[0].freeze()
    block_until(lambda: ring.nodes[3].execute("ROLE")[0] == "master", "the replica took over")
    async with connected_link(ring.url, QUICK, NAME) as link:
        assert await link.run([("SET", key, "1") for key in KEYS]) == [True] * len(KEYS)
