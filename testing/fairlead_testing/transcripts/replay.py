"""A plain HTTP/1.1 client that keeps every byte of a response, and the replay of recordings.

Recordings are replayed in the manifest's order, and each is compared. Some stay open while others
are replayed (a request to a sleeping engine, long ones whose load is read). Some follow a client
that disconnected early.

The recorder repeats them after an engine's release: the requests stay, the answers are new.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from fairlead_testing.engines.disaggregated import EngineProcess
from fairlead_testing.transcripts.comparison import compare_exact, compare_shape
from fairlead_testing.transcripts.recording import (
    EXACT,
    REQUEST_MARK,
    RESPONSE_MARK,
    HttpResponse,
    ManifestEntry,
    RecordedRequest,
    Recording,
    is_complete,
    parse_response,
    read_recording,
)

RESPONSE_TIMEOUT_SECONDS = 60.0
_READ_BYTES = 65_536
_RUNNING = "vllm:num_requests_running"


class ClientConnection:
    """One TCP connection to an engine; ``received`` has its unread bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.received = bytearray()
        self.is_closed = False

    async def send(self, raw: bytes) -> None:
        self._writer.write(raw)
        await self._writer.drain()

    async def read_more(self) -> bytes:
        """Adds the next bytes to ``received`` and returns them; empty if the peer closed.

        Raises TimeoutError after ``RESPONSE_TIMEOUT_SECONDS``.
        """
        data = await asyncio.wait_for(self._reader.read(_READ_BYTES), RESPONSE_TIMEOUT_SECONDS)
        self.received += data
        self.is_closed = not data
        return data

    async def read_until(self, mark: bytes) -> None:
        """Reads until ``mark``. Raises EOFError if the peer closes first."""
        while mark not in self.received:
            if not await self.read_more():
                raise EOFError(f"the engine closed before {mark!r}")

    async def read_whole(self) -> None:
        """Reads one complete response. Raises EOFError if the engine closes before its end."""
        while not is_complete(bytes(self.received)):
            if not await self.read_more():
                raise EOFError(f"the engine closed after {len(self.received)} bytes")

    async def read_response(self) -> HttpResponse:
        """Returns one complete response."""
        await self.read_whole()
        whole = parse_response(bytes(self.received))
        self.received.clear()
        return whole

    async def close(self) -> None:
        """Closes this side, so that the engine sees a disconnect."""
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except ConnectionError:
            pass  # the other side was faster


@asynccontextmanager
async def open_client(authority: str) -> AsyncIterator[ClientConnection]:
    """Yields a connection to ``host:port``."""
    host, _, port = authority.rpartition(":")
    connection = ClientConnection(*await asyncio.open_connection(host, int(port)))
    try:
        yield connection
    finally:
        await connection.close()


async def send_request(authority: str, request: RecordedRequest) -> HttpResponse:
    """Sends one request on its own connection and returns the response."""
    async with open_client(authority) as connection:
        await connection.send(request.to_bytes(authority))
        return await connection.read_response()


def get_request(target: str) -> RecordedRequest:
    return RecordedRequest("GET", target, (("Host", ""), ("Accept", "*/*")), b"")


def post_request(target: str, document: object = None) -> RecordedRequest:
    """Returns a POST of a JSON document, or without a body."""
    if document is None:
        return RecordedRequest("POST", target, (("Host", ""), ("Accept", "*/*"), ("Content-Length", "0")), b"")
    headers = (("Host", ""), ("Content-Type", "application/json"), ("Content-Length", ""))
    return RecordedRequest("POST", target, headers, json.dumps(document).encode())


async def read_metric(authority: str, *names: str) -> float:
    """Returns the sum of all series of the named metrics."""
    page = (await send_request(authority, get_request("/metrics"))).body.decode()
    total = 0.0
    for line in page.splitlines():
        series, _, value = line.rpartition(" ")
        if series.partition("{")[0] in names:
            total += float(value)
    return total


async def read_load(authority: str) -> float:
    """Returns the number of requests in the engine's server, read from ``/load``.

    Requests that wait for a wake-up count.
    """
    return float((await send_request(authority, get_request("/load"))).json()["server_load"])


async def wait_for_metric(authority: str, is_wanted: Callable[[float], bool], *names: str) -> float:
    """Reads metrics until ``is_wanted`` accepts their sum.

    Raises TimeoutError with the last value.
    """
    return await wait_for_value(lambda: read_metric(authority, *names), is_wanted, " + ".join(names))


