"""``fairlead index verify``: compares the index with itself and with the engines.

With itself: all written parts are readable and consistent, and the stream is unbroken up to the
index's position. Nothing unneeded is left, and an older snapshot plus the stream equals a newer
one.

With the engines: an engine's replay (``engine_replay``) is compared with the index.

The index and the engines change meanwhile, so a difference is checked again several times. Only
those that persist are reported.

A block that only the index has is a *ghost*, always a difference. A block that only the engine has
is *missing*: a difference only when the index claims to know all of the instance.

An engine keeps its last thousands of batches. When they reach back to its start the comparison is
*whole*: absent blocks are known. Otherwise the comparison is a *part*: blocks that the batches
stored and did not remove must be in the index. All other blocks are unknown.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Final

import msgspec

from fairlead.errors import BadInput, Unavailable
from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead_cli.index.connection import run_commands
from fairlead_cli.index.snapshot import IndexSnapshot, take_snapshot
from fairlead_kvstore.blockstore.storage_tiers import StorageTier
from fairlead_kvstore.blockstore.store import BlockStore
from fairlead_kvstore.errors import EventsError, ProtocolError, UnreadableError
from fairlead_kvstore.events.stream_sequencer import EventSequencer, parse_replay_frame, replay_request
from fairlead_kvstore.events.types import EventFrame
from fairlead_kvstore.events.zmtp import message
from fairlead_kvstore.index import redis_keys
from fairlead_kvstore.index.format import (
    META_FIELD,
    POSITION_FIELD,
    STATUSES_FIELD,
    header_field,
    header_instance,
    is_part,
)
from fairlead_kvstore.reader.event_application import apply_outcomes
from fairlead_kvstore.reader.zmtp_connection import open_connection, socket_address
from fairlead_kvstore.redis.link import RedisLink

INDEX_ENGINE_SECONDS: Final = 30.0
"""Limit: `fairlead index verify` waits this long for all that one engine can replay."""
INDEX_ENGINE_BYTES: Final = 1024 * 1024 * 1024
"""Limit: bytes of one engine's replay that `fairlead index verify` reads."""

Content = frozenset[tuple[int, StorageTier]]
_READ_BYTES: Final = 65_536

_MAX_ATTEMPTS: Final = 4
_PAUSE_SECONDS: Final = 0.5
"""Longer than changes wait to be written, so that two snapshots differ."""
_MAX_CONCURRENT_ENGINES: Final = 4


class ReplayedContent(msgspec.Struct, frozen=True):
    """Blocks by an engine's replay. ``whole``: ``content`` has all blocks since the engine's start,
    else only those from batch ``first`` on.
    """

    content: Content
    whole: bool
    first: int | None
    batches: int


async def replay_engine(
    endpoint: str, instance: str, model_key: str, secret: bytes, clock: Clock, limits: Limits
) -> ReplayedContent:
    """Requests a replay and returns the blocks by it. Raises Unavailable."""
    truth, stream = BlockStore(secret=secret, limits=limits), EventSequencer(replayable=True, limits=limits)
    truth.attach(instance, model_key, clock.now())
    outcomes, first, batches = stream.on_connected(), None, 0
    try:
        async with asyncio.timeout(INDEX_ENGINE_SECONDS):
            async for frame in _replayed_frames(endpoint, limits):
                outcomes += stream.on_replayed_frame(frame)
                apply_outcomes(truth, instance, outcomes, clock.now(), limits)
                outcomes = []
                if frame is not None:
                    first, batches = frame.number if first is None else first, batches + 1
    except TimeoutError:
        raise Unavailable(f"{endpoint} did not send its replay in time") from None
    except (OSError, BadInput, ProtocolError, UnicodeError) as error:
        raise Unavailable(f"{endpoint} cannot be queried: {error}") from None
    except EventsError as error:
        raise Unavailable(f"{endpoint} sent an unexpected reply: {error.message}") from None
    is_complete, _, _ = truth.instance(instance).completeness.mark
    return ReplayedContent(frozenset(truth.content(instance)), is_complete, first, batches)


