"""Gateways as processes, and clients that do not forgive: whatever is not a whole and right answer
is counted by name."""

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairlead.fleet.file import write_fleet_file
from fairlead.fleet.model import Fleet, Instance, InstanceState, Model, SloTargets
from fairlead_testing.http.raw_client import RawConnection, RawResponse, get_request, post_request

TIMEOUT_SECONDS = 30.0
_READY = re.compile(r"ready (http://\S+) manage (http://\S+)")


@dataclass(slots=True)
class GatewayProcess:
    """A gateway that said ``ready``."""

    process: asyncio.subprocess.Process
    url: str
    manage: str

    @property
    def pid(self) -> int:
        """The id of its first process."""
        return self.process.pid

    def terminate(self) -> None:
        """SIGTERM: it drains."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)

    async def wait(self) -> int:
        """Its exit code."""
        return await asyncio.wait_for(self.process.wait(), 120)


def write_fleet(path: Path, urls: Sequence[str], model: str = "tiny") -> None:
    """One model with an instance for each URL, all ready."""
    served = Model("default", model, SloTargets(), "dual-hash")
    instances = tuple(
        Instance(f"e-{number}/{number}/0", "default", model, "main", url, state=InstanceState.READY)
        for number, url in enumerate(urls)
    )
    write_fleet_file(path, Fleet(1, 1, {served.key: served}, {served.key: instances}))


async def start_gateway(
    fleet: Path, *arguments: str, environ: Mapping[str, str] | None = None, log: int | None = None
) -> GatewayProcess:
    """A gateway on free ports, once it is ready."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "fairlead_gateway", "--fleet", str(fleet), "--listen", "127.0.0.1:0", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=log,
        env={**os.environ, **(environ or {})},
    )
    assert process.stdout is not None
    line = (await asyncio.wait_for(process.stdout.readline(), 60)).decode()
    found = _READY.match(line)
    if found is None:
        process.kill()
        await process.wait()
        raise AssertionError(f"no gateway: {line!r}")
    return GatewayProcess(process, found[1], found[2])


@asynccontextmanager
async def running_gateway(
    fleet: Path, *arguments: str, environ: Mapping[str, str] | None = None
) -> AsyncIterator[GatewayProcess]:
    """One gateway; ended with the block."""
    running = await start_gateway(fleet, *arguments, environ=environ)
    try:
        yield running
    finally:
        if running.process.returncode is None:
            running.process.kill()
        await running.process.wait()


async def get_management(gateway: GatewayProcess, path: str) -> RawResponse:
    """Returns an answer of the management port."""
    connection = await RawConnection.connect(gateway.manage)
    try:
        await connection.send(get_request(path).replace(b"host: x", b"host: 127.0.0.1"))
        return await connection.read_response()
    finally:
        await connection.close()


async def metric(gateway: GatewayProcess, name: str, labels: str = "") -> list[float]:
    """A metric's samples whose labels hold ``labels``."""
    page = (await get_management(gateway, "/metrics")).body.decode()
    found = re.findall(rf"^{name}({{[^\n]*}})? ([^\n]+)$", page, re.MULTILINE)
    return [float(value) for text, value in found if labels in text]


def chat_body(number: int, *, stream: bool, tokens: int, greedy: bool, topics: int = 40) -> dict[str, Any]:
    """Returns one of ``topics`` conversations, answered with exactly ``tokens`` tokens."""
    text = f"conversation {number % topics} " * 60
    body: dict[str, Any] = {
        "model": "tiny",
        "messages": [{"role": "user", "content": text}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "temperature": 0 if greedy else 1,
        "user": f"user-{number}",
    }
    return body | ({"stream": True} if stream else {})


def check_answer(answer: RawResponse, tokens: int) -> tuple[str, str]:
    """Returns a client's verdict on an answer to a chat, and its text."""
    if answer.status != 200:
        return f"status {answer.status} {json.loads(answer.body)['error']['code']}", ""
    if answer.fields.get("content-type", "").startswith("application/json"):
        choice = answer.json["choices"][0]
        whole = answer.json["usage"]["completion_tokens"] == tokens
        return "complete" if whole else "looks complete and is not", choice["message"]["content"]
    events = answer.events
    texts = [text for event in events if event != "[DONE]" for text in _texts(event)]
    if events[-1:] == ["[DONE]"]:
        return "complete" if len(texts) == tokens else "looks complete and is not", "".join(texts)
    if events and '"error"' in events[-1]:
        return "ended with an error event", ""
    return "cut silently", ""


def _texts(event: str) -> list[str]:
    choices = json.loads(event).get("choices") or []
    return [choice["delta"]["content"] for choice in choices if choice["delta"].get("content")]


async def send_request(url: str, body: dict[str, Any]) -> tuple[str, str, str]:
    """Ask over a new connection: what came of it, the text, the instance."""
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            connection = await RawConnection.connect(url)
            try:
                await connection.send(post_request(body))
                answer = await connection.read_response()
            finally:
                connection.writer.transport.abort()
    except TimeoutError:
        return "hangs", "", ""
    except (OSError, asyncio.IncompleteReadError) as error:
        return f"no answer: {type(error).__name__}", "", ""
    return *check_answer(answer, body["max_tokens"]), answer.fields.get("x-fairlead-instance", "")
