"""The IPC channel: complete messages, bounds, a noticed end, and values that survive the codec."""

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from typing import cast

import msgspec
import pytest

from fairlead.decision import Decision, DecisionInput, DecisionText, RejectedCandidate
from fairlead.engine_profile import builtin_profile
from fairlead.fleet.model import EngineAuth, Fleet, Instance, InstanceState, Model, ModelRouting, Role, SloTargets
from fairlead.runtime.clock import SystemClock
from fairlead_gateway import messages as say
from fairlead_gateway.ipc.channel import Channel, encode_message
from fairlead_gateway.ipc.decision_json import PublishedDecision
from fairlead_gateway.journal import Journal
from fairlead_gateway.peers.messages import Dispatch, PeerUpdates
from fairlead_gateway.peers.worker import PeerUpdateApplier
from fairlead_gateway.router_registry import RouterRegistry
from fairlead_gateway.routes.target_choice import RouteDecision
from fairlead_gateway.routing import InstanceLoad, PrefixChain, RouteRequest, prefix_chain
from fairlead_gateway.telemetry.decision_log import DecisionRecord
from fairlead_gateway.telemetry.handoff_record import HandoffRecord, PrefillAttempt
from fairlead_kvstore.redis.codec import decode
from fairlead_testing.gateway.decision_view import decision_out
from fairlead_testing.gateway.running_gateway import RecordedReports, change_outcome, make_outcome
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.sockets


class End:
    """One end of a channel, with the messages that it received."""

    def __init__(self, kind: object, bounds: dict[str, int]) -> None:
        self.heard: list[object] = []
        self.closed = 0
        self.channel: Channel[object] = Channel(kind, self.heard.append, self._lost, **bounds)

    def _lost(self) -> None:
        self.closed += 1


@asynccontextmanager
async def ends(**bounds: int) -> AsyncIterator[tuple[End, End, socket.socket]]:
    """The ends of supervisor and worker; a raw socket for the worker's if a test wants it."""
    ours, theirs = socket.socketpair()
    helper, worker = End(say.FromWorker, bounds), End(say.ToWorker, bounds)
    await helper.channel.open(ours)
    try:
        yield helper, worker, theirs
    finally:
        helper.channel.close()
        worker.channel.close()
        theirs.close()
        await wait_until(lambda: helper.closed == 1)


async def test_messages_arrive_whole_and_in_order_however_the_bytes_are_cut() -> None:
    async with ends() as (helper, _, raw):
        messages = [
            say.WorkerReady(3),
            say.ReplyChunk(1, b"x" * 70_000, False),
            say.FleetApplied(4, "why"),
            say.DrainRequested(),
        ]
        data = b"".join(len(payload).to_bytes(4, "big") + payload for payload in map(encode_message, messages))
        raw.setblocking(False)
        loop = asyncio.get_running_loop()
        for begin in range(0, len(data), 3_001):
            await loop.sock_sendall(raw, data[begin : begin + 3_001])
            await asyncio.sleep(0)
        await wait_until(lambda: len(helper.heard) == len(messages))
        assert helper.heard == messages


@pytest.mark.parametrize("data", [b"\xff\xff\xff\xff", b"\0\0\0\1\xc1", b"\0\0\0\2\x91\x01"])
async def test_nonsense_ends_the_channel(data: bytes) -> None:
    async with ends() as (helper, _, raw):
        raw.sendall(data)
        await wait_until(lambda: helper.closed == 1)
        assert helper.heard == []
        assert not helper.channel.send(say.StartDrain())


async def test_message_whose_handling_fails_is_logged_and_ends_no_channel(caplog: pytest.LogCaptureFixture) -> None:
    async with ends() as (supervisor, _, raw):
        received: list[object] = []

        def handle(message: object) -> None:
            received.append(message)
            if len(received) == 1:
                raise KeyError("a defect")

        supervisor.channel._on_message = handle
        data = encode_message(say.DrainRequested())
        raw.sendall(2 * (len(data).to_bytes(4, "big") + data))
        await wait_until(lambda: len(received) == 2)
        assert supervisor.closed == 0
    assert "the handling of a DrainRequested" in caplog.text


