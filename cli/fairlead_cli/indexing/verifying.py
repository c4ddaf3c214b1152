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

from fairlead.clock import Clock
from fairlead.errors import Unavailable
from fairlead.limits import Limits
from fairlead_cli.indexing.engines import Replayed, replayed
from fairlead_cli.indexing.picture import Pause, Picture, look
from fairlead_cli.indexing.reaching import away
from fairlead_kvstore import keys
from fairlead_kvstore.errors import KeptError, UnreadableError
from fairlead_kvstore.index.layout import (
    AT,
    DATA,
    HINTS,
    META,
    Header,
    HintsHeader,
    changes_at,
    decode,
    decode_part,
    header_field,
    header_instance,
    is_part,
)
from fairlead_kvstore.index.left import fields
from fairlead_kvstore.index.notes import NOTES
from fairlead_kvstore.redis import RedisLink
from fairlead_kvstore.truth.changes import Change
from fairlead_kvstore.truth.kept import table

_LOOKS: Final = 4
_PAUSE_SECONDS: Final = 0.5
"""Longer than changes wait to be written, so that a slow look is not the same as the one before."""
_ENGINES_AT_ONCE: Final = 4
_ENTRIES_AT_ONCE: Final = 256


class Compared(msgspec.Struct, kw_only=True):
    """One instance. ``how``: ``whole``, ``part`` (of what it holds) or ``not``; ``wrong``: blocks that count as differences."""

    id: str
    how: str
    why: str
    blocks: int = 0
    ghosts: int = 0
    missing: int = 0
    wrong: int = 0


class Verified(msgspec.Struct):
    """``findings``: what does not hold in Redis by itself, where and what."""

    model: str
    findings: dict[str, str]
    instances: list[Compared]
    differences: int = 0


async def verify(
    link: RedisLink,
    picture: Picture,
    secret: bytes,
    clock: Clock,
    limits: Limits,
    instance: str | None = None,
    pause: Pause = asyncio.sleep,
) -> Verified:
    """All of it. ``instance``: ask only engines whose id begins so. Raises NoIndex."""
    if picture.loaded is None:
        return Verified(picture.model_key, {"index": picture.trouble}, [], 1)
    findings = await _itself(link, picture)
    if findings:
        await pause(_PAUSE_SECONDS)
        picture = await look(link, picture.model_key, clock, limits, pause)
        again = await _itself(link, picture)
        findings = {where: what for where, what in again.items() if where in findings}
    drift = await _drift(link, picture, clock, limits, pause)
    if drift:
        findings["stream"] = drift
    compared = await _engines(link, picture, secret, clock, limits, instance, pause)
    wrong = sum(one.wrong for one in compared)
    return Verified(picture.model_key, findings, compared, len(findings) + wrong)


def lines(found: Verified) -> Iterator[str]:
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


async def _itself(link: RedisLink, picture: Picture) -> dict[str, str]:
    """Where → what is wrong there, as far as one look tells."""
    found = dict(picture.unreadable)
    _, idx, _ = keys.index_keys(picture.model_key)
    replies = await link.run([("HKEYS", idx)])
    if replies is None:
        raise away(link)
    there: list[bytes] = list(replies[0]) if isinstance(replies[0], list) else []
    needed = {AT, META, HINTS, NOTES}
    for name, header in picture.headers.items():
        needed.add(header_field(name))
        needed.update(header.parts.values())
        why = await _holds_together(link, idx, header)
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
    values = await fields(link, idx, [HINTS])
    if values is None:
        raise away(link)
    try:
        return () if values[0] is None else decode(values[0], HintsHeader).parts.values()
    except UnreadableError:
        return ()  # told already


async def _holds_together(link: RedisLink, idx: str, header: Header) -> str:
    values = await fields(link, idx, list(header.parts.values()))
    if values is None:
        raise away(link)
    rows: dict[str, bytes] = {}
    try:
        for part, data in zip(header.parts, values, strict=True):
            if data is None:
                return f"part {part} is missing"
            rows[part] = decode_part(data)
        for number, one in enumerate(header.slice.tables):
            table(one, number, rows, len(header.slice.adapters.names), 0)
    except (UnreadableError, KeptError) as error:
        return error.message
    return ""


