"""``fairlead index match``: which instances have a prompt's prefix cached, how much of it, in which
tier and how old.

Hashes are computed once for each block size of the model's engines. ``tier`` is the slowest tier
that has a block of the match. ``age_seconds`` is the time since the last of these blocks was
stored or used, to sixteen seconds. For blocks of a shared store it is the age of the oldest needed
hint: the store reports no evictions, so old hints are likely gone.
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from typing import Any, Final

import msgspec

from fairlead.units import format_duration
from fairlead_cli.exit_codes import UnusableIndex
from fairlead_cli.formatting import UNKNOWN, align_columns
from fairlead_cli.index.connection import decode_changes, read_entries, read_values
from fairlead_cli.index.snapshot import IndexSnapshot
from fairlead_kvstore.blockstore.block_hash import block_extras, block_hashes, chain_root
from fairlead_kvstore.blockstore.block_table import time_of
from fairlead_kvstore.blockstore.changes import BlocksStored
from fairlead_kvstore.blockstore.snapshot import decode_replica_part, decode_ticks
from fairlead_kvstore.blockstore.storage_tiers import StorageTier
from fairlead_kvstore.errors import SnapshotError, UnreadableError
from fairlead_kvstore.index import redis_keys
from fairlead_kvstore.index.format import InstanceHeader, decode_part
from fairlead_kvstore.index.instance_status import secret_fingerprint
from fairlead_kvstore.redis.link import RedisLink

_PART_BATCH: Final = 16


class InstanceMatch(msgspec.Struct):
    """The match at one instance, as tools read it in JSON. ``age_seconds``: None is unknown."""

    id: str
    url: str | None
    matched_tokens: int
    tier: str | None
    age_seconds: float | None
    complete: bool


class MatchResult(msgspec.Struct):
    """The matches of a prompt. The instance with the most matched tokens comes first."""

    model: str
    tokens: int
    instances: list[InstanceMatch]

    def set_ages(self, age_by_instance: Mapping[str, float]) -> None:
        """Sets the age (seconds) of each instance in ``age_by_instance``; others keep theirs."""
        for match in self.instances:
            age = age_by_instance.get(match.id, match.age_seconds)
            match.age_seconds = None if age is None else round(age, 1)


class TokenPrompt(msgspec.Struct, frozen=True):
    """A prompt as token ids, with the LoRA adapter and the ``cache_salt`` of its request."""

    tokens: Sequence[int]
    adapter: str | None = None
    salt: str | None = None

    def hashes(self, model_key: str, block_size: int, secret: bytes) -> list[int]:
        """Returns the prompt's chain of block hashes. Raises BadInput for an invalid token id."""
        start = chain_root(model_key, self.adapter, secret=secret)
        count = len(self.tokens) // block_size
        extras = None if self.salt is None else block_extras(count, block_size, salt=self.salt)
        return block_hashes(start, self.tokens, block_size, extras)


def check_secret(snapshot: IndexSnapshot, secret: bytes) -> None:
    """Raises UnusableIndex when the index was made with another secret.

    Why: nothing would match, with no visible reason.
    """
    if snapshot.notes is not None and snapshot.notes.mark != secret_fingerprint(secret):
        text = f"the index of {snapshot.model_key} was made with another secret than FAIRLEAD_HASH_SECRET has here"
        raise UnusableIndex(text, hint="set it to the value that gateways and the indexer have; unset is a value, too")


def match_prompt(snapshot: IndexSnapshot, prompt: TokenPrompt, secret: bytes) -> tuple[MatchResult, dict[str, int]]:
    """Returns the matches, and the hash of the last matched block by instance.

    Only matches that need a shared store have ages yet, and only the others have a last block.
    """
    mirror, chains = snapshot.mirror, dict[int, list[int]]()
    last: dict[str, int] = {}
    answer = MatchResult(snapshot.model_key, len(prompt.tokens), [])
    for name in snapshot.instances:
        size = snapshot.block_size(name)
        if size is not None and size not in chains:
            chains[size] = prompt.hashes(snapshot.model_key, size, secret)
    depths = {size: {match.instance: match.blocks for match in mirror.match(chain)} for size, chain in chains.items()}
    for name in snapshot.instances:
        size, known, note = snapshot.block_size(name), mirror.completeness(name), snapshot.note(name)
        blocks = depths[size].get(name, (0, 0, 0, 0)) if size else (0, 0, 0, 0)
        reached = blocks[-1]
        tier = StorageTier(blocks.index(reached)) if reached else None
        if size and tier is not None and tier is not StorageTier.REMOTE:
            last[name] = chains[size][reached - 1]
        complete = known is not None and known.complete
        tier_name = None if tier is None else tier.name.lower()
        url = note.url if note is not None else None
        age = None
        if size and tier is StorageTier.REMOTE:
            hint_hashes = chains[size][blocks[StorageTier.DISK] : reached]
            known_ages = [mirror.hint_age_seconds(own, snapshot.now) for own in hint_hashes]
            age = max((match for match in known_ages if match is not None), default=None)
        answer.instances.append(InstanceMatch(name, url, reached * (size or 0), tier_name, age, complete))
    answer.instances.sort(key=lambda match: (-match.matched_tokens, match.id))
    return answer, last


