"""The line between helper and worker: whole messages, bounded, and an end that is noticed; and what goes over it comes out equal."""

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from dataclasses import replace

import msgspec
import pytest

from fairlead.decision import Decision, Input, Rejected
from fairlead.fleet import Access, Fleet, Instance, InstanceState, Model, Objectives, Role
from fairlead.limits import Limits
from fairlead.profile import preset
from fairlead.testing.waiting import until
from fairlead_gateway import channel_messages as say
from fairlead_gateway.channel import Channel, encoded
from fairlead_gateway.decision_log import DecisionRecord, Logged
from fairlead_gateway.handoff_story import HandoffStory, PrefillLeg
from fairlead_gateway.routing import InstanceLoad, PrefixChain, RouteRequest, prefix_chain
from fairlead_gateway.telemetry import Outcome
from fairlead_gateway.telling import Hearer, Teller
from fairlead_gateway.testing import run
from fairlead_gateway.wired import logged_of, wire_logged


class End:
    """One end, with what it heard."""

    def __init__(self, kind: object, limits: Limits) -> None:
        self.heard: list[object] = []
        self.closed = 0
        self.channel: Channel[object] = Channel(kind, self.heard.append, self._lost, limits)

    def _lost(self) -> None:
        self.closed += 1


@asynccontextmanager
async def ends(limits: Limits | None = None) -> AsyncIterator[tuple[End, End, socket.socket]]:
    """Helper's end, worker's end, and a raw socket in place of the worker's where a test wants one."""
    ours, theirs = socket.socketpair()
    helper, worker = End(say.FromWorker, limits or Limits()), End(say.ToWorker, limits or Limits())
    await helper.channel.open(ours)
    try:
        yield helper, worker, theirs
    finally:
        helper.channel.close()
        worker.channel.close()
        theirs.close()
        await until(lambda: helper.closed == 1)


def test_messages_arrive_whole_and_in_order_however_the_bytes_are_cut() -> None:
    async def main() -> None:
        async with ends() as (helper, _, raw):
            said = [say.Ready(3), say.Piece(1, b"x" * 70_000, False), say.Applied(4, "why"), say.Leaving()]
            data = b"".join(len(one).to_bytes(4, "big") + one for one in map(encoded, said))
            raw.setblocking(False)
            loop = asyncio.get_running_loop()
            for begin in range(0, len(data), 3_001):
                await loop.sock_sendall(raw, data[begin : begin + 3_001])
                await asyncio.sleep(0)
            await until(lambda: len(helper.heard) == len(said))
            assert helper.heard == said

    run(main())


@pytest.mark.parametrize("data", [b"\xff\xff\xff\xff", b"\0\0\0\1\xc1", b"\0\0\0\2\x91\x01"])
def test_nonsense_ends_the_channel(data: bytes) -> None:
    async def main() -> None:
        async with ends() as (helper, _, raw):
            raw.sendall(data)
            await until(lambda: helper.closed == 1)
            assert helper.heard == []
            assert not helper.channel.send(say.Drain())

    run(main())


def test_what_nobody_reads_is_dropped_and_said_to_be() -> None:
    async def main() -> None:
        limits = replace(Limits(), channel_waiting_bytes=100_000, channel_message_bytes=1_000_000)
        async with ends(limits) as (helper, worker, raw):
            taken = 0
            while helper.channel.send(say.Heard(b"y" * 50_000, [])):
                taken += 1
            assert helper.channel.dropped == 1
            assert not helper.channel.send(say.Heard(b"y" * 2_000_000, []))
            await worker.channel.open(raw.dup())
            await until(lambda: len(worker.heard) == taken)
            assert helper.channel.send(say.Drain())
            await until(lambda: worker.heard[-1] == say.Drain())

    run(main())


def test_a_fleet_arrives_as_it_was() -> None:
    one = Instance(
        "e-0/1/0", "d", "m", "main", "http://127.0.0.1:1", "sim", Role.PREFILL, InstanceState.DRAINING, frozenset({"x"}),
        2.5, preset("910b4"), None, None, 3, "tcp://a:1", None, "nixl", "http://127.0.0.1:2", Access("/ca", None, "/t"),
    )  # fmt: skip
    model = Model("d", "m", Objectives(0.9, 1.5, 0.1, None), "session")
    fleet = Fleet(7, 3, {model.key: model}, {model.key: (one,)})

    async def main() -> None:
        async with ends() as (helper, worker, raw):
            await worker.channel.open(raw.dup())
            helper.channel.send(say.Snapshot(fleet, {"e-0/1/0": 4}))
            await until(lambda: bool(worker.heard))
            assert worker.heard == [say.Snapshot(fleet, {"e-0/1/0": 4})]

    run(main())


