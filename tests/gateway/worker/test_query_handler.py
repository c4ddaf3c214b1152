"""Replies of a worker to its supervisor: whole, however long they are."""

import asyncio
import socket
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from fairlead.decision import Decision, DecisionInput, DecisionText, RejectedCandidate
from fairlead.runtime.clock import SystemClock
from fairlead_gateway import messages as say
from fairlead_gateway.ipc.channel import CHANNEL_PENDING_BYTES, Channel
from fairlead_gateway.supervisor.worker_handle import SpawnedWorker, WorkerHandle
from fairlead_gateway.telemetry.decision_log import DecisionLog, DecisionRecord
from fairlead_gateway.worker.services import QueryHandler
from fairlead_testing.gateway.decision_view import append_decision
from fairlead_testing.waiting import wait_until

CANDIDATES = 4_095
INPUTS = ("inflight", "waiting", "backlog_seconds", "matched_tokens")


def logged(count: int) -> DecisionLog:
    """Returns a log of decisions between as many instances as a fleet may have."""
    log = DecisionLog(count)
    names = [f"{number:036d}/8000/0" for number in range(CANDIDATES)]
    inputs = {f"{name}/{what}": DecisionInput(1.0, 0.1) for name in names for what in INPUTS}
    rejected = tuple(RejectedCandidate(name, "it has more requests") for name in names)
    text = DecisionText("it has the fewest requests", rejected, inputs)
    decision = Decision("chosen/8000/0", "least-request", text)
    for number in range(count):
        append_decision(log, DecisionRecord(f"r{number}", float(number), "default/tiny", decision, 1, 10.0))
    return log


async def test_a_reply_that_is_longer_than_the_channel_holds_is_whole_and_ends() -> None:
    """Without its end, the supervisor takes the worker for hung, and kills it."""
    replies: list[say.ReplyChunk] = []
    ours, theirs = socket.socketpair()
    supervisor: Channel[Any] = Channel(say.FromWorker, replies.append, lambda: None)
    worker: Channel[Any] = Channel(say.ToWorker, lambda _: None, lambda: None)
    await supervisor.open(ours)
    await worker.open(theirs)
    runtime = SimpleNamespace(clock=SystemClock())
    stages = SimpleNamespace(routers=None, prefill_coordinator=None)
    gateway = SimpleNamespace(runtime=runtime, stages=stages, decisions=logged(32))
    try:
        await QueryHandler(cast(Any, gateway), worker).handle(say.GetDecisions(1, 32, None, None))
        await wait_until(lambda: not worker.unsent_bytes)
        await wait_until(lambda: bool(replies) and replies[-1].last, patience_seconds=20.0)
        assert sum(len(reply.data) for reply in replies) > CHANNEL_PENDING_BYTES
        chunks = [msgspec.msgpack.decode(reply.data, type=list[Any]) for reply in replies if reply.data]
        assert (worker.dropped, sum(map(len, chunks))) == (0, 32)
    finally:
        supervisor.close()
        worker.close()
        await wait_until(lambda: not supervisor.is_open and not worker.is_open)


async def test_error_in_a_reply_is_logged_and_the_worker_does_not_count_as_hung(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock, tasks = SystemClock(), set[asyncio.Task[None]]()
    ours, theirs = socket.socketpair()
    process = SimpleNamespace(wait=lambda _: 0, poll=lambda: 0, returncode=0)
    listener = SimpleNamespace(on_exit=lambda _: None)
    spawned = SpawnedWorker(cast(Any, process), ours)
    supervisor = WorkerHandle(1, 0, spawned, cast(Any, listener), clock)

    def answer(query: Any) -> None:
        tasks.add(asyncio.create_task(handler.handle(query)))

    worker: Channel[Any] = Channel(say.ToWorker, answer, lambda: None)
    gateway = SimpleNamespace(runtime=SimpleNamespace(clock=clock), stages=SimpleNamespace())
    gateway.stages.routers = gateway.stages.prefill_coordinator = gateway.decisions = None
    handler = QueryHandler(cast(Any, gateway), worker)
    await supervisor.open()
    await worker.open(theirs)
    supervisor.is_ready = True
    try:
        reply = await supervisor.query(lambda number: say.GetDecisions(number, 1, None, None), list[Any])
        assert (reply, supervisor.unresponsive_since) == (None, None)
        assert "a defect ended the reply to GetDecisions" in caplog.text
    finally:
        worker.close()
        await supervisor.exited