async def _replayed_frames(endpoint: str, limits: Limits) -> AsyncIterator[EventFrame | None]:
    """Yields the batches of an engine's replay, and None at its end. Raises OSError, ProtocolError,
    EventsError, and Unavailable when the engine sends too much.
    """
    connection, stream = await open_connection(socket_address(endpoint), "DEALER", limits)
    loop, received = asyncio.get_running_loop(), 0
    stream.outgoing += message(replay_request(0))
    with connection:
        while received <= INDEX_ENGINE_BYTES:
            while (parts := stream.next_message()) is not None:
                if parts:
                    yield (frame := parse_replay_frame(parts))
                    if frame is None:
                        return
            await loop.sock_sendall(connection, bytes(stream.outgoing))
            stream.outgoing.clear()
            await asyncio.sleep(0)  # the next call returns at once if there are bytes
            data = await loop.sock_recv(connection, _READ_BYTES)
            if not data:
                raise ConnectionResetError("the engine closed the connection")
            received += len(data)
            stream.feed(data)
    raise Unavailable(f"{endpoint} does not end its replay ({received} bytes)")


class EngineComparison(msgspec.Struct, kw_only=True):
    """The comparison of one instance with its engine. ``how``: ``whole``, ``part`` or ``not``
    compared. ``wrong``: number of blocks that count as differences.
    """

    id: str
    how: str
    why: str
    blocks: int = 0
    ghosts: int = 0
    missing: int = 0
    wrong: int = 0


class VerificationReport(msgspec.Struct):
    """The whole result. ``findings``: what is inconsistent in Redis itself."""

    model: str
    findings: dict[str, str]
    instances: list[EngineComparison]
    differences: int = 0


async def verify(
    link: RedisLink,
    snapshot: IndexSnapshot,
    secret: bytes,
    clock: Clock,
    limits: Limits,
    instance: str | None = None,
) -> VerificationReport:
    """Compares the index with itself and with the engines; returns the differences that persist.

    Raises IndexUnreachable.

    instance: compare only instances whose id begins with it.
    """
    if snapshot.loaded is None:
        return VerificationReport(snapshot.model_key, {"index": snapshot.problem}, [], 1)
    findings = await _check_consistency(link, snapshot)
    if findings:
        await asyncio.sleep(_PAUSE_SECONDS)
        snapshot = await take_snapshot(link, snapshot.model_key, clock)
        again = await _check_consistency(link, snapshot)
        findings = {where: finding for where, finding in again.items() if where in findings}
    drift = await _check_stream(link, snapshot, clock)
    if drift:
        findings["stream"] = drift
    compared = await _compare_engines(link, snapshot, secret, clock, limits, instance)
    wrong = sum(one.wrong for one in compared)
    return VerificationReport(snapshot.model_key, findings, compared, len(findings) + wrong)


def render_lines(report: VerificationReport) -> Iterator[str]:
    """Yields the result as text."""
    yield f"{report.model}: {'no difference' if not report.differences else f'{report.differences:,} differences'}"
    if not report.findings:
        yield "  √ Redis: all parts can be read and hold together, the stream is unbroken"
    for where, finding in sorted(report.findings.items()):
        yield f"  × {where}: {finding}"
    for comparison in report.instances:
        if comparison.how == "not":
            yield f"  ? {comparison.id}: not compared with its engine: {comparison.why}"
            continue
        sign = "×" if comparison.wrong else "√"
        counts = f"{comparison.blocks:,} blocks compared, {comparison.ghosts:,} ghosts, {comparison.missing:,} missing"
        yield f"  {sign} {comparison.id}: {counts}{f' ({comparison.why})' if comparison.why else ''}"


# --- Redis with itself --------------------------------------------------------------------------------------------------


async def _check_consistency(link: RedisLink, snapshot: IndexSnapshot) -> dict[str, str]:
    """Returns where the index in Redis, as read now, does not fit the headers of a snapshot.

    By instance or field; `parts` for parts that no header names.
    """
    findings = dict(snapshot.content.unreadable)
    _, idx, _ = redis_keys.index_keys(snapshot.model_key)
    (names,) = await run_commands(link, ("HKEYS", idx))
    present: list[bytes] = list(names) if isinstance(names, list) else []
    needed = {POSITION_FIELD, META_FIELD, STATUSES_FIELD}
    for name, header in snapshot.content.headers.items():
        needed.add(header_field(name))
        needed.update(header.parts.values())
    parts = [field for field in present if is_part(field) and field not in needed]
    if parts:
        findings["parts"] = f"{len(parts)} that belong to nothing"
    for field in present:
        instance = header_instance(field)
        if instance is not None and field not in needed:
            findings.setdefault(instance, "what an earlier indexer left of it is still there")
    return findings


