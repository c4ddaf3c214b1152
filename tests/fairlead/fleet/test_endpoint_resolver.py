"""Names of endpoints: judged by their addresses, and resolved without delay for others."""

import asyncio
import socket
import threading
from collections import Counter
from collections.abc import Iterator

import pytest

from fairlead.fleet.endpoint_resolver import EndpointResolver
from fairlead.fleet.model import Fleet, Instance
from fairlead_testing.waiting import wait_until


class SlowNames:
    """A DNS server that answers names under ``slow`` only after ``release``.

    lookups: by host. most: the most that ran at once.
    """

    def __init__(self) -> None:
        self.release = threading.Event()
        self.lookups: Counter[str] = Counter()
        self.running = 0
        self.most = 0
        self._lock = threading.Lock()
        self._real = socket.getaddrinfo

    def look_up(self, host: str, port: int, **more: int) -> object:
        """Takes the place of `socket.getaddrinfo`."""
        if more.get("flags"):
            return self._real(host, port, **more)
        with self._lock:
            self.lookups[host] += 1
            self.running += 1
            self.most = max(self.most, self.running)
        if host.endswith(".slow"):
            assert self.release.wait(60)
        with self._lock:
            self.running -= 1
        if host.startswith("absent"):
            raise socket.gaierror(socket.EAI_NONAME, "unknown name")
        return self._real("192.0.2.7", port, **more)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowNames]:
    """Yields the names in place of those of this machine."""
    resolver = SlowNames()
    monkeypatch.setattr(socket, "getaddrinfo", resolver.look_up)
    yield resolver
    resolver.release.set()


def _resolver(**hosts: list[str]) -> EndpointResolver:
    """Returns a resolver of a fleet with these hosts, by namespace."""
    resolver = EndpointResolver()
    instances = {
        f"{namespace}/tiny": tuple(
            Instance(f"{namespace}-{at}", namespace, "tiny", "main", f"http://{host}:80", checks_address=True)
            for at, host in enumerate(of_namespace)
        )
        for namespace, of_namespace in hosts.items()
    }
    pod = Instance("pod", "other", "tiny", "main", "http://10.0.0.1:8000")
    resolver.update_fleet(Fleet(1, 1, {}, {**instances, "other/tiny": (pod,)}))
    return resolver


@pytest.mark.parametrize("host", ["localhost", "127.1", "2130706433", "0x7f000001", "10.0.0.1"])
def test_name_is_judged_by_the_address_that_it_resolves_to(host: str) -> None:
    resolver = _resolver(a=[host, "10.0.0.2"])
    with pytest.raises(OSError, match=f"the endpoint {host} is refused"):
        asyncio.run(resolver.resolve(host, 80))
    assert asyncio.run(resolver.resolve("10.0.0.2", 80)) == "10.0.0.2"


async def test_name_without_an_address_is_an_error_for_each_connection(names: SlowNames) -> None:
    resolver = _resolver(a=["absent.example"])
    for _ in range(2):
        with pytest.raises(socket.gaierror):
            await resolver.resolve("absent.example", 80)
    assert names.lookups["absent.example"] == 2


async def test_name_that_no_host_can_have_is_an_error() -> None:
    with pytest.raises(OSError, match="not a valid host name"):
        await _resolver().resolve("a" * 64 + ".example", 80)


async def test_slow_names_of_one_namespace_delay_no_lookup_of_another(names: SlowNames) -> None:
    slow = [f"{number}.slow" for number in range(200)]
    shared = "shared.example"
    resolver = _resolver(flood=[*slow, shared], victim=["good.example", shared])
    tasks = [asyncio.ensure_future(resolver.resolve(host, 80)) for host in slow * 3]
    await wait_until(lambda: names.running == 2)
    for host in ("good.example", shared, "good.example"):
        assert await resolver.resolve(host, 80) == "192.0.2.7"
    assert names.most == 3, "two of the namespace with slow names"
    names.release.set()
    assert set(await asyncio.gather(*tasks)) == {"192.0.2.7"}
    assert max(names.lookups[host] for host in slow) == 1, "one for all who wait"
    assert (len(resolver._lookups), len(resolver._queues), len(resolver._running)) == (0, 0, 0)


async def test_many_namespaces_share_the_threads_in_turn(names: SlowNames) -> None:
    hosts = {f"n{number}": [f"{at}-{number}.slow" for at in range(5)] for number in range(40)}
    resolver = _resolver(**hosts)
    tasks = [asyncio.ensure_future(resolver.resolve(host, 80)) for group in hosts.values() for host in group]
    await wait_until(lambda: names.running == 32)
    names.release.set()
    await asyncio.gather(*tasks)
    assert names.most == 32


async def test_lookups_that_all_callers_left_are_not_begun(names: SlowNames) -> None:
    slow = [f"{number}.slow" for number in range(50)]
    resolver = _resolver(flood=slow)
    tasks = [asyncio.ensure_future(resolver.resolve(host, 80)) for host in slow]
    await wait_until(lambda: names.running == 2)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    names.release.set()
    await wait_until(lambda: not resolver._running)
    assert (names.lookups.total(), len(resolver._lookups), len(resolver._queues)) == (2, 0, 0)


async def test_machine_without_threads_fails_the_lookup(names: SlowNames, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    resolver = _resolver(a=["good.example"])
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(OSError, match="can't start new thread"):
            await resolver.resolve("good.example", 80)
    assert await resolver.resolve("good.example", 80) == "192.0.2.7"
