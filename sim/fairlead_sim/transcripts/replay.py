"""Replays the recordings of one engine configuration in the manifest's order and says how each compares.

A few recordings need company: some are held open while others are replayed (a request to a sleeping engine, three long
ones whose load is read), and some come after a client that left in the middle.
"""

import asyncio
import json
from collections.abc import Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from fairlead_sim.transcripts import compare
from fairlead_sim.transcripts.exchange import connected, exchange, load, metric_until, post, until
from fairlead_sim.transcripts.launch import Engine, launched
from fairlead_sim.transcripts.manifest import EXACT, EXCLUDED, Entry, Manifest
from fairlead_sim.transcripts.recording import Recording, Response, read

_RUNNING = "vllm:num_requests_running"


@dataclass(frozen=True, slots=True)
class Result:
    """How one recording compared, in both ways, whatever the manifest asks for."""

    entry: Entry
    exact_differences: tuple[str, ...]
    shape_differences: tuple[str, ...]

    @property
    def is_kept(self) -> bool:
        """Whether the manifest's claim holds."""
        return not self.differences

    @property
    def differences(self) -> tuple[str, ...]:
        """What speaks against the manifest's claim."""
        return self.exact_differences if self.entry.match == EXACT else self.shape_differences

    @property
    def found(self) -> str:
        """The closest likeness that was found: ``exact``, ``shape`` or ``differs``."""
        if not self.exact_differences:
            return "exact"
        return "differs" if self.shape_differences else "shape"


@dataclass(frozen=True, slots=True)
class _Held:
    """A recording whose requests are open; each task ends with an answer."""

    entry: Entry
    recording: Recording
    answers: tuple["asyncio.Task[Response]", ...]


async def replay_all(manifest: Manifest, folder: Path) -> list[Result]:
    """Replay every recording that is not excluded, each configuration on an engine of its own."""
    results: dict[str, Result] = {}
    for name, switches in manifest.engines.items():
        entries = manifest.of(name)
        if not entries:
            continue
        async with launched(switches) as engine:
            for result in await replay(entries, folder, engine):
                results[result.entry.name] = result
    return [results[entry.name] for entry in manifest.entries if entry.match != EXCLUDED]


async def replay(entries: Iterable[Entry], folder: Path, engine: Engine) -> list[Result]:
    """Replay recordings against a running engine, in order."""
    results: list[Result] = []
    held: list[_Held] = []
    async with AsyncExitStack() as stack:
        for entry in entries:
            recording = read(folder / f"{entry.name}.txt")
            if entry.hold:
                held.append(await _hold(entry, recording, engine, stack))
                continue
            if entry.abandon:
                await _abandon(entry.abandon, engine)
            due = [item for item in held if item.entry.until == entry.name]
            early = {item.entry.name: any(answer.done() for answer in item.answers) for item in due}
            for _ in range(entry.times - 1):
                await _answer(recording, engine)
            results.append(_compared(entry, recording, await _answer(recording, engine)))
            for item in due:
                results.append(await _settled(item, early[item.entry.name]))
                held.remove(item)
    return results


def compared(entry: Entry, recorded: Response, live: Response) -> Result:
    """Both comparisons of one answer."""
    return Result(entry, tuple(compare.exact(recorded, live)), tuple(compare.shape(recorded, live)))


def _compared(entry: Entry, recording: Recording, live: Response | str) -> Result:
    if isinstance(live, str):
        return Result(entry, (live,), (live,))
    if recording.response is None:
        told = (f"answered {live.status}, the recorded engine did not answer",)
        return Result(entry, told, told)
    return compared(entry, recording.response, _as_recorded(recording, live))


async def _answer(recording: Recording, engine: Engine) -> Response | str:
    """The live answer, or a sentence saying why there is none."""
    try:
        return await exchange(engine.authority, recording.request)
    except (OSError, EOFError, TimeoutError) as error:
        return f"no answer: {error!r}"


def _as_recorded(recording: Recording, live: Response) -> Response:
    """The recorder blanked one file path in an answer; the live answer's is blanked alike."""
    if recording.response is None or b"<path>" not in recording.response.body:
        return live
    path = json.loads(recording.request.body)["lora_path"]
    return replace(live, body=live.body.replace(path.encode(), b"<path>"))


async def _hold(entry: Entry, recording: Recording, engine: Engine, stack: AsyncExitStack) -> _Held:
    """Send a request several times and wait until the engine has them all."""
    before = await load(engine.authority)
    answers: list[asyncio.Task[Response]] = []
    for _ in range(entry.hold):
        connection = await stack.enter_async_context(connected(engine.authority))
        await connection.send(recording.request.wire(engine.authority))
        answers.append(asyncio.create_task(connection.answer()))
    await until(lambda: load(engine.authority), lambda inside: inside >= before + entry.hold, "/load")
    return _Held(entry, recording, tuple(answers))


async def _settled(item: _Held, answered_early: bool) -> Result:
    """Wait for held answers. A recording without an answer is matched when the engine was silent until released."""
    lives = await asyncio.gather(*item.answers)
    if item.recording.response is None:
        told = ("answered before it was released",) if answered_early else ()
        return Result(item.entry, told, told)
    return _compared(item.entry, item.recording, lives[0])


async def _abandon(kind: str, engine: Engine) -> None:
    """Leave a request in the middle, and wait until the engine noticed."""
    document = {"prompt": "Once upon a time", "max_tokens": 1900, "ignore_eos": True, "stream": kind == "stream"}
    async with connected(engine.authority) as connection:
        await connection.send(post("/v1/completions", document).wire(engine.authority))
        await metric_until(engine.authority, lambda running: running == 1, _RUNNING)
    await metric_until(engine.authority, lambda running: running == 0, _RUNNING)
