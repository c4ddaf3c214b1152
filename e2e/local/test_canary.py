"""A canary in every prompt, sent along every path of a gateway process with its faults.

Nothing that the gateway writes may have it. The test reads the log at debug level with both
streams, the access log, and the spans of a collector. It reads the metrics, every page of the
management port, every decision, and the data in Redis. A second canary is the API key. Only clients
may get their prompt back. (The path of a URL is no prompt: the access log has it.)
"""

import asyncio
import os
import random
import re
import signal
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import redis

from fairlead.fleet.file import write_fleet_file
from fairlead.fleet.model import Fleet, Model
from fairlead_gateway.tenants.worker.api_keys import key_digest
from fairlead_testing.engines.disaggregated import DisaggregatedModel, engine_process
from fairlead_testing.engines.scripted import (
    EngineCall,
    HangUp,
    Script,
    hang_up,
    reset,
    responds,
    scripted_engine,
    silent,
    streams,
    token,
    well_behaved,
)
from fairlead_testing.gateway.gateway_process import GatewayProcess, gateway_process
from fairlead_testing.gateway.running_gateway import fleet_of
from fairlead_testing.http.raw_client import RawConnection, get_request, post_request
from fairlead_testing.pytest_hooks.coroutine_tests import run_async
from fairlead_testing.redis.valkey import Valkey, running_valkey
from fairlead_testing.waiting import wait_until

pytestmark = [pytest.mark.timeout(300), pytest.mark.extended]

CANARY = "canary7c1e55"
KEY = "sk-canary-key-91aa"
PEPPER = "pepper of the test"
TEXT = f"tell me of {CANARY}"
_SPLIT = (
    *("--served-model-name", "split", "--profile", "tiny-cpu", "--speed", "20", "--kv-connector", "nixl"),
    *("--kv-lease-seconds", "30", "--kv-load-failure-policy", "recompute", "--kv-dead-peer-seconds", "0.1"),
    *("--kv-abort-seconds", "30"),
)
CHAT = "/v1/chat/completions"
HEAD = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n".encode()

ERROR = {"error": {"message": TEXT, "type": CANARY, "code": CANARY}}


async def script(call: EngineCall) -> None:
    """Behaves as the field `user` says."""
    if call.path.startswith(("/metrics", "/health")):
        await call.respond(b"", kind="text/plain")
        return
    user = re.search(rb'"user":"([a-z-]+)"', call.body)
    await BEHAVIOURS[user[1].decode() if user else "honest"](call)


def quotes(status: str, **error: object) -> Script:
    """Returns a behaviour that fails with the request in its message."""

    async def fail(call: EngineCall) -> None:
        await call.respond({"error": {"message": call.body.decode(), **error}}, status)

    return fail


async def _html(call: EngineCall) -> None:
    await call.respond(b"<html>" + call.body, kind="text/html")


async def _garbage(call: EngineCall) -> None:
    await call.send(call.body)
    raise HangUp


async def _cut(call: EngineCall) -> None:
    if b"continue_final_message" in call.body:
        await well_behaved(call)
    else:
        await streams(token(CANARY) | {"id": "c", "created": 1, "model": "tiny"}, end=hang_up)(call)


async def _long(call: EngineCall) -> None:
    await call.start_stream()
    while not call.writer.is_closing():
        await call.event(token(CANARY))


BEHAVIOURS: dict[str, Script] = {
    "honest": well_behaved,
    "hang-up": hang_up,
    "reset": reset,
    "quote-five": quotes("500 Internal Server Error", code=500),
    "quote-four": quotes("400 Bad Request", type=CANARY, code=CANARY),
    "quote-busy": responds(ERROR, "503 Service Unavailable", more="retry-after: 1\r\n"),
    "html": _html,
    "garbage": _garbage,
    "cut": _cut,
    "abort": streams(token(CANARY), token(CANARY, "abort"), end=hang_up),
    "error-event": streams(ERROR, end=hang_up),
    "late-error-event": streams(token(CANARY), ERROR, end=hang_up),
    "no-json": streams(TEXT, end=hang_up),
    "silent": silent,
    "long": _long,
}


def chat(**more: Any) -> dict[str, Any]:
    """A chat with the canary in its prompt, its tools and its stop strings; what is None is left
    out."""
    found = {
        "model": "tiny",
        "messages": [{"role": "user", "content": TEXT}],
        "tools": [{"type": "function", "function": {"name": CANARY, "description": CANARY}}],
        "stop": [CANARY],
        "user": "honest",
        **more,
    }
    return {name: value for name, value in found.items() if value is not None}


