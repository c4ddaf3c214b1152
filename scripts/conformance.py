"""The conformance table, endpoints × behaviours: every cell is probed. Writes it into
docs/reference/conformance.md.

A wire tap before each instance records what the gateway sends, and can break the connection. So the
same probes run against a simulated engine and against a real one. Tests probe the simulated engine
and fail when the page is stale. ``e2e/vllm`` probes the real one, and stores its results in
bench/results/vllm.json for the page's last column.

``python scripts/conformance.py`` writes the page; ``--check`` only compares and exits 1.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairlead.runtime.event_loop import loop_factory
from fairlead_gateway.tenants.worker.api_keys import ApiKeys, key_digest
from fairlead_testing.gateway.running_gateway import fleet_of, running_gateway
from fairlead_testing.http.raw_client import RawConnection, RawResponse, get_request, post_request
from scripts.generators.page_tables import with_tables
from scripts.wire_tap import WireTap

ROOT = Path(__file__).resolve().parent.parent
REFERENCE_PAGE = ROOT / "docs" / "reference" / "conformance.md"
REAL_ENGINE_RESULTS = ROOT / "bench" / "results" / "vllm.json"
MODEL = "tiny"
YES, NOT_APPLICABLE = "yes", "–"
_KEY, _PEPPER = "a-key-of-the-probes", b"a pepper of the probes"
_AUTHORIZED = f"authorization: Bearer {_KEY}\r\n"
_PATIENCE_SECONDS = 30.0
_PROBE_SECONDS = 60.0
_DEADLINE_SECONDS = 0.3
_UNKNOWN = b'"x_unknown_field":{"kept":[1.50,"\\u00e9"]}'
_HANDOFF = b'"kv_transfer_params":{"do_remote_prefill":true},"ec_transfer_params":{"a":1}'

_SAY: dict[str, Any] = {"max_tokens": 400, "temperature": 1, "ignore_eos": True}
_CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "import os"}], **_SAY}
_PAIR: dict[str, Any] = {"text_1": "import os", "text_2": ["import sys", "def main():"]}
_RANK: dict[str, Any] = {"query": "import os", "documents": ["import sys", "def main():"]}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One path: its request, a wrong field, and whether it streams and generates text."""

    shown: str
    path: str
    body: Mapping[str, Any] | None = None
    wrong: Mapping[str, Any] = field(default_factory=lambda: {"model": 5})
    streams: bool = False
    events: bool = False  # a stream's events are understood: usage, continuation
    pooling: bool = False
    engine: bool = True


ENDPOINTS = (
    Endpoint("`POST /v1/chat/completions`", "/v1/chat/completions", _CHAT, {"n": "two"}, True, True),
    Endpoint(
        "`POST /v1/completions`", "/v1/completions", {"prompt": "import os", **_SAY}, {"max_tokens": -1}, True, True
    ),
    Endpoint("`POST /v1/embeddings`", "/v1/embeddings", {"input": ["import os"]}, {"input": 5}, pooling=True),
    Endpoint(
        "`POST /v1/responses`",
        "/v1/responses",
        {"input": "import os", "max_output_tokens": 200},
        streams=True,
    ),
    Endpoint("`POST /v1/messages`", "/v1/messages", {**_CHAT, "max_tokens": 200}, streams=True),
    Endpoint("`POST /tokenize`", "/tokenize", {"prompt": "import os"}),
    Endpoint("`POST /detokenize`", "/detokenize", {"tokens": [300, 301]}),
    *(
        Endpoint(f"`POST {path}`", path, body, pooling=True)
        for path, body in (
            *((path, _RANK) for path in ("/rerank", "/v1/rerank", "/v2/rerank")),
            *((path, _PAIR) for path in ("/score", "/v1/score")),
            *((path, {"input": ["import os"]}) for path in ("/classify", "/v1/classify")),
        )
    ),
    Endpoint("`POST /v1/moderations` and other paths (passed on)", "/v1/moderations", {"input": "import os"}),
    Endpoint("`GET /v1/models`", "/v1/models", engine=False),
    Endpoint("`GET /v1/models/NAME`", f"/v1/models/{MODEL}", engine=False),
)