async def test_forged_dispatch_delays_none_behind_it() -> None:
    loop = asyncio.get_running_loop()
    applied: list[str] = []

    class Routers:
        def routers(self, model: str) -> list[object]:
            applied.append(model)
            raise KeyError("a defect")

    loop.set_exception_handler(lambda *_: None)
    applier = PeerUpdateApplier(SystemClock(), loop, Routers())  # type: ignore[arg-type]
    batch = [Dispatch(f"m/{number}", "e-0", b"", number) for number in range(3)]
    with pytest.raises(KeyError):
        applier.enqueue(batch)
    await wait_until(lambda: len(applied) == 3)


async def test_unread_messages_are_dropped_and_counted() -> None:
    async with ends(max_unsent_bytes=100_000, max_message_bytes=1_000_000) as (helper, worker, raw):
        taken = 0
        while helper.channel.send(PeerUpdates([Dispatch("m", "e", b"y" * 50_000, 0)])):
            taken += 1
        assert helper.channel.dropped == 1
        assert not helper.channel.send(PeerUpdates([Dispatch("m", "e", b"y" * 2_000_000, 0)]))
        await worker.channel.open(raw.dup())
        await wait_until(lambda: len(worker.heard) == taken)
        assert helper.channel.send(say.StartDrain())
        await wait_until(lambda: worker.heard[-1] == say.StartDrain())


async def test_a_fleet_arrives_as_it_was() -> None:
    instance = Instance(
        "e-0/1/0", "d", "m", "main", "http://127.0.0.1:1", "sim", Role.PREFILL, InstanceState.DRAINING, frozenset({"x"}),
        2.5, builtin_profile("910b4"), None, None, 3, "tcp://a:1", None, "nixl", "http://127.0.0.1:2", EngineAuth("/ca", None, "/t"),
    )  # fmt: skip
    model = Model("d", "m", SloTargets(0.9, 1.5, 0.1, None), ModelRouting("session"))
    fleet = Fleet(7, 3, {model.key: model}, {model.key: (instance,)})
    async with ends() as (helper, worker, raw):
        await worker.channel.open(raw.dup())
        helper.channel.send(say.FleetUpdate(fleet, {"e-0/1/0": 4}))
        await wait_until(lambda: bool(worker.heard))
        assert worker.heard == [say.FleetUpdate(fleet, {"e-0/1/0": 4})]


def test_a_logged_request_is_shown_with_all_of_its_decisions() -> None:
    decision = Decision(
        "a",
        "affinity",
        DecisionText(
            "why",
            (RejectedCandidate("b", "dearer"),),
            {"a/home": DecisionInput(1.0), "b/x": DecisionInput(None, 2.0)},
        ),
        0.5,
    )
    story = HandoffRecord("done", "none", "words", 0.25, [PrefillAttempt("p", decision, 1.0, 0.5, "ok")])
    records = [
        DecisionRecord("r", 5.0, "d/m", decision, 1, 12.5),
        DecisionRecord("r", 6.0, "d/m", decision, 2, 12.5, "team", story),
    ]
    records[1].route = RouteDecision("alias", "d/r", "d/m", "session", 2, (9, 10))
    outcome = make_outcome("r", "d/m", "a", 200, None, 4.0, 1.0, output_tokens=3, failures=(("b", "cut"),))
    outcome.records, outcome.has_ended = records, True
    shown = decision_out(outcome)
    inputs = {"home": {"value": 1.0, "age_seconds": None}}
    candidates = [
        {"id": "a", "chosen": True, "why": "why", "inputs": inputs},
        {"id": "b", "chosen": False, "why": "dearer", "inputs": {"x": {"value": None, "age_seconds": 2.0}}},
    ]
    choice = {"rule": "affinity", "reason": "why", "cost_seconds": 0.5, "candidates": candidates, "inputs": {}}
    assert [msgspec.to_builtins(item) for item in shown.choices] == [
        {"attempt": number, "wall": 4.0 + number, "instance": "a", **choice} for number in (1, 2)
    ]
    assert (shown.route.name, shown.route.route, shown.handoff) == ("alias", "d/r", None)
    assert (shown.outcome.output_tokens, shown.outcome.failures[0].why, shown.outcome.continued) == (3, "cut", False)
    handoff = decision_out(change_outcome(outcome, records=records[1:])).handoff
    assert msgspec.to_builtins(handoff) == {
        "outcome": "done",
        "reason": "none",
        "words": "words",
        "where": None,
        "waited_seconds": 0.25,
        "legs": [{"instance": "p", **choice, "seconds": 0.5, "result": "ok"}],
    }