def good_ones() -> Iterator[tuple[str, Any]]:
    """(path, body) of everything that reaches an engine, well or badly."""
    for user in BEHAVIOURS:
        for more in ({}, {"temperature": 0, "tools": None, "stop": None}):
            for stream in (False, True):
                if user not in ("silent", "long"):
                    yield CHAT, chat(user=user, stream=stream, **more)
    for stream in (False, True):
        yield "/v1/completions", {"model": "tiny", "prompt": TEXT, "suffix": CANARY, "user": "honest", "stream": stream}
        yield "/v1/completions", {"model": "tiny", "prompt": TEXT, "user": "cut", "temperature": 0, "stream": stream}
        yield "/v1/responses", {"model": "tiny", "input": TEXT, "user": "honest", "stream": stream}
    yield (
        "/v1/embeddings",
        {"model": "default/tiny", "input": [TEXT], "user": "honest", "kv_transfer_params": {"x": CANARY}},
    )
    for path in ("/tokenize", "/detokenize", "/rerank", "/v1/rerank", "/score", "/v1/score", "/classify"):
        yield (
            path,
            {"model": "tiny", "prompt": TEXT, "query": TEXT, "documents": [TEXT], "text_1": TEXT, "user": "honest"},
        )
    yield "/v1/moderations", {"model": "tiny", "input": TEXT, "user": "quote-five"}
    yield "/v1/moderations", {"model": "tiny", "input": TEXT, "user": "garbage"}


def bad_ones() -> Iterator[bytes]:
    """Yields requests that are refused, with the canary at the place that is wrong."""
    for wrong in (
        {"model": CANARY}, {"model": ["tiny", CANARY]}, {"messages": TEXT},
        {"messages": [{"role": "user", "content": {CANARY: 1}}]},
        {"messages": [{"content": TEXT}]}, {"messages": [TEXT]}, {"temperature": CANARY}, {"stream": CANARY},
        {"n": CANARY}, {"n": 10**9},
        {"max_tokens": CANARY}, {"max_tokens": -1}, {"stop": [CANARY, 5]}, {"stop": CANARY * 10_000},
        {"tools": [CANARY]}, {"logit_bias": {CANARY: CANARY}},
        {"tools": [{"type": "function", "function": {CANARY: 1}}]}, {"response_format": {"x": CANARY * 30_000}},
        {"stream_options": CANARY},
        {"seed": 2**70}, {"tool_choice": 5}, {"user": [CANARY]}, {"cache_salt": [CANARY]},
        {"extra": [[CANARY]] * 1_000},
    ):  # fmt: skip
        yield signed(CHAT, chat(**wrong))
    yield signed("/v1/completions", {"model": "tiny", "prompt": {CANARY: 1}})
    yield signed("/v1/completions", {"model": "tiny", "prompt": [CANARY, 1]})
    yield signed("/v1/embeddings", {"model": "tiny", "input": {"x": CANARY}})
    yield signed("/v1/odd", {"input": TEXT})
    yield signed("/nowhere", chat())
    yield signed(CHAT, chat()).replace(b"POST", b"PUT", 1)
    yield signed(CHAT, chat()).replace(KEY.encode(), CANARY.encode())
    yield post_request(chat())
    for body in (
        b"", b'{"model":"tiny","messages":"' + CANARY.encode(), CANARY.encode(), b'["' + CANARY.encode() + b'"]',
        b'{"' + CANARY.encode() + b'":NaN}', b'{"model":"tiny","x":"' + CANARY.encode() + b'\xff"}',
        b'{"model":"' + CANARY.encode() + b'\\ud800"}',
        b'{"model":"tiny","x":' + b"[" * 500 + b'"' + CANARY.encode() + b'"' + b"]" * 500 + b"}",
    ):  # fmt: skip
        yield signed(CHAT, body)
    canary = CANARY.encode()
    for head in (
        b"Host: " + canary + b" \x01\r\n", canary + b"\r\n", canary + b" : x\r\n", b"Expect: " + canary + b"\r\n",
        b"X: " + canary + b"\x00\r\n",
        b"Content-Encoding: " + canary + b"\r\n", b"Transfer-Encoding: " + canary + b"\r\n",
        b"Content-Length: " + canary + b"\r\n",
        b"X-Request-Timeout: " + canary + b"\r\n", b"Connection: " + canary + b"\r\n",
        b"X: " + canary * 4_000 + b"\r\n",
    ):  # fmt: skip
        yield HEAD + head + b"\r\n" + canary
    yield HEAD + b"content-length: 40000000\r\n\r\n" + canary
    yield HEAD + b"content-length: 100\r\n\r\n" + canary
    for chunks in (
        canary + b"\r\n", b"5;" + canary + b"\x00\r\n", b"c\r\n" + canary + b"XX", b"0\r\n" + canary + b"\r\n\r\n",
        b"fffffff\r\n" + canary,
    ):  # fmt: skip
        yield HEAD + b"transfer-encoding: chunked\r\n\r\n" + chunks
    yield f"{CANARY} / HTTP/9.9\r\n\r\n".encode()
    yield b"\x16\x03\x01" + canary
    for target in (f"/v1/odd?q={CANARY}&model={CANARY}", f"/v1/odd?q={CANARY}&model=tiny", f"/readyz?{CANARY}"):
        yield get_request(target, more=f"authorization: Bearer {KEY}\r\n")


