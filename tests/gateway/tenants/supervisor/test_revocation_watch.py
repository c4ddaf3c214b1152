"""The revocation list of a cluster, with an API server that changes and fails."""

from random import Random
from typing import Any, ClassVar

import msgspec
import pytest

from fairlead.kube.client import KubeApi
from fairlead.kube.resources import CONFIG_MAPS
from fairlead.runtime.clock import Pacing, SystemClock
from fairlead_gateway import messages as say
from fairlead_gateway.tenants.messages import KeyUpdate, RevocationUpdate
from fairlead_gateway.tenants.supervisor.access_service import AccessService, AccessSources
from fairlead_gateway.tenants.supervisor.tenant_watch import RevocationWatch
from fairlead_testing.kube.fake_server import FakeApiServer, fake_api_server
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.sockets

PLACE, NAME = "fairlead", "fairlead-revoked-keys"
OLD, NEW = "0a" * 32, "0b" * 32


def put(fake: FakeApiServer, text: str | None) -> None:
    fake.put(CONFIG_MAPS, PLACE, NAME, **({} if text is None else {"data": {"revoked": text, "other": NEW}}))


def watch_of(fake: FakeApiServer) -> RevocationWatch:
    clock, chance = SystemClock(), Random(1).random
    return RevocationWatch(KubeApi(fake.config(), clock, chance), PLACE, NAME, Pacing(clock, chance))


def digests_of(watch: RevocationWatch) -> set[str]:
    return {digest.hex() for digest in watch.digests}


async def test_the_list_follows_the_config_map_line_by_line() -> None:
    async with fake_api_server() as fake:
        put(fake, None)
        watch = watch_of(fake)
        await watch.start(lambda: None)
        try:
            await wait_until(lambda: watch.is_loaded)
            assert (digests_of(watch), watch.problem) == (set(), None)
            put(fake, f"{OLD}\n")
            await wait_until(lambda: digests_of(watch) == {OLD})
            put(fake, f"{OLD}\nno digest\n{NEW.upper()} # acme/prod\n")
            await wait_until(lambda: digests_of(watch) == {OLD, NEW})
            assert watch.problem == f"the ConfigMap {PLACE}/{NAME}: no digest on line 2; the other lines count"
            fake.remove(CONFIG_MAPS, PLACE, NAME)
            await wait_until(lambda: "was deleted" in (watch.problem or ""))
            assert digests_of(watch) == {OLD, NEW}
            put(fake, NEW)
            await wait_until(lambda: digests_of(watch) == {NEW})
            assert watch.problem is None
        finally:
            await watch.stop()


async def test_only_its_own_config_map_is_asked_for() -> None:
    async with fake_api_server() as fake:
        watch = watch_of(fake)
        await watch.start(lambda: None)
        try:
            await wait_until(lambda: any(call.is_watch for call in fake.calls))
        finally:
            await watch.stop()
        assert {call.path for call in fake.calls} == {CONFIG_MAPS.path(PLACE)}
        assert {call.query["fieldSelector"] for call in fake.calls} == {f"metadata.name={NAME}"}


class Received:
    """The messages about keys that workers would get."""

    def __init__(self) -> None:
        self.revoked: list[bytes] = []
        self.is_loaded: list[bool] = []

    def apply(self, message: Any) -> None:
        message = msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=say.ToWorker)
        if isinstance(message, RevocationUpdate):
            self.revoked = message.digests
        elif isinstance(message, KeyUpdate):
            self.is_loaded.append(message.are_keys_loaded)


class NoTenants:
    """A source of tenants that has none."""

    tenants: ClassVar[dict[str, Any]] = {}
    problems: tuple[str, ...] = ()
    is_loaded = True

    async def start(self, on_change: Any) -> None: ...

    async def stop(self) -> None: ...

    def author_of(self, name: str) -> str:
        return name

    def warnings(self) -> list[str]:
        return []


def service_of(watch: RevocationWatch, received: Received) -> AccessService:
    sources = AccessSources(tenant_sources=[NoTenants()], revocation_watch=watch)
    return AccessService(sources, received.apply, lambda: 1_000.0)


async def test_no_key_is_accepted_before_the_revoked_ones_are_known() -> None:
    async with fake_api_server() as fake:
        put(fake, OLD)
        received, watch = Received(), watch_of(fake)
        service = service_of(watch, received)
        await service.start()
        try:
            assert not service.are_keys_loaded
            await wait_until(lambda: received.is_loaded[-1:] == [True])
            assert received.revoked == [bytes.fromhex(OLD)]
            assert service.table().revoked == {bytes.fromhex(OLD)}
        finally:
            await service.stop()


async def test_a_list_that_may_not_be_read_stops_nobody() -> None:
    async with fake_api_server() as fake:
        fake.refused_paths.add(CONFIG_MAPS.path(PLACE))
        received = Received()
        service = service_of(watch_of(fake), received)
        await service.start()
        try:
            await wait_until(lambda: received.is_loaded[-1:] == [True])
            assert any("cannot watch the ConfigMap" in warning for warning in service.warnings({}))
        finally:
            await service.stop()