async def _drift(link: RedisLink, picture: Picture, clock: Clock, limits: Limits, pause: Pause) -> str:
    """Whether what was read, brought up to date by the stream, is what is read a little later."""
    await pause(_PAUSE_SECONDS)
    before, later = picture.loaded, (await look(link, picture.model_key, clock, limits, pause)).loaded
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
        differing += len(set(before.mirror.content(name)) ^ set(later.mirror.content(name)))
    return f"{differing} blocks differ between what was written down and the changes since" if differing else ""


def _changes(data: bytes, picture: Picture, limits: Limits) -> list[Change]:
    if len(data) > limits.index_entry_bytes:
        return []
    try:
        return changes_at(data, picture.model_key, picture.ahead)[1]
    except UnreadableError:
        return []


async def _entries(link: RedisLink, model_key: str, epoch: int, since: int) -> AsyncGenerator[tuple[int, bytes], None]:
    """Entries of an epoch behind a sequence."""
    _, _, ev = keys.index_keys(model_key)
    while True:
        replies = await link.run([("XRANGE", ev, f"{epoch}-{since + 1}", epoch, "COUNT", _ENTRIES_AT_ONCE)])
        if replies is None:
            raise away(link)
        some = replies[0] if isinstance(replies[0], list) else []
        for name, values in some:
            since = int(bytes(name).partition(b"-")[2])
            yield since, bytes(values.get(DATA, b""))
        if len(some) < _ENTRIES_AT_ONCE:
            return


# --- with the engines ---------------------------------------------------------------------------------------------------


async def _engines(
    link: RedisLink,
    picture: Picture,
    secret: bytes,
    clock: Clock,
    limits: Limits,
    instance: str | None,
    pause: Pause,
) -> list[Compared]:
    """Every instance with its engine; what differs is looked at again."""
    found = {
        name: Compared(id=name, how="not", why="") for name in picture.instances if name.startswith(instance or "")
    }
    wrong: dict[str, tuple[set[object], set[object]]] = {}
    asked = list(found)
    for attempt in range(_LOOKS):
        told = await _ask(picture, asked, secret, clock, limits)
        await pause(_PAUSE_SECONDS)
        picture = await look(link, picture.model_key, clock, limits, pause)
        if picture.loaded is None:
            return [Compared(id=name, how="not", why=picture.trouble) for name in found]
        for name in asked:
            found[name] = _compare(picture, name, told[name], wrong)
        asked = [name for name in asked if found[name].ghosts or found[name].missing]
        if not asked or attempt == _LOOKS - 1:
            break
    return list(found.values())


async def _ask(
    picture: Picture, names: list[str], secret: bytes, clock: Clock, limits: Limits
) -> dict[str, Replayed | str]:
    """What each engine replays, or why not."""
    places = asyncio.Semaphore(_ENGINES_AT_ONCE)

    async def one(name: str) -> Replayed | str:
        note = picture.note(name)
        if note is None:
            return "the indexer says nothing of it"
        if note.replay is None:
            return "its engine has no replay endpoint, or is not known yet"
        async with places:
            try:
                return await asyncio.to_thread(replayed, note.replay, name, picture.model_key, secret, clock, limits)
            except Unavailable as error:
                return error.message

    return dict(zip(names, await asyncio.gather(*map(one, names)), strict=True))


def _compare(
    picture: Picture, name: str, told: Replayed | str, wrong: dict[str, tuple[set[object], set[object]]]
) -> Compared:
    """One look. ``wrong`` is what differed in all looks so far, by instance."""
    if isinstance(told, str):
        return Compared(id=name, how="not", why=told)
    believed = set(picture.mirror.content(name))
    ghosts: set[object] = set(believed - told.content) if told.whole else set()
    missing: set[object] = set(told.content - believed)
    if name in wrong:
        ghosts &= wrong[name][0]
        missing &= wrong[name][1]
    wrong[name] = ghosts, missing
    known = picture.mirror.standing(name)
    complete = known is not None and known.complete
    why = "" if told.whole else f"its replay begins at batch {told.first}, what it held before cannot be told"
    if not told.batches:
        why = "it can replay nothing: it has published nothing yet"
    if missing and not complete:
        why = "; ".join(filter(None, (why, "what is missing is not counted: the index does not claim to know all")))
    return Compared(
        id=name,
        how="whole" if told.whole else "part",
        why=why,
        blocks=len(told.content),
        ghosts=len(ghosts),
        missing=len(missing),
        wrong=len(ghosts) + (len(missing) if complete else 0),
    )