def signed(path: str, body: object, more: str = "", *, close: bool = True) -> bytes:
    """A whole request with the key."""
    return post_request(
        body,
        path=path,
        more=f"authorization: Bearer {KEY}\r\ntraceparent: 00-{'a' * 32}-{'b' * 16}-01\r\n{more}",
        close=close,
    )


async def answered(url: str, data: bytes, *, half_close: bool = False) -> list[int]:
    """The statuses of what comes back; a connection that breaks is an answer, too."""
    connection = await RawConnection.connect(url)
    try:
        await connection.send(data)
        if half_close:
            connection.writer.write_eof()
        return [answer.status for answer in await connection.read_all_responses()]
    except (AssertionError, ConnectionError, asyncio.IncompleteReadError):
        return [0]
    except TimeoutError:
        raise AssertionError(f"no answer to {data[:2_000]!r}") from None
    finally:
        connection.writer.transport.abort()


async def leaves(url: str, data: bytes, after: bytes) -> None:
    """A client that goes in the middle of its answer, or before it."""
    connection = await RawConnection.connect(url)
    await connection.send(data)
    if after:
        await connection.reader.readuntil(after)
    connection.writer.transport.abort()


def gateway(folder: Path, fleet: Fleet, redis_url: str, collector: str, stderr: BinaryIO) -> Any:
    """Returns the context of a gateway with everything on that writes anything down."""
    write_fleet_file(folder / "fleet.yaml", fleet)
    digest = key_digest(KEY.encode(), PEPPER.encode()).hex()
    (folder / "keys.yaml").write_text(f'keys:\n  - {{name: somebody, digest: "{digest}"}}\n')
    environ = {
        **os.environ,
        "FAIRLEAD_KEY_PEPPER": PEPPER,
        "FAIRLEAD_LOG_LEVEL": "debug",
        "FAIRLEAD_ACCESS_LOG": str(folder / "access.log"),
        "FAIRLEAD_TRACE_ENDPOINT": collector,
        "FAIRLEAD_TRACE_SAMPLE": "1",
        "PYTHONASYNCIODEBUG": "1",
    }
    options = ("--keys", str(folder / "keys.yaml"), "--redis", redis_url, "--workers", "2")
    return gateway_process(folder / "fleet.yaml", *options, environ=environ, stderr=stderr)


async def pages(gateway: GatewayProcess) -> dict[str, str]:
    """Returns everything that the management port shows."""
    decisions = "/api/decisions?limit=500"
    shown = ("/", "/readyz", "/metrics", "/api/fleet", "/api/stats", decisions, "/openapi.json", "/docs")
    found = {path: await _page(gateway, path) for path in shown}
    for name in sorted(set(re.findall(r'"(?:request_)?id":"([^"]+)"', found[decisions])))[:200]:
        found[f"/api/decisions/{name}"] = await _page(gateway, f"/api/decisions/{name}")
    return found


async def _page(gateway: GatewayProcess, path: str) -> str:
    answer = await gateway.get(path)
    return str(answer.fields) + answer.body.decode()


def stored(valkey: Valkey) -> str:
    """Everything in Redis, as text."""
    with redis.Redis(unix_socket_path=str(valkey.path)) as client:
        found = []
        for key in client.scan_iter(count=1_000):
            kind = client.type(key)
            reader = {
                b"string": client.get,
                b"hash": client.hgetall,
                b"list": lambda name: client.lrange(name, 0, -1),
                b"set": client.smembers,
                b"zset": lambda name: client.zrange(name, 0, -1, withscores=True),
                b"stream": client.xrange,
            }[kind]
            found.append(f"{key!r} {reader(key)!r}")
        return "\n".join(found)


