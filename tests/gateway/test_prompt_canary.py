"""A canary in every prompt, on every path and in every fault, appears in no log, export or page."""

import logging
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fairlead import management_api as api
from fairlead.fleet.model import Fleet, Instance, Model, Role, SloTargets
from fairlead.limits import Limits
from fairlead_cli.explain.command import render_decision
from fairlead_gateway.telemetry.worker.observers import RequestObservers
from fairlead_gateway.telemetry.worker.settings import ObservabilitySettings
from fairlead_testing.engines.scripted import (
    EngineCall,
    Script,
    event,
    hang_up,
    responds,
    scripted_engine,
    silent,
    streams,
    token,
    well_behaved,
)
from fairlead_testing.gateway.decision_view import decision_out
from fairlead_testing.gateway.running_gateway import MODEL_KEY, RunningGateway, gateway_of, running_gateway
from fairlead_testing.http.raw_client import RawConnection, post_request, request, send
from fairlead_testing.http.scripted_servers import CannedResponse, CannedServer
from fairlead_testing.simulated.event_loop import running_clock
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.simulated

CANARY = "canary-7c1e"
LONG = f"tell me of {CANARY} and of nothing else " * 30
LIMITS = replace(
    Limits(),
    span_batch_seconds=0.0,
    stream_idle_seconds=0.3,
    stream_silence_seconds=0.3,
    first_token_seconds=0.3,
    handoff_min_tokens=16,
    handoff_prefill_seconds=0.3,
    handoff_first_event_seconds=0.3,
)
CHAT: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "system", "content": CANARY}, {"role": "user", "content": LONG}],
    "tools": [{"type": "function", "function": {"name": CANARY}}],
    "metadata": {"k": CANARY},
    "stop": [CANARY],
    "user": CANARY,
}
REQUESTS: list[tuple[str, Any]] = [
    ("/v1/chat/completions", CHAT),
    ("/v1/chat/completions", CHAT | {"stream": True}),
    ("/v1/chat/completions?q=" + CANARY, CHAT),
    ("/v1/completions", {"model": "tiny", "prompt": LONG, "temperature": 0, "max_tokens": 20, "stream": True}),
    ("/v1/embeddings", {"model": "tiny", "input": [LONG, LONG]}),
    ("/tokenize", {"model": "tiny", "prompt": LONG}),
    ("/rerank", {"model": "tiny", "query": LONG, "documents": [LONG]}),
    ("/v1/moderations", {"model": "tiny", "input": LONG}),
    ("/v1/something/else", {"model": "tiny", "input": LONG}),
    ("/v1/chat/completions", CHAT | {"model": "nobody"}),
    ("/v1/chat/completions", CHAT | {"temperature": CANARY}),
    ("/v1/chat/completions", CHAT | {"n": CANARY, "kv_transfer_params": {CANARY: CANARY}}),
    ("/v1/chat/completions", f'{{"model": "tiny", "messages": "{CANARY}'.encode()),
    ("/nowhere", CHAT),
]


broken_stream = streams(token(f"of {CANARY}"), end=hang_up)


async def garbage(call: EngineCall) -> None:
    await call.respond(b"<html>" + call.body, kind="text/html")


failing = responds({"error": {"message": CANARY, "code": 500}}, "500 Internal Server Error")
failing_at_the_start = streams(event({"error": {"message": CANARY, "code": 500}}), end=None)
refusing = responds({"error": {"message": f"{CANARY} is too long", "code": 400, "param": CANARY}}, "400 Bad Request")


full = responds({"error": {"message": CANARY}}, "503 Service Unavailable")
error_event = streams(token(CANARY), event({"error": {"message": CANARY, "code": 500}}), end=None)


async def prefilling(call: EngineCall) -> None:
    kv = {"do_remote_prefill": True, "remote_block_ids": [[1]], "remote_engine_id": CANARY, "remote_request_id": "r"}
    kv |= {"remote_host": "127.0.0.1", "remote_port": 5801, "tp_size": 1}
    await call.respond({"choices": [{"index": 0, "text": CANARY}], "kv_transfer_params": kv})


async def failing_to_pull(call: EngineCall) -> None:
    await (failing if call.json.get("kv_transfer_params") else well_behaved)(call)


