"""Fleets that change under the traffic: draining and gone instances, new ones, none at all."""

import asyncio
from dataclasses import replace

import pytest

from fairlead.engine_profile import builtin_profile
from fairlead.fleet.model import Fleet, InstanceState
from fairlead.limits import Limits
from fairlead_gateway.journal import Reporters
from fairlead_gateway.resilience.outlier_detection import OutlierDetector
from fairlead_gateway.router_registry import RouterRegistry
from fairlead_gateway.upstream.connection import EngineConnection
from fairlead_gateway.upstream.connection_pool import ConnectionPool
from fairlead_testing.engines.scripted import PausedStream, scripted_engine, well_behaved
from fairlead_testing.gateway.running_gateway import GOOD, fleet_of, running_gateway
from fairlead_testing.http.raw_client import RawConnection, get_request, post_request, request, send
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.simulated

READY, DRAINING, STARTING = InstanceState.READY, InstanceState.DRAINING, InstanceState.STARTING


async def test_a_draining_instance_gets_no_new_request_and_finishes_what_it_has() -> None:
    gate = PausedStream()
    async with scripted_engine(gate.script) as first, scripted_engine() as second:
        urls = [first.url, second.url]
        async with running_gateway(fleet_of(urls, states=[READY, STARTING])) as running:
            connection = await RawConnection.connect(running.url)
            await connection.send(post_request(GOOD | {"stream": True}, close=False))
            await connection.reader.readuntil(b'"content":"a"')
            running.gateway.update_fleet(fleet_of(urls, version=2, states=[DRAINING, READY]))
            for number in range(50):
                body = GOOD | {"messages": [{"role": "user", "content": f"{number} " * 100}]}
                assert (await request(running.url, body)).fields["x-fairlead-instance"] == "e-1/1/0"
            assert len(first.calls) == 1
            gate.go_on.set()
            assert b"data: [DONE]" in await connection.reader.readuntil(b"0\r\n\r\n")
            await connection.close()