@dataclass(slots=True)
class ProbeRig:
    """A gateway that asks for keys, two wire taps, and the same engine behind both."""

    url: str
    taps: list[WireTap]

    def set_fault(self, kind: str) -> None:
        for tap in self.taps:
            tap.fault = kind

    @property
    def sent(self) -> list[bytes]:
        return [body for tap in self.taps for body in tap.sent]

    async def send(
        self, endpoint: Endpoint, body: bytes | Mapping[str, Any] | None = None, *, more: str = _AUTHORIZED
    ) -> RawResponse:
        async with self.sending(endpoint, body, more=more) as connection:
            return await connection.read_response()

    @asynccontextmanager
    async def sending(
        self, endpoint: Endpoint, body: bytes | Mapping[str, Any] | None = None, *, more: str = _AUTHORIZED
    ) -> AsyncIterator[RawConnection]:
        """Yields a connection with the request sent; leaving the block closes it."""
        connection = await RawConnection.connect(self.url)
        try:
            if endpoint.body is None:
                await connection.send(get_request(endpoint.path, more=more))
            else:
                content = body if isinstance(body, bytes) else {"model": MODEL, **endpoint.body, **(body or {})}
                await connection.send(
                    post_request(content, path=endpoint.path, more=f"content-type: application/json\r\n{more}")
                )
            yield connection
        finally:
            await connection.close()


@asynccontextmanager
async def probe_rig(engine: str) -> AsyncIterator[ProbeRig]:
    """Yields a new gateway, so that no probe is affected by another."""
    async with AsyncExitStack() as stack:
        taps = [WireTap(engine), WireTap(engine)]
        taps[0].peers, taps[1].peers = [taps[1]], [taps[0]]
        taps[1].request_seen, taps[1].gateway_left = taps[0].request_seen, taps[0].gateway_left
        for tap in taps:
            server = await asyncio.start_server(tap.accept, "127.0.0.1", 0)
            tap.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            stack.push_async_callback(_closed, server, tap)
        keys = ApiKeys(_PEPPER, {key_digest(_KEY.encode(), _PEPPER): "probes"})
        running = await stack.enter_async_context(running_gateway(fleet_of([tap.url for tap in taps]), api_keys=keys))
        yield ProbeRig(running.url, taps)


async def _closed(server: asyncio.Server, tap: WireTap) -> None:
    server.close()
    for task in list(tap.tasks):
        task.cancel()
    await asyncio.gather(*tap.tasks, return_exceptions=True)


# The probes -----------------------------------------------------------------------------------------------------------------

Probe = Callable[[ProbeRig, Endpoint], Awaitable[str]]


def describe_answer(answer: RawResponse) -> str:
    """Returns an answer in a word or two."""
    if answer.status == 200:
        return YES
    try:
        return f"{answer.status} `{answer.error['code']}`"
    except (AssertionError, KeyError, ValueError):
        return str(answer.status)


async def answers(rig: ProbeRig, endpoint: Endpoint) -> str:
    return describe_answer(await rig.send(endpoint))


async def streams(rig: ProbeRig, endpoint: Endpoint) -> str:
    """Probes a stream to its end."""
    if not endpoint.streams:
        return NOT_APPLICABLE
    answer = await rig.send(endpoint, {"stream": True})
    is_complete = answer.status == 200 and answer.complete and (not endpoint.events or answer.events[-1] == "[DONE]")
    return YES if is_complete else f"{describe_answer(answer)}, not to its end"


async def usage(rig: ProbeRig, endpoint: Endpoint) -> str:
    """Probes that usage is always requested and only shown to clients that ask."""
    if not endpoint.events:
        return NOT_APPLICABLE
    without_usage = await rig.send(endpoint, {"stream": True})
    sent_body = json.loads(rig.sent[-1] if len(rig.taps[0].sent) + len(rig.taps[1].sent) == 1 else b"{}")
    with_usage = await rig.send(endpoint, {"stream": True, "stream_options": {"include_usage": True}})
    injected = sent_body.get("stream_options", {}).get("include_usage") is True
    stripped = not any('"usage":{' in event for event in without_usage.events)
    seen = any('"usage":{' in event for event in with_usage.events)
    return YES if injected and stripped and seen else f"injected {injected}, stripped {stripped}, shown {seen}"


async def unknown_kept(rig: ProbeRig, endpoint: Endpoint) -> str:
    """Probes that unknown fields reach the engine unchanged."""
    if endpoint.body is None:
        return NOT_APPLICABLE
    await rig.send(endpoint, _with(endpoint, _UNKNOWN))
    return YES if rig.sent and _UNKNOWN in rig.sent[0] else "changed"


