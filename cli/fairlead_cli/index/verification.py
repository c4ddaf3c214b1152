"""``fairlead index verify``: is the index what it should be?

Two comparisons. *With itself*: everything that was written down can be read and holds together, the stream is unbroken up to where
the index says it is, nothing lies there that nobody needs, and what was read first, brought up by the stream, is what is read later.
*With the engines*: what an engine can replay is followed anew (``engines.py``) and held against what gateways see.

Everything is in motion meanwhile: an engine stores a block between two looks, an instance is written down anew. So whatever looks
wrong is looked at again, some times, and only what is wrong in the same way every time is told.

A block that the index has and the engine has not is a *ghost*, always wrong. One that the engine has and the index has not is
*missing*, which is wrong where the index says that it knows all of the instance, and else is only said.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing
from typing import Final

import msgspec

from fairlead.errors import Unavailable
from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead_cli.index.connection import unreachable_error
from fairlead_cli.index.engine_replay import ReplayedContent, replay_engine
from fairlead_cli.index.snapshot import IndexSnapshot, Sleep, take_snapshot
from fairlead_kvstore.blockstore.changes import Change
from fairlead_kvstore.blockstore.snapshot import restore_table
from fairlead_kvstore.errors import SnapshotError, UnreadableError
from fairlead_kvstore.index.format import (
    ENTRY_FIELD,
    HINTS_FIELD,
    META_FIELD,
    POSITION_FIELD,
    HintsHeader,
    InstanceHeader,
    decode_entry_with_time,
    decode_part,
    decode_value,
    header_field,
    header_instance,
    is_part,
)
from fairlead_kvstore.index.instance_status import STATUSES_FIELD
from fairlead_kvstore.index.recovery import read_fields
from fairlead_kvstore.redis import keys
from fairlead_kvstore.redis.link import RedisLink

_MAX_ATTEMPTS: Final = 4
_PAUSE_SECONDS: Final = 0.5
"""Longer than changes wait to be written, so that a slow look is not the same as the one before."""
_MAX_CONCURRENT_ENGINES: Final = 4
_ENTRY_BATCH: Final = 256


class EngineComparison(msgspec.Struct, kw_only=True):
    """One instance. ``how``: ``whole``, ``part`` (of what it holds) or ``not``; ``wrong``: blocks that count as differences."""

    id: str
    how: str
    why: str
    blocks: int = 0
    ghosts: int = 0
    missing: int = 0
    wrong: int = 0


class VerificationReport(msgspec.Struct):
    """``findings``: what does not hold in Redis by itself, where and what."""

    model: str
    findings: dict[str, str]
    instances: list[EngineComparison]
    differences: int = 0


async def verify(
    link: RedisLink,
    picture: IndexSnapshot,
    secret: bytes,
    clock: Clock,
    limits: Limits,
    instance: str | None = None,
    sleep: Sleep = asyncio.sleep,
) -> VerificationReport:
    """All of it. ``instance``: ask only engines whose id begins so. Raises NoIndex."""
    if picture.loaded is None:
        return VerificationReport(picture.model_key, {"index": picture.problem}, [], 1)
    findings = await _check_consistency(link, picture)
    if findings:
        await sleep(_PAUSE_SECONDS)
        picture = await take_snapshot(link, picture.model_key, clock, limits, sleep)
        again = await _check_consistency(link, picture)
        findings = {where: what for where, what in again.items() if where in findings}
    drift = await _check_stream(link, picture, clock, limits, sleep)
    if drift:
        findings["stream"] = drift
    compared = await _compare_engines(link, picture, secret, clock, limits, instance, sleep)
    wrong = sum(one.wrong for one in compared)
    return VerificationReport(picture.model_key, findings, compared, len(findings) + wrong)


def render_lines(found: VerificationReport) -> Iterator[str]:
    """For people."""
    yield f"{found.model}: {'no difference' if not found.differences else f'{found.differences:,} differences'}"
    if not found.findings:
        yield "  √ Redis: all parts can be read and hold together, the stream is unbroken"
    for where, what in sorted(found.findings.items()):
        yield f"  × {where}: {what}"
    for one in found.instances:
        if one.how == "not":
            yield f"  ? {one.id}: not compared with its engine: {one.why}"
            continue
        sign = "×" if one.wrong else "√"
        told = f"{one.blocks:,} blocks compared, {one.ghosts:,} ghosts, {one.missing:,} missing"
        yield f"  {sign} {one.id}: {told}{f' ({one.why})' if one.why else ''}"


# --- Redis with itself --------------------------------------------------------------------------------------------------


async def _check_consistency(link: RedisLink, picture: IndexSnapshot) -> dict[str, str]:
    """Where → what is wrong there, as far as one look tells."""
    found = dict(picture.unreadable)
    _, idx, _ = keys.index_keys(picture.model_key)
    replies = await link.run([("HKEYS", idx)])
    if replies is None:
        raise unreachable_error(link)
    there: list[bytes] = list(replies[0]) if isinstance(replies[0], list) else []
    needed = {POSITION_FIELD, META_FIELD, HINTS_FIELD, STATUSES_FIELD}
    for name, header in picture.headers.items():
        needed.add(header_field(name))
        needed.update(header.parts.values())
        why = await _part_problem(link, idx, header)
        if why:
            found.setdefault(name, why)
    needed.update(await _hint_parts(link, idx))
    parts = [field for field in there if is_part(field) and field not in needed]
    if parts:
        found["parts"] = f"{len(parts)} that belong to nothing"
    for field in there:
        instance = header_instance(field)
        if instance is not None and field not in needed:
            found.setdefault(instance, "what an earlier indexer left of it is still there")
    return found


async def _hint_parts(link: RedisLink, idx: str) -> Iterable[bytes]:
    values = await read_fields(link, idx, [HINTS_FIELD])
    if values is None:
        raise unreachable_error(link)
    try:
        return () if values[0] is None else decode_value(values[0], HintsHeader).parts.values()
    except UnreadableError:
        return ()  # told already


async def _part_problem(link: RedisLink, idx: str, header: InstanceHeader) -> str:
    values = await read_fields(link, idx, list(header.parts.values()))
    if values is None:
        raise unreachable_error(link)
    rows: dict[str, bytes] = {}
    try:
        for part, data in zip(header.parts, values, strict=True):
            if data is None:
                return f"part {part} is missing"
            rows[part] = decode_part(data)
        for number, one in enumerate(header.slice.tables):
            restore_table(one, number, rows, len(header.slice.adapters.names), 0)
    except (UnreadableError, SnapshotError) as error:
        return error.message
    return ""


async def _check_stream(link: RedisLink, picture: IndexSnapshot, clock: Clock, limits: Limits, pause: Sleep) -> str:
    """Whether what was read, brought up to date by the stream, is what is read a little later."""
    await pause(_PAUSE_SECONDS)
    before, later = picture.loaded, (await take_snapshot(link, picture.model_key, clock, limits, pause)).loaded
    if before is None or later is None or before.epoch != later.epoch or before.unreadable or later.unreadable:
        return ""
    sequence = before.sequence
    async with aclosing(_entries(link, picture.model_key, before.epoch, sequence)) as entries:
        async for number, data in entries:
            if number > later.sequence:
                break
            if number != sequence + 1:
                return f"after {before.epoch}-{sequence} comes {before.epoch}-{number}"
            before.mirror.apply(_changes(data, picture, limits))
            sequence = number
    if sequence != later.sequence:
        return f"it ends at {before.epoch}-{sequence}, the index is at {before.epoch}-{later.sequence}"
    differing = 0
    for name in {*before.mirror.instances(), *later.mirror.instances()}:
        differing += len(set(before.mirror.blocks_of(name)) ^ set(later.mirror.blocks_of(name)))
    return f"{differing} blocks differ between what was written down and the changes since" if differing else ""


def _changes(data: bytes, picture: IndexSnapshot, limits: Limits) -> list[Change]:
    if len(data) > limits.index_entry_bytes:
        return []
    try:
        return decode_entry_with_time(data, picture.model_key, picture.ahead)[1]
    except UnreadableError:
        return []


async def _entries(link: RedisLink, model_key: str, epoch: int, since: int) -> AsyncGenerator[tuple[int, bytes], None]:
    """Entries of an epoch behind a sequence."""
    _, _, ev = keys.index_keys(model_key)
    while True:
        replies = await link.run([("XRANGE", ev, f"{epoch}-{since + 1}", epoch, "COUNT", _ENTRY_BATCH)])
        if replies is None:
            raise unreachable_error(link)
        some = replies[0] if isinstance(replies[0], list) else []
        for name, values in some:
            since = int(bytes(name).partition(b"-")[2])
            yield since, bytes(values.get(ENTRY_FIELD, b""))
        if len(some) < _ENTRY_BATCH:
            return


# --- with the engines ---------------------------------------------------------------------------------------------------


async def _compare_engines(
    link: RedisLink,
    picture: IndexSnapshot,
    secret: bytes,
    clock: Clock,
    limits: Limits,
    instance: str | None,
    pause: Sleep,
) -> list[EngineComparison]:
    """Every instance with its engine; what differs is looked at again."""
    found = {
        name: EngineComparison(id=name, how="not", why="")
        for name in picture.instances
        if name.startswith(instance or "")
    }
    wrong: dict[str, tuple[set[object], set[object]]] = {}
    asked = list(found)
    for attempt in range(_MAX_ATTEMPTS):
        told = await _replay_engines(picture, asked, secret, clock, limits)
        await pause(_PAUSE_SECONDS)
        picture = await take_snapshot(link, picture.model_key, clock, limits, pause)
        if picture.loaded is None:
            return [EngineComparison(id=name, how="not", why=picture.problem) for name in found]
        for name in asked:
            found[name] = _compare(picture, name, told[name], wrong)
        asked = [name for name in asked if found[name].ghosts or found[name].missing]
        if not asked or attempt == _MAX_ATTEMPTS - 1:
            break
    return list(found.values())


async def _replay_engines(
    picture: IndexSnapshot, names: list[str], secret: bytes, clock: Clock, limits: Limits
) -> dict[str, ReplayedContent | str]:
    """What each engine replays, or why not."""
    places = asyncio.Semaphore(_MAX_CONCURRENT_ENGINES)

    async def one(name: str) -> ReplayedContent | str:
        note = picture.note(name)
        if note is None:
            return "the indexer says nothing of it"
        if note.replay is None:
            return "its engine has no replay endpoint, or is not known yet"
        async with places:
            try:
                return await asyncio.to_thread(
                    replay_engine, note.replay, name, picture.model_key, secret, clock, limits
                )
            except Unavailable as error:
                return error.message

    return dict(zip(names, await asyncio.gather(*map(one, names)), strict=True))


def _compare(
    picture: IndexSnapshot, name: str, told: ReplayedContent | str, wrong: dict[str, tuple[set[object], set[object]]]
) -> EngineComparison:
    """One look. ``wrong`` is what differed in all looks so far, by instance."""
    if isinstance(told, str):
        return EngineComparison(id=name, how="not", why=told)
    believed = set(picture.mirror.blocks_of(name))
    ghosts: set[object] = set(believed - told.content) if told.whole else set()
    missing: set[object] = set(told.content - believed)
    if name in wrong:
        ghosts &= wrong[name][0]
        missing &= wrong[name][1]
    wrong[name] = ghosts, missing
    known = picture.mirror.completeness(name)
    complete = known is not None and known.complete
    why = "" if told.whole else f"its replay begins at batch {told.first}, what it held before cannot be told"
    if not told.batches:
        why = "it can replay nothing: it has published nothing yet"
    if missing and not complete:
        why = "; ".join(filter(None, (why, "what is missing is not counted: the index does not claim to know all")))
    return EngineComparison(
        id=name,
        how="whole" if told.whole else "part",
        why=why,
        blocks=len(told.content),
        ghosts=len(ghosts),
        missing=len(missing),
        wrong=len(ghosts) + (len(missing) if complete else 0),
    )