def test_a_logged_request_comes_out_as_it_went_in() -> None:
    made = Decision(
        "a", "affinity", "why", (Rejected("b", "dearer"),), {"a/home": Input(1.0), "b/x": Input(None, 2.0)}, 0.5
    )
    story = HandoffStory("done", "none", "words", 0.25, [PrefillLeg("p", made, 1.0, 0.5, "ok")])
    records = [
        DecisionRecord("r", 5.0, "d/m", made, 1, 12.5),
        DecisionRecord("r", 6.0, "d/m", made, 2, 12.5, "team", story),
    ]
    outcome = Outcome("r", "d/m", "a", 200, None, 4.0, 1.0, output_tokens=3, failures=(("b", "cut"),))
    for logged in (Logged(records, outcome), Logged(records[:1])):
        again = logged_of(wire_logged(logged))
        assert again == logged


class Sink:
    def __init__(self) -> None:
        self.told: list[say.Told] = []

    def send(self, message: object) -> bool:
        assert isinstance(message, say.Told)
        self.told.append(message)
        return True


def test_dispatches_reach_siblings_as_the_chains_they_were() -> None:
    async def main() -> None:
        loop, sink = asyncio.get_running_loop(), Sink()
        teller = Teller(sink, loop, Limits(), publish=False, loads=dict)
        chains = [prefix_chain(b"z" * size, secret=b"s", seed=b"") for size in (10, 300, 9_000, 500_000)]
        for number, chain in enumerate(chains):
            teller.sent("d/m", RouteRequest(f"r-{number}", chain, 1.0, pin=number or None), f"i-{number}")
        await until(lambda: bool(sink.told))
        assert (len(sink.told), sink.told[0].records, sink.told[0].loads) == (1, [], None)
        heard: list[tuple[str, str, PrefixChain, Hashable]] = []
        Hearer(loop, Limits(), lambda *item: heard.append(item)).take(sink.told[0].sent or b"")
        await until(lambda: len(heard) == len(chains))
        assert heard == [("d/m", f"i-{number}", chain, number or None) for number, chain in enumerate(chains)]

    run(main())


def test_loads_for_redis_are_told_until_they_are_gone() -> None:
    async def main() -> None:
        loop, sink = asyncio.get_running_loop(), Sink()
        loads = {"a": InstanceLoad(1, 1, 0.5, 10.0), "b": InstanceLoad()}
        teller = Teller(sink, loop, Limits(), publish=True, loads=lambda: loads)
        teller.decided(DecisionRecord("r", 5.0, "d/m", Decision("a", "load", "why"), 1, 12.5))
        await until(lambda: bool(sink.told))
        assert sink.told[0].loads == {"a": say.WireLoad(1, 1, 0.5, 10.0)}
        assert [record.request_id for record in sink.told[0].records] == ["r"]
        loads.clear()
        await until(lambda: len(sink.told) == 2)
        assert sink.told[1] == say.Told(None, [], [], {}, 0)

    run(main())


def test_deaths_and_what_clears_them_are_told_at_once() -> None:
    async def main() -> None:
        sink = Sink()
        teller = Teller(sink, asyncio.get_running_loop(), Limits(), publish=False, loads=dict)
        teller.died(b"print", "a", 1.0, 2.0)
        teller.cleared(b"print", 3.0)
        assert [(told.deaths, told.cleared) for told in sink.told] == [
            ([(b"print", "a", 1.0, 2.0)], []),
            ([], [(b"print", 3.0)]),
        ]
        for told in sink.told:
            heard = say.Heard(told.sent, told.deaths, told.cleared)
            assert msgspec.msgpack.decode(msgspec.msgpack.encode(heard), type=say.Heard) == heard

    run(main())


def test_a_worker_loads_no_framework_no_redis_client_and_no_yaml_reader() -> None:
    heavy = ("fastapi", "starlette", "aiohttp", "redis", "pydantic", "yaml", "httpx", "anyio", "click", "opentelemetry")
    code = f"import sys, fairlead_gateway.worker; print([name for name in {heavy!r} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