class Registry:
    """Records the dispatches that it is given, in place of all routers."""

    def __init__(self, applied: list[tuple[str, str, PrefixChain, Hashable]]) -> None:
        self._applied = applied
        self._model = ""

    def routers(self, model: str) -> list["Registry"]:
        self._model = model
        return [self]

    def on_peer_dispatch(self, instance: str, chain: PrefixChain, now: float, session_hash: Hashable) -> None:
        self._applied.append((self._model, instance, chain, session_hash))


async def test_dispatches_reach_siblings_as_the_chains_they_were() -> None:
    loop, sink = asyncio.get_running_loop(), RecordedReports()
    journal = Journal(sink, loop, shares_dispatches=True)
    chains = [prefix_chain(b"z" * size, secret=b"s", seed=b"") for size in (10, 300, 9_000, 500_000)]
    for number, chain in enumerate(chains):
        request = RouteRequest(f"r-{number}", chain, 1.0, session_hash=number or None)
        journal.on_assigned("d/m", request, f"i-{number}", is_indexed=False)
    await wait_until(lambda: bool(sink.reports))
    assert (len(sink.reports), sink.reports[0].decisions, sink.reports[0].loads) == (1, [], None)
    applied: list[tuple[str, str, PrefixChain, Hashable]] = []
    registry = cast(RouterRegistry, Registry(applied))
    PeerUpdateApplier(SystemClock(), loop, registry).enqueue(sink.reports[0].dispatches)
    await wait_until(lambda: len(applied) == len(chains))
    assert applied == [("d/m", f"i-{number}", chain, number or None) for number, chain in enumerate(chains)]


async def test_loads_are_reported_until_they_are_zero() -> None:
    loop, sink = asyncio.get_running_loop(), RecordedReports()
    loads = {"a": InstanceLoad(1, 1, 0.5, 10.0), "b": InstanceLoad()}
    journal = Journal(sink, loop, gateway_id="gw", shares_dispatches=True)
    journal.loads = lambda: loads
    journal.on_decision(DecisionRecord("r", 5.0, "d/m", Decision("a", "load", DecisionText("why")), 1, 12.5))
    await wait_until(lambda: bool(sink.reports))
    assert sink.reports[0].loads == {"a": say.EncodedLoad(1, 1, 0.5, 10.0, 0)}
    ((model, entry),) = sink.reports[0].decisions
    published = decode(entry, PublishedDecision)
    assert (model, published.gateway, published.request) == ("d/m", "gw", "r")
    loads.clear()
    await wait_until(lambda: len(sink.reports) == 2)
    assert sink.reports[1] == say.WorkerReport(loads={})


async def test_crashes_and_their_clearing_are_reported_at_once() -> None:
    sink = RecordedReports()
    journal = Journal(sink, asyncio.get_running_loop(), shares_dispatches=True)
    journal.on_crash(b"print", "a", 1.0, 2.0)
    journal.on_cleared(b"print", 3.0)
    assert [(report.crashes, report.cleared) for report in sink.reports] == [
        ([(b"print", "a", 1.0, 2.0)], []),
        ([], [(b"print", 3.0)]),
    ]
    for report in sink.reports:
        heard = PeerUpdates(report.dispatches, report.crashes, report.cleared)
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(heard), type=PeerUpdates) == heard


def test_a_worker_loads_no_framework_no_redis_client_and_no_yaml_reader() -> None:
    heavy = ("fastapi", "starlette", "aiohttp", "redis", "pydantic", "yaml", "httpx", "anyio", "click", "opentelemetry")
    code = f"import sys, fairlead_gateway.worker.__main__; print([name for name in {heavy!r} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