async def read_ages(link: RedisLink, snapshot: IndexSnapshot, last_blocks: Mapping[str, int]) -> dict[str, float]:
    """Returns the age of each instance's last matched block in seconds, for those that Redis knows.

    Raises IndexUnreachable.
    """
    times: dict[str, float] = {}
    sorted_names = sorted(last_blocks)
    for start in range(0, len(sorted_names), _PART_BATCH):
        names = sorted_names[start : start + _PART_BATCH]
        written = await asyncio.gather(*(_written_time(link, snapshot, name, last_blocks[name]) for name in names))
        times.update({name: unix_time for name, unix_time in zip(names, written, strict=True) if unix_time is not None})
    await _add_streamed_times(link, snapshot, last_blocks, times)
    return {name: max(0.0, snapshot.wall - unix_time) for name, unix_time in times.items()}


async def _written_time(link: RedisLink, snapshot: IndexSnapshot, instance: str, own: int) -> float | None:
    """Returns the Unix time of a block's last use, from what the indexer wrote; None if it is
    absent.

    own: hash of the block.
    """
    header = snapshot.headers.get(instance)
    if header is None:
        return None
    _, idx, _ = redis_keys.index_keys(snapshot.model_key)
    hash_parts = sorted(part for part in header.parts if part.startswith("0.m"))
    values = await read_values(link, idx, [header.parts[part] for part in hash_parts])
    for part, data in zip(hash_parts, values, strict=True):
        row = _find_row(data, own)
        time_field = header.parts.get(part.replace("m", "h"))
        if row is not None and time_field is not None:
            return await _read_time(link, idx, time_field, row, header)
    return None


def _find_row(data: Any, own: int) -> int | None:
    """Returns the row of a block in a written part; None without the block or a valid part."""
    if data is None:
        return None
    try:
        owns, counts = decode_replica_part(decode_part(data))
    except (UnreadableError, SnapshotError):
        return None
    rows = [row for row, block_hash in enumerate(owns) if block_hash == own and counts[row]]
    return rows[0] if rows else None


async def _read_time(link: RedisLink, idx: str, field: bytes, row: int, header: InstanceHeader) -> float | None:
    (data,) = await read_values(link, idx, [field])
    if data is None:
        return None
    try:
        return time_of(decode_ticks(decode_part(data))[row]) + header.slice.wall
    except (UnreadableError, SnapshotError, IndexError):
        return None


async def _add_streamed_times(
    link: RedisLink, snapshot: IndexSnapshot, last_blocks: Mapping[str, int], times: dict[str, float]
) -> None:
    """Updates ``times`` (Unix) from the stream: stores of these blocks since the last write."""
    if snapshot.at is None or not last_blocks:
        return
    since = min((header.sequence for header in snapshot.headers.values()), default=0)
    epoch, position = snapshot.at
    async with aclosing(read_entries(link, snapshot.model_key, epoch, since)) as entries:
        async for sequence, data in entries:
            if sequence > position:
                break
            wall, changes = decode_changes(data, snapshot.model_key, snapshot.ahead)
            for change in changes:
                if isinstance(change, BlocksStored) and last_blocks.get(change.instance) in change.hashes:
                    times[change.instance] = wall


def render_match(answer: MatchResult) -> str:
    """Returns the answer as a table."""
    rows = [("INSTANCE", "MATCHED", "TIER", "AGE", "COMPLETE", "URL")]
    for match in answer.instances:
        age = UNKNOWN if match.age_seconds is None else format_duration(match.age_seconds)
        complete = "yes" if match.complete else "no"
        tokens = f"{match.matched_tokens:,}/{answer.tokens:,}"
        rows.append((match.id, tokens, match.tier or UNKNOWN, age, complete, match.url or UNKNOWN))
    return align_columns(rows)