def fleet(scripted: str, split: DisaggregatedModel) -> Fleet:
    """Returns a fleet with ``tiny`` on three addresses of a scripted engine, and ``split`` on
    engines that hand prompts over."""
    plain = fleet_of([scripted] * 3)
    (parts,) = split.fleet().instances.values()
    model = Model("default", "split")
    return Fleet(
        1,
        1,
        {**plain.models, "default/split": model},
        {**plain.instances, "default/split": tuple(replace(part, model="split") for part in parts)},
    )


async def faults(url: str, split: DisaggregatedModel) -> None:
    """Provokes deadlines, leaving clients, broken hand-offs, quarantine, and a storm of bytes."""
    for stream in (False, True):
        silence = signed(CHAT, chat(user="silent", stream=stream))
        await answered(url, silence.replace(b"\r\n\r\n", b"\r\nx-request-timeout: 300ms\r\n\r\n", 1))
        await leaves(url, silence, b"")
    endless = chat(user="long", stream=True)
    await answered(url, signed(CHAT, endless, "x-request-timeout: 300ms\r\n"))
    await leaves(url, signed(CHAT, endless), b'"content"')
    for _ in range(4):  # two engines die of it: quarantined
        await answered(url, signed(CHAT, chat(user="hang-up", metadata={"x": CANARY})))
    long = {"model": "split", "messages": [{"role": "user", "content": f"{TEXT} " * 800}], "max_tokens": 30}
    endless = long | {"stream": True, "max_tokens": 2_000, "temperature": 1}
    assert await answered(url, signed(CHAT, long)) == [200]
    await leaves(url, signed(CHAT, endless), b"\n\n")
    await split.prefill[0].kill()
    other = long | {"messages": [{"role": "user", "content": f"{TEXT}! " * 800}]}
    assert await answered(url, signed(CHAT, other)) == [200]
    streaming = asyncio.create_task(answered(url, signed(CHAT, endless)))
    await asyncio.sleep(0)
    await split.decode[0].kill()
    await streaming
    draw = random.Random(1)
    for _ in range(150):
        data = bytearray(signed(CHAT, chat()))
        for _ in range(draw.randint(1, 4)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        await answered(url, bytes(data), half_close=True)


async def _write_everything(folder: Path, valkey: Valkey) -> dict[str, str]:
    """Returns what the gateway wrote, by place."""
    async with AsyncExitStack() as stack:
        prefill, decode, other = [
            await stack.enter_async_context(engine_process(*_SPLIT, "--kv-role", role))
            for role in ("kv_producer", "kv_consumer", "kv_consumer")
        ]
        split = DisaggregatedModel([prefill], [decode, other])
        scripted = await stack.enter_async_context(scripted_engine(script))
        spans = await stack.enter_async_context(scripted_engine(responds({})))
        stderr = stack.enter_context((folder / "stderr").open("wb"))
        running = await stack.enter_async_context(
            gateway(folder, fleet(scripted.url, split), valkey.url, spans.url, stderr)
        )
        statuses = set()
        for path, body in good_ones():
            statuses.update(await answered(running.url, signed(path, body)))
        for data in bad_ones():
            statuses.update(await answered(running.url, data, half_close=True))
        await faults(running.url, split)
        assert {200, 400, 401, 404, 405, 413, 417, 431, 502} <= statuses, statuses
        written = await pages(running)
        decided = written["/api/decisions?limit=500"]
        for word in ("default/tiny", "default/split", "continue-1", "prefill-0"):
            assert word in decided, word

        async def has_decision() -> bool:
            return "default/tiny" in await asyncio.to_thread(stored, valkey)

        await wait_until(has_decision)
        written["redis"] = await asyncio.to_thread(stored, valkey)
        await wait_until(lambda: bool(spans.calls))
        running.process.send_signal(signal.SIGTERM)
        assert await running.wait() == 0
        assert running.process.stdout is not None
        written["stdout"] = (await running.process.stdout.read()).decode()
        written["spans"] = b"".join(call.body for call in spans.calls).decode()
        written["stderr"] = (folder / "stderr").read_text()
        written["access log"] = (folder / "access.log").read_text()
        assert all(written[name] for name in ("spans", "stderr", "access log"))
        return written


def test_no_prompt_and_no_key_is_written_down_anywhere(tmp_path: Path) -> None:
    with running_valkey(tmp_path) as valkey:
        written = run_async(_write_everything(tmp_path, valkey))
    for place, text in written.items():
        for secret in (CANARY, KEY, PEPPER):
            assert secret not in text, (place, secret, text[max(0, text.find(secret) - 300) : text.find(secret) + 100])