async def wait_for_value(
    read_value: Callable[[], Awaitable[float]], is_wanted: Callable[[float], bool], what: str
) -> float:
    """Reads a value until ``is_wanted`` accepts it. Raises TimeoutError with the last value."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + RESPONSE_TIMEOUT_SECONDS
    while not is_wanted(value := await read_value()):
        if loop.time() > deadline:
            raise TimeoutError(f"{what} was still {value} after {RESPONSE_TIMEOUT_SECONDS:.0f} s")
        await asyncio.sleep(0.005)
    return value


@dataclass(frozen=True, slots=True)
class _HeldRecording:
    """A recording with open requests; each task ends with a response."""

    entry: ManifestEntry
    recording: Recording
    answers: tuple["asyncio.Task[HttpResponse]", ...]


async def replay_recordings(
    entries: Iterable[ManifestEntry], folder: Path, engine: EngineProcess
) -> dict[str, list[str]]:
    """Replays recordings against a running engine, in order.

    Returns the differences of each: those from its bytes or from its shape, as its entry claims.
    """
    differences: dict[str, list[str]] = {}
    open_recordings: list[_HeldRecording] = []
    async with AsyncExitStack() as stack:
        for entry in entries:
            recording = read_recording(folder / f"{entry.name}.txt")
            if entry.hold:
                open_recordings.append(await _send_held(entry, recording, engine, stack))
                continue
            if entry.abandon:
                await _abandon_request(entry.abandon, engine)
            due = [item for item in open_recordings if item.entry.until == entry.name]
            early = {item.entry.name: any(answer.done() for answer in item.answers) for item in due}
            for _ in range(entry.times - 1):
                await send_request(engine.authority, recording.request)
            live = await send_request(engine.authority, recording.request)
            differences[entry.name] = _compare(entry, recording, live)
            for item in due:
                differences[item.entry.name] = await _finish_held(item, early[item.entry.name])
                open_recordings.remove(item)
    return differences


async def record_entries(entries: Iterable[ManifestEntry], folder: Path, authority: str) -> dict[str, bytes]:
    """Sends the requests of ``folder`` to an engine, in the manifest's order.

    Returns file name → content: the same requests, and the bytes that the engine sent. Requests
    that stay open while others are sent are left out: scenarios record them by hand.
    """
    version = (await send_request(authority, get_request("/version"))).json()["version"]
    made = {}
    for entry in entries:
        if entry.hold:
            continue
        request = read_recording(folder / f"{entry.name}.txt").request.to_bytes(authority)
        async with open_client(authority) as connection:
            await connection.send(request)
            await connection.read_whole()
            answer = bytes(connection.received)
        head = f"# {entry.name}\n# vLLM {version}, real engine, raw bytes\n".encode()
        made[f"{entry.name}.txt"] = head + REQUEST_MARK + request + RESPONSE_MARK + answer + b"\n"
    return made


def _compare(entry: ManifestEntry, recording: Recording, live: HttpResponse) -> list[str]:
    if recording.response is None:
        return [f"answered {live.status}, the recorded engine did not answer"]
    compare = compare_exact if entry.match == EXACT else compare_shape
    return compare(recording.response, _as_recorded(recording, live))


def _as_recorded(recording: Recording, live: HttpResponse) -> HttpResponse:
    """Blanks the file path in the live response that the recorder blanked."""
    if recording.response is None or b"<path>" not in recording.response.body:
        return live
    path = json.loads(recording.request.body)["lora_path"]
    return replace(live, body=live.body.replace(path.encode(), b"<path>"))


async def _send_held(
    entry: ManifestEntry, recording: Recording, engine: EngineProcess, stack: AsyncExitStack
) -> _HeldRecording:
    """Sends a request several times and waits until the engine has them all."""
    before = await read_load(engine.authority)
    answers: list[asyncio.Task[HttpResponse]] = []
    for _ in range(entry.hold):
        connection = await stack.enter_async_context(open_client(engine.authority))
        await connection.send(recording.request.to_bytes(engine.authority))
        answers.append(asyncio.create_task(connection.read_response()))
    await wait_for_value(lambda: read_load(engine.authority), lambda inside: inside >= before + entry.hold, "/load")
    return _HeldRecording(entry, recording, tuple(answers))


async def _finish_held(item: _HeldRecording, answered_early: bool) -> list[str]:
    """Waits for all open responses, and compares the first with the recording.

    A recording without a response matches if the engine answered none before the release.
    """
    lives = await asyncio.gather(*item.answers)
    if item.recording.response is None:
        return ["answered before it was released"] if answered_early else []
    return _compare(item.entry, item.recording, lives[0])


async def _abandon_request(kind: str, engine: EngineProcess) -> None:
    """Disconnects in the middle of a request and waits until the engine notices."""
    document = {"prompt": "Once upon a time", "max_tokens": 1900, "ignore_eos": True, "stream": kind == "stream"}
    async with open_client(engine.authority) as connection:
        await connection.send(post_request("/v1/completions", document).to_bytes(engine.authority))
        await wait_for_metric(engine.authority, lambda running: running == 1, _RUNNING)
    await wait_for_metric(engine.authority, lambda running: running == 0, _RUNNING)
