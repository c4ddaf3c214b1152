"""``fairlead index match``: who holds a prompt's prefix, how many tokens of it, in which tier, and how old that is.

Hashes are computed here as everybody computes them (``truth/identity.py``), once for each size of blocks that the model's engines
have. ``tier`` is the slowest that is needed to reach so far, ``age_seconds`` how long ago the last of these blocks was stored or used
there, to sixteen seconds. Of what only a shared store may have it is the age of the oldest hint that is needed: the store tells
nobody what it throws out, so old ones are likely gone.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from fairlead.limits import Limits
from fairlead_cli.errors import UnusableIndex
from fairlead_cli.index.connection import unreachable_error
from fairlead_cli.index.snapshot import IndexSnapshot
from fairlead_kvstore.blockstore.block_hash import block_extras, block_hashes, chain_root
from fairlead_kvstore.blockstore.block_table import time_of
from fairlead_kvstore.blockstore.changes import BlocksStored
from fairlead_kvstore.blockstore.snapshot import decode_replica_part, decode_ticks
from fairlead_kvstore.blockstore.storage_tiers import StorageTier
from fairlead_kvstore.errors import SnapshotError, UnreadableError
from fairlead_kvstore.index.format import ENTRY_FIELD, InstanceHeader, decode_entry_with_time, decode_part
from fairlead_kvstore.index.instance_status import secret_fingerprint
from fairlead_kvstore.index.recovery import read_fields
from fairlead_kvstore.redis import keys
from fairlead_kvstore.redis.link import RedisLink

_ENTRY_BATCH: Final = 256
_PART_BATCH: Final = 16


class InstanceMatch(msgspec.Struct):
    """One instance of the answer, as outside tools read it."""

    id: str
    url: str | None
    matched_tokens: int
    tier: str | None
    age_seconds: float | None
    complete: bool


class MatchResult(msgspec.Struct):
    """The whole answer. Instances come in the order of what they hold, those that hold nothing last."""

    model: str
    tokens: int
    instances: list[InstanceMatch]


class TokenPrompt(msgspec.Struct, frozen=True):
    """What is looked for."""

    tokens: Sequence[int]
    adapter: str | None = None
    salt: str | None = None

    def hashes(self, model_key: str, block_size: int, secret: bytes) -> list[int]:
        """Its chain of blocks of so many tokens. Raises BadInput for a token id that is none."""
        start = chain_root(model_key, self.adapter, secret=secret)
        count = len(self.tokens) // block_size
        extras = None if self.salt is None else block_extras(count, block_size, salt=self.salt)
        return block_hashes(start, self.tokens, block_size, extras)


def check_secret(picture: IndexSnapshot, secret: bytes) -> None:
    """Raises BadIndex when the index is of another secret: nothing would match, and nobody could tell why."""
    if picture.notes is not None and picture.notes.mark != secret_fingerprint(secret):
        text = f"the index of {picture.model_key} was made under another secret than FAIRLEAD_HASH_SECRET is here"
        raise UnusableIndex(text, hint="set it to what gateways and the indexer have; unset is a secret, too")


def match_prompt(picture: IndexSnapshot, prompt: TokenPrompt, secret: bytes) -> tuple[MatchResult, dict[str, int]]:
    """Who holds how much, still without ages; and the last matched block of each, where it has one of its own."""
    mirror, chains = picture.mirror, dict[int, list[int]]()
    last: dict[str, int] = {}
    answer = MatchResult(picture.model_key, len(prompt.tokens), [])
    for name in picture.instances:
        size = picture.block_size(name)
        if size is not None and size not in chains:
            chains[size] = prompt.hashes(picture.model_key, size, secret)
    depths = {size: {one.instance: one.blocks for one in mirror.match(chain)} for size, chain in chains.items()}
    for name in picture.instances:
        size, known, note = picture.block_size(name), mirror.completeness(name), picture.note(name)
        blocks = depths[size].get(name, (0, 0, 0, 0)) if size else (0, 0, 0, 0)
        reached = blocks[-1]
        tier = StorageTier(blocks.index(reached)) if reached else None
        if size and tier is not None and tier is not StorageTier.REMOTE:
            last[name] = chains[size][reached - 1]
        complete = known is not None and known.complete
        told = None if tier is None else tier.name.lower()
        url = note.url if note is not None else None
        age = None
        if size and tier is StorageTier.REMOTE:
            needed = chains[size][blocks[StorageTier.DISK] : reached]
            known_ages = [mirror.hint_age_seconds(own, picture.now) for own in needed]
            age = max((one for one in known_ages if one is not None), default=None)
        answer.instances.append(InstanceMatch(name, url, reached * (size or 0), told, age, complete))
    answer.instances.sort(key=lambda one: (-one.matched_tokens, one.id))
    return answer, last


async def read_ages(
    link: RedisLink, picture: IndexSnapshot, last: Mapping[str, int], limits: Limits
) -> dict[str, float]:
    """How long ago each of these blocks was stored or used, where Redis knows. Raises NoIndex."""
    found: dict[str, float] = {}
    some = sorted(last)
    for start in range(0, len(some), _PART_BATCH):
        names = some[start : start + _PART_BATCH]
        times = await asyncio.gather(*(_written_time(link, picture, one, last[one]) for one in names))
        found.update({name: then for name, then in zip(names, times, strict=True) if then is not None})
    await _add_streamed_times(link, picture, last, found, limits)
    return {name: max(0.0, picture.wall - then) for name, then in found.items()}


async def _written_time(link: RedisLink, picture: IndexSnapshot, instance: str, own: int) -> float | None:
    """When the block was last used by what was written down of the instance, Unix seconds."""
    header = picture.headers.get(instance)
    if header is None:
        return None
    _, idx, _ = keys.index_keys(picture.model_key)
    mine = sorted(part for part in header.parts if part.startswith("0.m"))
    values = await read_fields(link, idx, [header.parts[part] for part in mine])
    if values is None:
        raise unreachable_error(link)
    for part, data in zip(mine, values, strict=True):
        row = _find_row(data, own)
        other = header.parts.get(part.replace("m", "h"))
        if row is not None and other is not None:
            return await _read_time(link, idx, other, row, header)
    return None


def _find_row(data: Any, own: int) -> int | None:
    """Where the block is in a part that may be gone or damaged."""
    if data is None:
        return None
    try:
        owns, counts = decode_replica_part(decode_part(data))
    except (UnreadableError, SnapshotError):
        return None
    rows = [row for row, there in enumerate(owns) if there == own and counts[row]]
    return rows[0] if rows else None


async def _read_time(link: RedisLink, idx: str, field: bytes, row: int, header: InstanceHeader) -> float | None:
    values = await read_fields(link, idx, [field])
    if values is None:
        raise unreachable_error(link)
    if values[0] is None:
        return None
    try:
        return time_of(decode_ticks(decode_part(values[0]))[row]) + header.slice.wall
    except (UnreadableError, SnapshotError, IndexError):
        return None


async def _add_streamed_times(
    link: RedisLink, picture: IndexSnapshot, last: Mapping[str, int], found: dict[str, float], limits: Limits
) -> None:
    """Stores of these blocks since the instances were written down."""
    if picture.at is None or not last:
        return
    _, _, ev = keys.index_keys(picture.model_key)
    since = min((one.sequence for one in picture.headers.values()), default=0)
    epoch, upto = picture.at
    while True:
        replies = await link.run([("XRANGE", ev, f"{epoch}-{since + 1}", "+", "COUNT", _ENTRY_BATCH)])
        if replies is None:
            raise unreachable_error(link)
        entries = replies[0] if isinstance(replies[0], list) else []
        for name, values in entries:
            since = int(bytes(name).partition(b"-")[2])
            _add_entry_times(
                values.get(ENTRY_FIELD) if isinstance(values, dict) else None, picture, last, found, limits
            )
        if len(entries) < _ENTRY_BATCH or since >= upto:
            return


def _add_entry_times(
    data: Any, picture: IndexSnapshot, last: Mapping[str, int], found: dict[str, float], limits: Limits
) -> None:
    if not isinstance(data, bytes) or len(data) > limits.index_entry_bytes:
        return
    try:
        wall, changes = decode_entry_with_time(data, picture.model_key, picture.ahead)
    except UnreadableError:
        return
    for one in changes:
        if isinstance(one, BlocksStored) and last.get(one.instance) in one.hashes:
            found[one.instance] = wall


def to_json(answer: MatchResult, found: Mapping[str, float]) -> bytes:
    """As it is printed."""
    for one in answer.instances:
        age = found.get(one.id, one.age_seconds)
        one.age_seconds = None if age is None else round(age, 1)
    return msgspec.json.format(msgspec.json.encode(answer), indent=2)


def incomplete(instances: Iterable[InstanceMatch]) -> list[str]:
    """Those of which not all is known."""
    return [one.id for one in instances if not one.complete]
