"""The replay of recordings, in the manifest's order, with a comparison of each.

Some recordings depend on further requests. Some stay open while others are replayed (a request to a
sleeping engine, long ones whose load is read). Some follow a client that disconnected early.

A plain HTTP/1.1 client that keeps every byte of a response.

A simulated engine as a child process.

The recorder: sends recorded requests to a running engine and writes what it answers.

It repeats the recordings after an engine's release. The requests stay those of the earlier
recordings, the answers are the bytes that the engine sent.

The results of a replay, as text for a terminal and as the reference page.
"""

import asyncio
import json
import re
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from fairlead.errors import Unavailable
from fairlead_testing.transcripts import comparison
from fairlead_testing.transcripts.recording import (
    EXACT,
    EXCLUDED,
    HttpResponse,
    Manifest,
    ManifestEntry,
    RecordedRequest,
    Recording,
    is_complete,
    parse_response,
    read_recording,
)

RESPONSE_TIMEOUT_SECONDS = 60.0
_READ_BYTES = 65_536

_READY = re.compile(rb"https?://([\d.]+):(\d+)")
_START_SECONDS = 60.0
_STOP_SECONDS = 30.0

_RUNNING = "vllm:num_requests_running"

_HEAD = """# Recordings of a real vLLM

The simulated engine is held against recordings of vLLM 0.32.0. `python -m fairlead_testing.transcripts DIR` replays them and
prints this table; `tests/testing/transcripts` fails when a claim of the manifest does not hold. This page is generated from
`testing/fairlead_testing/transcripts/manifest.yaml`; do not edit it.

*exact*: status line, headers in order and body are equal after masking ids, times, generated text and Content-Length.
*shape*: same status, same header names, same JSON keys and types at every depth, and for streams the same kinds of events
in order. Token counts are not masked, so an answer that counts the tokens of a text can only match in shape.
"""


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

    async def read_response(self) -> HttpResponse:
        """Returns one complete response. Raises EOFError if the engine closes before its end."""
        while not is_complete(bytes(self.received)):
            if not await self.read_more():
                raise EOFError(f"the engine closed after {len(self.received)} bytes")
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
class EngineProcess:
    """A running engine and its address."""

    host: str
    port: int
    process: asyncio.subprocess.Process

    @property
    def authority(self) -> str:
        return f"{self.host}:{self.port}"


