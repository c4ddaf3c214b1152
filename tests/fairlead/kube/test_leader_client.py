"""The client of a leader: a process that lost the lease writes nothing more."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from fairlead.kube.errors import NotLeading
from fairlead.kube.leader_client import LeaderKubeApi
from fairlead.kube.resources import CONFIG_MAPS, Manifest
from fairlead_testing.kube.fake_server import FakeApiServer, OrderedResponse, fake_api_server
from fairlead_testing.waiting import InstantTime

MAP: Manifest = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m", "namespace": "x"}}


class Leadership:
    """The leadership of a process. It ends at the pause of a retry."""

    def __init__(self) -> None:
        self.leads = True
        self.time = InstantTime()

    async def pause(self, seconds: float) -> None:
        self.leads = False


@asynccontextmanager
async def leader_client() -> AsyncIterator[tuple[FakeApiServer, LeaderKubeApi, Leadership]]:
    here = Leadership()
    async with fake_api_server() as fake:
        fake.put(CONFIG_MAPS, "x", "m", data={"a": "1"})
        async with LeaderKubeApi(fake.config(), here.time, lambda: 0.0, pause=here.pause) as api:
            api.restrict_writes(lambda: here.leads)
            yield fake, api, here


def written(fake: FakeApiServer) -> list[str]:
    return [call.method for call in fake.calls if call.method != "GET"]


async def test_lost_lease_ends_writes_and_not_reads() -> None:
    async with leader_client() as (fake, api, here):
        await api.apply(MAP, "operator")
        here.leads = False
        writes: list[Callable[[], Awaitable[object]]] = [
            lambda: api.apply(MAP, "operator"),
            lambda: api.apply_new(MAP, "operator"),
            lambda: api.apply_status(MAP, "operator"),
            lambda: api.create(MAP, "operator"),
            lambda: api.patch_merge(CONFIG_MAPS, "x", "m", {}, "operator"),
            lambda: api.delete(CONFIG_MAPS, "x", "m", "uid"),
            lambda: api.evict("x", "m"),
        ]
        for write in writes:
            with pytest.raises(NotLeading):
                await write()
        assert written(fake) == ["PATCH"]
        assert (await api.get(CONFIG_MAPS, "x", "m"))["metadata"]["name"] == "m"


async def test_lease_lost_during_the_pause_of_a_retry_ends_the_write() -> None:
    async with leader_client() as (fake, api, _):
        fake.ordered_responses.append(OrderedResponse(503))
        with pytest.raises(NotLeading):
            await api.apply(MAP, "operator")
        assert written(fake) == ["PATCH"]


async def test_lease_lost_while_the_connection_is_opened_ends_the_write(monkeypatch: pytest.MonkeyPatch) -> None:
    async with leader_client() as (fake, api, here):
        loop = asyncio.get_running_loop()
        connect = loop.create_connection

        async def suspended(*args: object, **more: object) -> object:
            connection = await connect(*args, **more)  # type: ignore[call-overload]
            here.leads = False
            return connection

        monkeypatch.setattr(loop, "create_connection", suspended)
        with pytest.raises(NotLeading):
            await api.apply(MAP, "operator")
        assert written(fake) == []
