"""Resolves the hosts of endpoints that Kubernetes objects name, and judges their addresses.

Lookups run in threads of their own: at most 32, of one namespace at most 2. Namespaces take turns.

Why: event loops resolve names in one small pool of threads, uvloop two at a time. A lookup whose
DNS server does not answer keeps its thread for 10 s, also when its caller has given up. Two names
of one namespace could stop all lookups of a process.
"""

import asyncio
import contextlib
import socket
import threading
from collections import deque
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from fairlead.fleet.endpoint_address import address_refusal, canonical_address
from fairlead.fleet.model import Fleet

_MAX_LOOKUPS: Final = 32
_MAX_LOOKUPS_OF_NAMESPACE: Final = 2


@dataclass(slots=True)
class _Lookup:
    """One lookup, for all who wait for this host. It is queued until its thread begins."""

    host: str
    found: asyncio.Future[list[str]]
    waiting: int = 0


class EndpointResolver:
    """The addresses of the endpoints of a fleet, each resolved for one connection.

    A host has one lookup at a time. Where several namespaces name it, the least busy of them counts
    it, so that none can delay the hosts of others.
    """

    def __init__(self) -> None:
        self._namespaces: dict[str, set[str]] = {}  # by host
        self._model_addresses: frozenset[str] = frozenset()
        self._lookups: dict[str, _Lookup] = {}  # by host
        self._queues: dict[str, deque[_Lookup]] = {}  # by namespace; the first has the next turn
        self._running: dict[str, int] = {}  # by namespace

    def update_fleet(self, fleet: Fleet) -> None:
        """Takes the endpoints of a new fleet snapshot."""
        instances = [instance for group in fleet.instances.values() for instance in group]
        self._namespaces = {}
        for instance in instances:
            if instance.checks_address:
                self._namespaces.setdefault(_host(instance.url), set()).add(instance.namespace)
        if self._namespaces:
            hosts = {_host(instance.url) for instance in instances if not instance.checks_address}
            pod_addresses = frozenset(filter(None, map(canonical_address, hosts)))
            self._model_addresses = pod_addresses | fleet.service_addresses

    def checks(self, host: str) -> bool:
        return host in self._namespaces

    async def resolve(self, host: str, port: int) -> str:
        """Returns the first permitted address of a host.

        Raises ConnectionRefusedError if it has none, and OSError if the host cannot be resolved.
        """
        refusal = "it has no address"
        for address in await self._addresses(host, port):
            refusal = address_refusal(address, self._model_addresses)
            if not refusal:
                return address
        raise ConnectionRefusedError(f"the endpoint {host} is refused: {refusal}")

    async def _addresses(self, host: str, port: int) -> list[str]:
        with contextlib.suppress(OSError):
            return _look_up(host, port, socket.AI_NUMERICHOST)
        lookup = self._lookups.get(host)
        if lookup is None:
            lookup = self._lookups[host] = _Lookup(host, asyncio.get_running_loop().create_future())
            namespace = min(self._namespaces.get(host, {""}), key=self._lookup_count)
            self._queues.setdefault(namespace, deque()).append(lookup)
        lookup.waiting += 1
        self._start_lookups()
        try:
            return await asyncio.shield(lookup.found)
        finally:
            lookup.waiting -= 1

    def _lookup_count(self, namespace: str) -> int:
        return self._running.get(namespace, 0) + len(self._queues.get(namespace, ()))

    def _start_lookups(self) -> None:
        """Starts the lookups that have a free thread, of each namespace in turn."""
        self._drop_abandoned()
        for namespace in list(self._queues):
            running = self._running.get(namespace, 0)
            if running >= _MAX_LOOKUPS_OF_NAMESPACE:
                continue
            if sum(self._running.values()) >= _MAX_LOOKUPS:
                return
            queue = self._queues.pop(namespace)
            lookup = queue.popleft()
            if queue:
                self._queues[namespace] = queue  # behind the others
            self._running[namespace] = running + 1
            self._start(namespace, lookup)

    def _start(self, namespace: str, lookup: _Lookup) -> None:
        loop = lookup.found.get_loop()
        thread = threading.Thread(target=self._run, args=(loop, namespace, lookup), daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # no thread is left
            loop.call_soon(self._on_found, namespace, lookup, OSError(str(error)))

    def _run(self, loop: asyncio.AbstractEventLoop, namespace: str, lookup: _Lookup) -> None:
        """Looks a host up, in a thread."""
        found: list[str] | OSError
        try:
            found = _look_up(lookup.host, 0)
        except OSError as error:
            found = error
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(self._on_found, namespace, lookup, found)

    def _on_found(self, namespace: str, lookup: _Lookup, found: list[str] | OSError) -> None:
        del self._lookups[lookup.host]
        self._running[namespace] -= 1
        if not self._running[namespace]:
            del self._running[namespace]
        if isinstance(found, OSError):
            lookup.found.set_exception(found)
            lookup.found.exception()  # retrieved, in case that all callers left
        else:
            lookup.found.set_result(found)
        self._start_lookups()

    def _drop_abandoned(self) -> None:
        """Drops the lookups at the heads of queues that all callers have left."""
        for namespace, queue in list(self._queues.items()):
            while queue and not queue[0].waiting:
                lookup = queue.popleft()
                del self._lookups[lookup.host]
                lookup.found.cancel()
            if not queue:
                del self._queues[namespace]


def _look_up(host: str, port: int, flags: int = 0) -> list[str]:
    """Returns the addresses of a host. Raises OSError. Blocks, but not for an IP address."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    except UnicodeError:
        raise OSError(f"{host} is not a valid host name") from None
    return [str(address[0]) for *_, address in found]


def _host(url: str) -> str:
    return urlsplit(url).hostname or ""