async def handoff_dropped(rig: ProbeRig, endpoint: Endpoint) -> str:
    """Probes that fields of the hand-off are never passed on from a client."""
    if endpoint.body is None:
        return NOT_APPLICABLE
    await rig.send(endpoint, _with(endpoint, _HANDOFF))
    return YES if rig.sent and b"transfer_params" not in rig.sent[0] else "passed on"


async def bad_field(rig: ProbeRig, endpoint: Endpoint) -> str:
    """Probes that a wrong field gets 400 with its name and reaches no engine."""
    if endpoint.body is None:
        return NOT_APPLICABLE
    answer = await rig.send(endpoint, endpoint.wrong)
    is_named = answer.status == 400 and answer.error["param"] == next(iter(endpoint.wrong)) and not rig.sent
    return f"`{answer.error['param']}`" if is_named else describe_answer(answer)


async def no_key(rig: ProbeRig, endpoint: Endpoint) -> str:
    answer = await rig.send(endpoint, more="")
    return YES if describe_answer(answer) == "401 `invalid_api_key`" and not rig.sent else describe_answer(answer)


async def no_model(rig: ProbeRig, endpoint: Endpoint) -> str:
    """Probes that an unknown model gets 404."""
    if endpoint.body is None:
        if endpoint.path == "/v1/models":
            return NOT_APPLICABLE
        endpoint = Endpoint("", "/v1/models/nobody", engine=False)
    answer = await rig.send(endpoint, {"model": "nobody"})
    return YES if describe_answer(answer) == "404 `model_not_found`" and not rig.sent else describe_answer(answer)


async def dead_before(rig: ProbeRig, endpoint: Endpoint) -> str:
    """Probes that another engine answers when the connection breaks before the first byte."""
    if not endpoint.engine:
        return NOT_APPLICABLE
    rig.set_fault("before")
    answer = await rig.send(endpoint, {"stream": True} if endpoint.streams else None)
    return await _elsewhere(rig, endpoint, answer)


async def _elsewhere(rig: ProbeRig, endpoint: Endpoint, answer: RawResponse) -> str:
    """Returns whether the answer is a retry that equals any other answer."""
    was_retried = answer.fields["x-fairlead-reason"].startswith("retry-") and all(
        len(tap.sent) == 1 for tap in rig.taps
    )
    return (
        "retried"
        if was_retried and describe_answer(answer) == describe_answer(await rig.send(endpoint))
        else describe_answer(answer)
    )


async def dead_within(rig: ProbeRig, endpoint: Endpoint) -> str:
    """Probes a connection that breaks within the answer.

    A plain answer is retried; a stream goes on at another engine, or ends with an error.
    """
    if not endpoint.engine:
        return NOT_APPLICABLE
    rig.set_fault("middle")
    answer = await rig.send(endpoint, {"stream": True} if endpoint.streams else None)
    if not endpoint.streams:
        return await _elsewhere(rig, endpoint, answer)
    if not endpoint.events and answer.complete:
        if b"\nevent: error\n" in answer.body:
            return "`event: error`"
        return "continued" if b'"fairlead_continued_at"' in answer.body else "looks whole"
    if not endpoint.events:
        return "connection cut"
    if answer.events[-1] == "[DONE]" and len(rig.sent) == 2:
        return "continued"
    code = json.loads(answer.events[-1]).get("error", {}).get("code") if answer.events[-1] != "[DONE]" else None
    return f"`{code}`" if code else "looks whole"


async def continued(rig: ProbeRig, endpoint: Endpoint) -> str:
    """Probes that a greedy stream continues on another engine."""
    if not endpoint.events:
        return NOT_APPLICABLE
    rig.set_fault("middle")
    answer = await rig.send(endpoint, {"stream": True, "temperature": 0})
    is_complete = answer.events[-1] == "[DONE]" and not any('"error"' in event for event in answer.events)
    return YES if is_complete and len(rig.sent) == 2 else "no"


async def client_leaves(rig: ProbeRig, endpoint: Endpoint) -> str:
    """Probes that a client's disconnect closes the engine's connection."""
    if not endpoint.engine:
        return NOT_APPLICABLE
    rig.set_fault("stall" if endpoint.streams else "silence")
    async with rig.sending(endpoint, {"stream": True} if endpoint.streams else None) as connection:
        if endpoint.streams:
            await connection.reader.readuntil(b"data: ")
        else:
            await rig.taps[0].request_seen.wait()
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            await rig.taps[0].gateway_left.wait()
    except TimeoutError:
        return "the engine goes on"
    return YES