async def test_an_instance_that_drains_between_choice_and_sending_gets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Delays the connection and changes the fleet meanwhile, which only a patch can time."""
    async with scripted_engine() as first, scripted_engine() as second:
        urls = [first.url, second.url]
        async with running_gateway(fleet_of(urls, states=[READY, STARTING])) as running:
            connect = ConnectionPool.connect

            async def change_meanwhile(pool: ConnectionPool, address: str) -> EngineConnection:
                connection = await connect(pool, address)
                running.gateway.update_fleet(fleet_of(urls, version=2, states=[DRAINING, READY]))
                return connection

            monkeypatch.setattr(ConnectionPool, "connect", change_meanwhile)
            answer = await request(running.url, GOOD)
            assert answer.status == 200
            assert answer.fields["x-fairlead-instance"] == "e-1/1/0"
            assert first.calls == []
            assert len(second.calls) == 1
            assert {load.inflight for load in running.loads().values()} == {0}


async def test_without_a_ready_instance_the_answer_says_why_and_when_to_come_back() -> None:
    fleet = fleet_of(["http://127.0.0.1:1"] * 4, states=[STARTING, STARTING, DRAINING, InstanceState.SLEEPING])
    async with running_gateway(fleet, replace(Limits(), queue_starting_seconds=0.0)) as running:
        answer = await request(running.url, GOOD)
        assert (answer.status, answer.error["code"]) == (503, "no_ready_instance")
        assert "2 starting" in answer.error["message"]
        assert "1 draining" in answer.error["message"]
        assert int(answer.fields["retry-after"]) >= 1
        running.gateway.update_fleet(fleet_of([]))
        assert "it has none" in (await request(running.url, GOOD)).error["message"]


async def test_a_new_instance_and_a_new_model_are_served_at_once() -> None:
    async with scripted_engine() as engine, running_gateway(Fleet()) as running:
        assert (await request(running.url, GOOD)).status == 404
        running.gateway.update_fleet(fleet_of([engine.url]))
        assert (await request(running.url, GOOD)).status == 200
        running.gateway.update_fleet(Fleet(3, 3))
        assert (await request(running.url, GOOD)).status == 404
        assert (await send(running.url, get_request("/v1/models")))[0].json["data"] == []


async def test_connections_to_instances_that_left_are_closed() -> None:
    async with scripted_engine() as old, scripted_engine() as new, running_gateway(fleet_of([old.url])) as running:
        assert (await request(running.url, GOOD)).status == 200
        assert old.open == 1
        running.gateway.update_fleet(fleet_of([new.url], version=2))
        async with asyncio.timeout(120):
            await wait_until(lambda: not old.open)
        assert (await request(running.url, GOOD)).status == 200
        assert len(new.calls) == 1


async def test_changes_under_traffic_lose_no_request() -> None:
    async with scripted_engine() as first, scripted_engine() as second, scripted_engine() as third:
        urls = [first.url, second.url, third.url]
        async with running_gateway(fleet_of(urls)) as running:

            async def client(number: int) -> None:
                for turn in range(20):
                    answer = await request(running.url, GOOD | {"stream": turn % 2 == 0, "user": f"{number}"})
                    assert answer.status == 200
                    assert answer.complete

            async def changes(clients: "asyncio.Future[list[None]]") -> None:
                version = 1
                while not clients.done():
                    version += 1
                    states = [DRAINING if (version + place) % 3 == 0 else READY for place in range(3)]
                    running.gateway.update_fleet(fleet_of(urls, version=version, states=states))
                    await asyncio.sleep(0.005)

            clients = asyncio.gather(*[client(number) for number in range(10)])
            await changes(clients)
            await clients
            assert len(first.calls) + len(second.calls) + len(third.calls) == 200


async def test_while_draining_every_answer_is_the_last_of_its_connection() -> None:
    limits = Limits()
    async with scripted_engine(well_behaved) as engine, running_gateway(fleet_of([engine.url]), limits) as running:
        connection = await RawConnection.connect(running.url)
        await connection.send(post_request(GOOD, close=False))
        assert "connection" not in (await connection.read_response()).fields
        assert (await send(running.url, get_request("/readyz")))[0].status == 200
        running.gateway.drain()
        await connection.send(post_request(GOOD, close=False))
        answers = await connection.read_all_responses()
        assert [(answer.status, answer.fields["connection"]) for answer in answers] == [(200, "close")]
        unready = (await send(running.url, get_request("/readyz", close=False)))[0]
        assert unready.status == 503
        assert "draining" in unready.json["notes"]
        await connection.close()


def test_a_learned_profile_replaces_that_of_its_instance_only() -> None:
    fleet = fleet_of(["http://127.0.0.1:1", "http://127.0.0.1:2"])
    limits = Limits()
    routers = RouterRegistry(
        secret=b"s", limits=limits, outlier_detector=OutlierDetector(limits, lambda: 0.5), reporters=Reporters()
    )
    routers.update_fleet(fleet, 0.0)
    (key,) = fleet.models
    router = routers.serving.router(key)
    assert router is not None
    before = [endpoint.profile for endpoint in router.endpoints]
    learned = builtin_profile("l4-qwen8b")
    routers.set_learned_profiles({"e-1/1/0": learned, "departed": learned})
    assert [endpoint.profile for endpoint in router.endpoints] == [before[0], learned]
    routers.update_fleet(fleet, 1.0)
    assert [endpoint.profile for endpoint in router.endpoints] == [before[0], learned]
    routers.update_fleet(Fleet(), 2.0)
    routers.set_learned_profiles({"e-1/1/0": learned})
    assert routers.serving.router(key) is None


def test_models_stay_indexed_over_fleets_until_told_otherwise() -> None:
    fleet, limits = fleet_of(["http://127.0.0.1:1"]), Limits()
    routers = RouterRegistry(
        secret=b"s", limits=limits, outlier_detector=OutlierDetector(limits, lambda: 0.5), reporters=Reporters()
    )
    (key,) = fleet.models
    routers.set_indexed_models([key])
    routers.update_fleet(fleet, 0.0)
    routers.update_fleet(fleet, 1.0)
    assert [router.is_indexed for router in routers.routers(key)] == [True, True]
    routers.set_indexed_models([])
    assert [router.is_indexed for router in routers.routers(key)] == [False, False]