@asynccontextmanager
async def launch_engine(switches: Sequence[str]) -> AsyncIterator[EngineProcess]:
    """Yields an engine on a free port; it ends with the context.

    Raises Unavailable if the engine ends before it is ready, TimeoutError if that takes too long.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "fairlead_sim", "engine", "--listen", "127.0.0.1:0", *switches),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        host, port = await asyncio.wait_for(_wait_ready(process), _START_SECONDS)
        yield EngineProcess(host, port, process)
    finally:
        await _stop_process(process)


async def _wait_ready(process: asyncio.subprocess.Process) -> tuple[str, int]:
    if process.stdout is None:
        raise Unavailable("the engine's output is not a pipe")
    async for line in process.stdout:
        if line.startswith(b"ready") and (match := _READY.search(line)):
            return match[1].decode(), int(match[2])
    raise Unavailable(f"the engine ended before it was ready (exit status {await process.wait()})")


async def _stop_process(process: asyncio.subprocess.Process) -> None:
    """Terminates or kills the process, and reads its pipe to the end so that the transport
    closes.
    """
    if process.returncode is None:
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), _STOP_SECONDS)
        except TimeoutError:
            process.kill()
            await process.wait()
    if process.stdout is not None:
        await process.stdout.read()


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """Both comparisons of one recording."""

    entry: ManifestEntry
    exact_differences: tuple[str, ...]
    shape_differences: tuple[str, ...]

    @property
    def is_as_claimed(self) -> bool:
        return not self.differences

    @property
    def differences(self) -> tuple[str, ...]:
        return self.exact_differences if self.entry.match == EXACT else self.shape_differences

    @property
    def likeness(self) -> str:
        """Returns the closest match: ``exact``, ``shape`` or ``differs``."""
        if not self.exact_differences:
            return "exact"
        return "differs" if self.shape_differences else "shape"


@dataclass(frozen=True, slots=True)
class _HeldRecording:
    """A recording with open requests; each task ends with a response."""

    entry: ManifestEntry
    recording: Recording
    answers: tuple["asyncio.Task[HttpResponse]", ...]


async def replay_all(manifest: Manifest, folder: Path) -> list[ReplayResult]:
    """Replays every recording that is not excluded, with an engine per configuration."""
    results: dict[str, ReplayResult] = {}
    for name, switches in manifest.engines.items():
        entries = manifest.entries_for(name)
        if not entries:
            continue
        async with launch_engine(switches) as engine:
            for result in await replay_recordings(entries, folder, engine):
                results[result.entry.name] = result
    return [results[entry.name] for entry in manifest.entries if entry.match != EXCLUDED]


async def replay_recordings(
    entries: Iterable[ManifestEntry], folder: Path, engine: EngineProcess
) -> list[ReplayResult]:
    """Replays recordings against a running engine, in order."""
    results: list[ReplayResult] = []
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
                await _send_recorded(recording, engine)
            results.append(_compare_live(entry, recording, await _send_recorded(recording, engine)))
            for item in due:
                results.append(await _finish_held(item, early[item.entry.name]))
                open_recordings.remove(item)
    return results


def compare_responses(entry: ManifestEntry, recorded: HttpResponse, live: HttpResponse) -> ReplayResult:
    """Returns both comparisons of one response."""
    return ReplayResult(
        entry, tuple(comparison.compare_exact(recorded, live)), tuple(comparison.compare_shape(recorded, live))
    )


def _compare_live(entry: ManifestEntry, recording: Recording, live: HttpResponse | str) -> ReplayResult:
    if isinstance(live, str):
        return ReplayResult(entry, (live,), (live,))
    if recording.response is None:
        difference = (f"answered {live.status}, the recorded engine did not answer",)
        return ReplayResult(entry, difference, difference)
    return compare_responses(entry, recording.response, _as_recorded(recording, live))


async def _send_recorded(recording: Recording, engine: EngineProcess) -> HttpResponse | str:
    """Returns the live response, or the reason why there is none."""
    try:
        return await send_request(engine.authority, recording.request)
    except (OSError, EOFError, TimeoutError) as error:
        return f"no answer: {error!r}"


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


async def _finish_held(item: _HeldRecording, answered_early: bool) -> ReplayResult:
    """Waits for all open responses, and compares the first with the recording.

    A recording without a response matches if the engine answered none before the release.
    """
    lives = await asyncio.gather(*item.answers)
    if item.recording.response is None:
        differences = ("answered before it was released",) if answered_early else ()
        return ReplayResult(item.entry, differences, differences)
    return _compare_live(item.entry, item.recording, lives[0])


async def _abandon_request(kind: str, engine: EngineProcess) -> None:
    """Disconnects in the middle of a request and waits until the engine notices."""
    document = {"prompt": "Once upon a time", "max_tokens": 1900, "ignore_eos": True, "stream": kind == "stream"}
    async with open_client(engine.authority) as connection:
        await connection.send(post_request("/v1/completions", document).to_bytes(engine.authority))
        await wait_for_metric(engine.authority, lambda running: running == 1, _RUNNING)
    await wait_for_metric(engine.authority, lambda running: running == 0, _RUNNING)


async def record_entries(entries: Iterable[ManifestEntry], folder: Path, authority: str) -> dict[str, bytes]:
    """Records the requests of ``folder`` at an engine, in the manifest's order.

    Returns file name → content.

    Requests that stay open while others are sent, and those that wait for a client to leave, are
    left out: scenarios record them by hand.
    """
    version = (await send_request(authority, get_request("/version"))).json()["version"]
    made = {}
    for entry in entries:
        if entry.hold:
            continue
        request = read_recording(folder / f"{entry.name}.txt").request
        answer = await _exchange(authority, request)
        made[f"{entry.name}.txt"] = recording_bytes(entry.name, version, request.to_bytes(authority), answer)
    return made


def recording_bytes(name: str, version: str, request: bytes, answer: bytes) -> bytes:
    head = f"# {name}\n# vLLM {version}, real engine, raw bytes\n".encode()
    return head + b"===== REQUEST =====\n" + request + b"\n===== RESPONSE =====\n" + answer + b"\n"


async def _exchange(authority: str, request: RecordedRequest) -> bytes:
    """Returns the bytes of one response. Raises EOFError if the engine closes before its end."""
    async with open_client(authority) as connection:
        await connection.send(request.to_bytes(authority))
        while not is_complete(bytes(connection.received)):
            if not await connection.read_more():
                raise EOFError(f"the engine closed after {len(connection.received)} bytes")
        return bytes(connection.received)


def summarize(manifest: Manifest) -> str:
    """Returns a line with the number of recordings per match."""
    count = Counter(entry.match for entry in manifest.entries)
    matched = count["exact"] + count["shape"]
    return (
        f"{matched} of {len(manifest.entries)} recordings match: {count['exact']} exact, {count['shape']} in shape; "
        f"{count['excluded']} excluded; {len(manifest.scenarios)} scenarios have tests of their own."
    )


def render_page(manifest: Manifest) -> str:
    """Returns the reference page, from the manifest alone.

    Why: the replay test proves the manifest's claims, so the page needs no run.
    """
    lines = [
        _HEAD,
        summarize(manifest),
        "",
        "## Recordings",
        "",
        "| recording | engine | match | note |",
        "|---|---|---|---|",
    ]
    for entry in sorted(manifest.entries, key=lambda item: item.name):
        lines.append(f"| `{entry.name}` | {entry.engine} | {entry.match} | {entry.why} |")
    lines += ["", "## Engines", "", "| engine | switches of `python -m fairlead_sim engine` |", "|---|---|"]
    for name, switches in manifest.engines.items():
        lines.append(f"| {name} | `{' '.join(switches)}` |")
    lines += ["", "## Scenarios", "", "| file | what it shows | test |", "|---|---|---|"]
    for scenario in manifest.scenarios:
        tests = "<br>".join(f"`{test}`" for test in scenario.tests)
        lines.append(f"| `{scenario.name}` | {scenario.summary} | {tests} |")
    return "\n".join(lines) + "\n"


def render_table(manifest: Manifest, results: Sequence[ReplayResult]) -> str:
    """Returns a line per recording, with the differences of broken claims, and a line of counts."""
    lines = [f"{'recording':52} {'claimed':9} found"]
    for result in results:
        lines.append(f"{result.entry.name:52} {result.entry.match:9} {result.likeness}")
        if not result.is_as_claimed:
            lines += [f"    {difference}" for difference in result.differences]
    lines += [f"{entry.name:52} {EXCLUDED:9} {entry.why}" for entry in manifest.entries if entry.match == EXCLUDED]
    counts = Counter(result.likeness for result in results)
    lines.append(
        f"{counts['exact'] + counts['shape']} of {len(manifest.entries)} match ({counts['exact']} exact, {counts['shape']} in "
        f"shape), {counts['differs']} differ, {len(manifest.entries) - len(results)} excluded"
    )
    return "\n".join(lines)


def broken_claims(results: Iterable[ReplayResult]) -> list[ReplayResult]:
    return [result for result in results if not result.is_as_claimed]