async def deadline(rig: ProbeRig, endpoint: Endpoint) -> str:
    """Probes the client's deadline in ``x-request-timeout``."""
    if not endpoint.engine:
        return NOT_APPLICABLE
    rig.set_fault("silence")
    more = f"{_AUTHORIZED}x-request-timeout: {_DEADLINE_SECONDS}\r\n"
    answer = await rig.send(endpoint, {"stream": True} if endpoint.streams else None, more=more)
    return YES if describe_answer(answer) == "504 `deadline_exceeded`" else describe_answer(answer)


PROBES: dict[str, Probe] = {
    "answers": answers,
    "streams": streams,
    "usage": usage,
    "unknown fields": unknown_kept,
    "hand-off fields": handoff_dropped,
    "bad field": bad_field,
    "no key": no_key,
    "no model": no_model,
    "dead before": dead_before,
    "dead within": dead_within,
    "greedy": continued,
    "client leaves": client_leaves,
    "deadline": deadline,
}


def _with(endpoint: Endpoint, more: bytes) -> bytes:
    plain = json.dumps({"model": MODEL, **(endpoint.body or {})}, separators=(",", ":")).encode()
    return plain[:-1] + b"," + more + b"}"


async def probe(engine: str, *, pooling: str | None = None) -> dict[str, dict[str, str]]:
    """Probes every cell.

    pooling: another engine for endpoints that a generating one does not serve.
    """
    table: dict[str, dict[str, str]] = {}
    for endpoint in ENDPOINTS:
        row = table[endpoint.shown] = {}
        for name, run_probe in PROBES.items():
            async with (
                probe_rig(pooling if endpoint.pooling and pooling else engine) as rig,
                asyncio.timeout(_PROBE_SECONDS),
            ):
                row[name] = await run_probe(rig, endpoint)
    return table


# The page -------------------------------------------------------------------------------------------------------------------


def render_table(table: Mapping[str, Mapping[str, str]], real_engine: Mapping[str, Any] | None) -> str:
    """Returns the page's table, with the results of a real engine."""
    lines = [f"| endpoint | {' | '.join(PROBES)} | real engine |", "|---" * (len(PROBES) + 2) + "|"]
    for endpoint_name, row in table.items():
        lines.append(f"| {endpoint_name} | {' | '.join(row.values())} | {_compared(row, endpoint_name, real_engine)} |")
    footer = f"\nThe real engine was {real_engine['engine']}.\n" if real_engine is not None else ""
    return "\n".join(lines) + "\n" + footer


def _compared(row: Mapping[str, str], endpoint_name: str, real_engine: Mapping[str, Any] | None) -> str:
    """Returns how the real engine differs."""
    if real_engine is None or endpoint_name not in real_engine["table"]:
        return "not probed"
    real_row = real_engine["table"][endpoint_name]
    differing = [
        f"{name}: {real_row.get(name, 'not probed')}" for name, cell in row.items() if real_row.get(name) != cell
    ]
    return "; ".join(differing) or "the same"


async def simulated() -> dict[str, dict[str, str]]:
    """Returns the table of a simulated engine."""
    from fairlead_sim.runtime.settings import EngineSettings
    from fairlead_testing.sim.engines import running_engine

    async with running_engine(EngineSettings(model=MODEL, served_names=(MODEL,), speed=50.0)) as engine:
        return await probe(engine.url)


def expected_page() -> str:
    """Returns the expected content of the page."""
    real_engine = (
        json.loads(REAL_ENGINE_RESULTS.read_text()).get("conformance") if REAL_ENGINE_RESULTS.exists() else None
    )
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        table = render_table(runner.run(simulated()), real_engine)
    return with_tables(REFERENCE_PAGE, {"conformance": table})


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 when the page is current or was written, 1 when ``--check`` found a difference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="compare only")
    check = parser.parse_args(arguments).check
    text = expected_page()
    if REFERENCE_PAGE.is_file() and REFERENCE_PAGE.read_text(encoding="utf-8") == text:
        return 0
    if check:
        print(
            f"out of date: {REFERENCE_PAGE.relative_to(ROOT)} (run `python scripts/conformance.py`)\n{text}",
            file=sys.stderr,
        )
        return 1
    REFERENCE_PAGE.write_text(text, encoding="utf-8")
    print(f"wrote {REFERENCE_PAGE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