async def _check_stream(link: RedisLink, snapshot: IndexSnapshot, clock: Clock) -> str:
    """Returns how an older snapshot plus the stream differs from a newer one.

    Empty when they are equal, and when they cannot be compared.
    """
    await asyncio.sleep(_PAUSE_SECONDS)
    before, later = snapshot.loaded, (await take_snapshot(link, snapshot.model_key, clock)).loaded
    if before is None or later is None or before.epoch != later.epoch or before.unreadable or later.unreadable:
        return ""
    try:
        await before.follow(link, snapshot.model_key, later.sequence, snapshot.ahead, end=later.sequence)
    except UnreadableError as error:
        return error.message
    differing = 0
    for name in {*before.instances(), *later.instances()}:
        differing += len(set(before.blocks_of(name)) ^ set(later.blocks_of(name)))
    return f"{differing} blocks differ between what was written down and the changes since" if differing else ""


# --- with the engines ---------------------------------------------------------------------------------------------------


async def _compare_engines(
    link: RedisLink,
    snapshot: IndexSnapshot,
    secret: bytes,
    clock: Clock,
    limits: Limits,
    instance: str | None,
) -> list[EngineComparison]:
    """Compares instances with their engines; repeats for those that differ. Returns all results."""
    comparisons = {
        name: EngineComparison(id=name, how="not", why="")
        for name in snapshot.instances
        if name.startswith(instance or "")
    }
    differences: dict[str, tuple[set[object], set[object]]] = {}
    names = list(comparisons)
    for attempt in range(_MAX_ATTEMPTS):
        replays = await _replay_engines(snapshot, names, secret, clock, limits)
        await asyncio.sleep(_PAUSE_SECONDS)
        snapshot = await take_snapshot(link, snapshot.model_key, clock)
        if snapshot.loaded is None:
            return [EngineComparison(id=name, how="not", why=snapshot.problem) for name in comparisons]
        for name in names:
            comparisons[name] = _compare(snapshot, name, replays[name], differences)
        names = [name for name in names if comparisons[name].ghosts or comparisons[name].missing]
        if not names or attempt == _MAX_ATTEMPTS - 1:
            break
    return list(comparisons.values())


async def _replay_engines(
    snapshot: IndexSnapshot, names: list[str], secret: bytes, clock: Clock, limits: Limits
) -> dict[str, ReplayedContent | str]:
    """Returns each engine's replay, or why there is none."""
    limit = asyncio.Semaphore(_MAX_CONCURRENT_ENGINES)

    async def replay_one(name: str) -> ReplayedContent | str:
        note = snapshot.note(name)
        if note is None:
            return "the indexer reports nothing about it"
        if note.replay is None:
            return "its engine has no replay endpoint, or is not known yet"
        async with limit:
            try:
                return await replay_engine(note.replay, name, snapshot.model_key, secret, clock, limits)
            except Unavailable as error:
                return error.message

    return dict(zip(names, await asyncio.gather(*map(replay_one, names)), strict=True))


def _compare(
    snapshot: IndexSnapshot,
    name: str,
    replay: ReplayedContent | str,
    differences: dict[str, tuple[set[object], set[object]]],
) -> EngineComparison:
    """Compares an instance's index once with its engine's replay.

    differences: by instance, the ghosts and the missing blocks that every comparison so far found;
    updated.
    """
    if isinstance(replay, str):
        return EngineComparison(id=name, how="not", why=replay)
    indexed = set(snapshot.index.blocks_of(name))
    ghosts: set[object] = set(indexed - replay.content) if replay.whole else set()
    missing: set[object] = set(replay.content - indexed)
    if name in differences:
        ghosts &= differences[name][0]
        missing &= differences[name][1]
    differences[name] = ghosts, missing
    known = snapshot.index.completeness(name)
    complete = known is not None and known[0]
    remark = "" if replay.whole else f"its replay begins at batch {replay.first}, what it cached before is unknown"
    if not replay.batches:
        remark = "it can replay nothing: it has published nothing yet"
    if missing and not complete:
        remark = "; ".join(
            filter(None, (remark, "what is missing is not counted: the index does not claim to know all"))
        )
    return EngineComparison(
        id=name,
        how="whole" if replay.whole else "part",
        why=remark,
        blocks=len(replay.content),
        ghosts=len(ghosts),
        missing=len(missing),
        wrong=len(ghosts) + (len(missing) if complete else 0),
    )
