"""The replay of recordings, in the manifest's order, with a comparison of each.

Some recordings depend on further requests. Some stay open while others are replayed (a request to a
sleeping engine, long ones whose load is read). Some follow a client that disconnected early.
"""

import asyncio
import json
from collections.abc import Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from fairlead_sim.transcripts import comparison
from fairlead_sim.transcripts.engine_process import EngineProcess, launch_engine
from fairlead_sim.transcripts.http_client import (
    open_client,
    post_request,
    read_load,
    send_request,
    wait_for_metric,
    wait_for_value,
)
from fairlead_sim.transcripts.manifest import EXACT, EXCLUDED, Manifest, ManifestEntry
from fairlead_sim.transcripts.recording import HttpResponse, Recording, read_recording

_RUNNING = "vllm:num_requests_running"


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """Both comparisons of one recording."""

    entry: ManifestEntry
    exact_differences: tuple[str, ...]
    shape_differences: tuple[str, ...]

    @property
    def is_as_claimed(self) -> bool:
        """Whether the manifest's claim holds."""
        return not self.differences

    @property
    def differences(self) -> tuple[str, ...]:
        """Returns the differences that break the manifest's claim."""
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