SCENES: dict[str, tuple[list[Script], list[Script]]] = {
    "well": ([], [well_behaved, well_behaved]),
    "one hangs up": ([], [hang_up, well_behaved]),
    "all hang up": ([], [hang_up, hang_up, hang_up]),
    "streams break": ([], [broken_stream, well_behaved]),
    "garbage": ([], [garbage, well_behaved]),
    "one fails": ([], [failing, well_behaved]),
    "all fail": ([], [failing]),
    "refused": ([], [refusing]),
    "full": ([], [full]),
    "an error in the stream": ([], [error_event]),
    "an error before the stream": ([], [failing_at_the_start]),
    "garbage everywhere": ([], [garbage]),
    "silence": ([], [silent]),
    "split": ([prefilling], [well_behaved]),
    "no prefill": ([failing], [well_behaved]),
    "no pull": ([prefilling], [failing_to_pull]),
}


REPEATED = {"streams break", "refused", "an error in the stream"}
"""Scenes in which the client gets the canary from the engine itself."""


@asynccontextmanager
async def scene(name: str, collector: str, log: Path) -> AsyncIterator[RunningGateway]:
    prefill, decode = SCENES[name]
    async with AsyncExitStack() as stack:
        instances = []
        for role, scripts in ((Role.PREFILL, prefill), (Role.DECODE if prefill else Role.SERVE, decode)):
            for number, script in enumerate(scripts):
                engine = await stack.enter_async_context(scripted_engine(script))
                transfer = "nixl" if prefill else None
                instances.append(
                    Instance(f"{role}{number}", "default", "tiny", role, engine.url, role=role, transfer=transfer)
                )
        fleet = Fleet(
            1, 1, {MODEL_KEY: Model("default", "tiny", SloTargets(ttft_seconds=1.0))}, {MODEL_KEY: tuple(instances)}
        )
        what = ObservabilitySettings(access_log=str(log), trace_endpoint=collector, trace_share=1.0)
        watching = RequestObservers(
            what, clock=running_clock(), limits=LIMITS, instance_id="gw", draw_bits=random.Random(1).getrandbits
        )
        yield await stack.enter_async_context(running_gateway(fleet, LIMITS, observers=watching))


async def everything(running: RunningGateway) -> str:
    """Sends everything; returns the answers to well-formed chats."""
    answers = [await request(running.url, body, path=path) for path, body in REQUESTS]
    await request(running.url, CHAT | {"stream": True}, more="x-request-timeout: 0.05\r\n")
    await send(running.url, f"GET /{CANARY} HTTP/9.9\r\n\r\n".encode())
    leaving = await RawConnection.connect(running.url)
    await leaving.send(post_request(CHAT | {"stream": True}))
    await leaving.close()
    await wait_until(lambda: not running.gateway.inflight_count())  # the client that left
    return "".join(f"{answer.fields} {answer.body!r}" for answer in answers[:3])


def shown(running: RunningGateway) -> str:
    """All that the gateway keeps and its pages, metrics and `fairlead explain` show."""
    gateway = running.gateway
    fleet = gateway.stages.routers.fleet
    kept = gateway.decisions.latest(1_000)
    texts = [repr(kept), repr(gateway.readiness()), repr(running.loads())]
    for logged in kept:
        page = msgspec.json.encode(decision_out(logged)).decode()
        texts += [page, *render_decision(msgspec.json.decode(page, type=api.DecisionOut))]
    texts.append(gateway.telemetry.render(fleet, running.loads(), gateway.runtime.now()).decode())
    return "\n".join(texts)


@pytest.mark.parametrize("name", SCENES)
async def test_a_prompt_is_never_stored_logged_exported_or_shown(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    log = tmp_path / "access.log"

    with CannedServer({"/v1/traces": CannedResponse([b"{}"])}) as collector:
        async with scene(name, collector.url, log) as running:
            answers, pages = await everything(running), shown(running)
    spans = b"".join(asked.body for asked in collector.requests).decode()
    lines = log.read_text()
    assert lines.count("\n") == len(REQUESTS) + 3
    assert '"spanId"' in spans
    assert name in REPEATED or CANARY not in answers
    assert CANARY not in pages
    assert CANARY not in lines
    assert CANARY not in spans
    assert CANARY not in caplog.text


async def test_a_defect_of_ours_is_a_500_with_an_id_and_its_log_line_holds_no_prompt(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with gateway_of(well_behaved) as (running, *_):

        def defect(*_: object, **__: object) -> None:
            raise ValueError(f"cannot take {CHAT}")

        monkeypatch.setattr(running.gateway.stages.routers.serving, "choose", defect)
        answer = await request(running.url, CHAT)
        assert (answer.status, answer.error["code"]) == (500, "internal_error")
        assert CANARY not in answer.body.decode()
        assert answer.fields["x-request-id"] in caplog.text
        assert "ValueError" in caplog.text
        assert CANARY not in caplog.text
        monkeypatch.undo()
        assert (await request(running.url, CHAT)).status == 200
