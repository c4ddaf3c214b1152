"""The search in Redis for indexes: only one that is kept, and under the same secret, counts."""

from collections.abc import Sequence
from typing import Any, cast

from fairlead.runtime.clock import ManualClock
from fairlead_gateway.supervisor.kv_index.index_finder import INDEX_ABANDONED_SECONDS, RedisIndexFinder
from fairlead_kvstore.index.format import encode_value
from fairlead_kvstore.index.instance_status import InstanceStatus, InstanceStatuses, secret_fingerprint
from fairlead_kvstore.index.redis_keys import index_keys
from fairlead_kvstore.redis.link import RedisLink

SECRET = b"the secret of the installation"
READ = InstanceStatus("http://127.0.0.1:1", connected=True)
KNOWN = InstanceStatus("http://127.0.0.1:1", blocks=7)
SILENT = InstanceStatus("http://127.0.0.1:1", trouble="it publishes no KV events")


class FakeLink:
    """A Redis with these statuses by model, which can be away."""

    def __init__(self) -> None:
        self.values: dict[str, object] = {}
        self.is_away = False
        self.reads: list[int] = []

    async def wait_connected(self) -> None: ...

    async def run(self, commands: Sequence[tuple[str, ...]]) -> list[Any] | None:
        self.reads.append(len(commands))
        by_key = {index_keys(model)[1]: value for model, value in self.values.items()}
        return None if self.is_away else [by_key.get(key) for _, key, _ in commands]


def statuses(clock: ManualClock, *instances: InstanceStatus, secret: bytes = SECRET, age: float = 0.0) -> bytes:
    found = {f"e-{number}": instance for number, instance in enumerate(instances)}
    return encode_value(InstanceStatuses(1, clock.wall() - age, secret_fingerprint(secret), found))


def finder_of(link: FakeLink, clock: ManualClock) -> RedisIndexFinder:
    return RedisIndexFinder(cast(RedisLink, link), clock, secret=SECRET)


async def test_an_index_counts_while_an_indexer_reads_an_engine() -> None:
    link, clock = FakeLink(), ManualClock()
    link.values = {
        "a/read": statuses(clock, SILENT, READ),
        "a/known": statuses(clock, KNOWN),
        "a/silent": statuses(clock, SILENT),
        "a/empty": statuses(clock),
        "a/abandoned": statuses(clock, READ, age=INDEX_ABANDONED_SECONDS),
        "a/damaged": b"\x01\xff",
        "a/wrong": RuntimeError("WRONGTYPE"),
    }
    assert await finder_of(link, clock).find([*link.values, "a/none"]) == {"a/read", "a/known"}


async def test_an_index_under_another_secret_is_told_apart_while_it_is_there() -> None:
    link, clock = FakeLink(), ManualClock()
    finder = finder_of(link, clock)
    link.values = {"a/m": statuses(clock, READ, secret=b"another")}
    assert await finder.find(["a/m"]) == set()
    assert finder.mismatched == {"a/m"}
    link.is_away = True
    assert await finder.find(["a/m"]) is None
    assert finder.mismatched == {"a/m"}
    link.is_away = False
    assert await finder.find([]) == set()
    assert finder.mismatched == frozenset()


async def test_many_models_are_read_in_parts() -> None:
    link, clock = FakeLink(), ManualClock()
    names = [f"a/{number}" for number in range(150)]
    link.values = dict.fromkeys(names, statuses(clock, READ))
    assert await finder_of(link, clock).find(names) == set(names)
    assert link.reads == [64, 64, 22]
