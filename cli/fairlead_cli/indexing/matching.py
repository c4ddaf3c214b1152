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
from fairlead_cli.errors import BadIndex
from fairlead_cli.indexing.picture import Picture
from fairlead_cli.indexing.reaching import away
from fairlead_kvstore import keys
from fairlead_kvstore.errors import KeptError, UnreadableError
from fairlead_kvstore.index.layout import DATA, Header, changes_at, decode_part
from fairlead_kvstore.index.left import fields
from fairlead_kvstore.index.notes import secret_mark
from fairlead_kvstore.redis import RedisLink
from fairlead_kvstore.truth.blocks import time_of
from fairlead_kvstore.truth.changes import Stored
from fairlead_kvstore.truth.identity import block_extras, own_hashes, root
from fairlead_kvstore.truth.kept import mirrored, ticks
from fairlead_kvstore.truth.tiers import Tier

_ENTRIES_AT_ONCE: Final = 256
_PARTS_AT_ONCE: Final = 16


class Found(msgspec.Struct):
    """One instance of the answer, as outside tools read it."""

    id: str
    url: str | None
    matched_tokens: int
    tier: str | None
    age_seconds: float | None
    complete: bool


class Answer(msgspec.Struct):
    """The whole answer. Instances come in the order of what they hold, those that hold nothing last."""

    model: str
    tokens: int
    instances: list[Found]


class Prompt(msgspec.Struct, frozen=True):
    """What is looked for."""

    tokens: Sequence[int]
    adapter: str | None = None
    salt: str | None = None

    def hashes(self, model_key: str, block_size: int, secret: bytes) -> list[int]:
        """Its chain of blocks of so many tokens. Raises BadInput for a token id that is none."""
        start = root(model_key, self.adapter, secret=secret)
        count = len(self.tokens) // block_size
        extras = None if self.salt is None else block_extras(count, block_size, salt=self.salt)
        return own_hashes(start, self.tokens, block_size, extras)


def check_secret(picture: Picture, secret: bytes) -> None:
    """Raises BadIndex when the index is of another secret: nothing would match, and nobody could tell why."""
    if picture.notes is not None and picture.notes.mark != secret_mark(secret):
        text = f"the index of {picture.model_key} was made under another secret than FAIRLEAD_HASH_SECRET is here"
        raise BadIndex(text, hint="set it to what gateways and the indexer have; unset is a secret, too")


def matched(picture: Picture, prompt: Prompt, secret: bytes) -> tuple[Answer, dict[str, int]]:
    """Who holds how much, still without ages; and the last matched block of each, where it has one of its own."""
    mirror, chains = picture.mirror, dict[int, list[int]]()
    last: dict[str, int] = {}
    answer = Answer(picture.model_key, len(prompt.tokens), [])
    for name in picture.instances:
        size = picture.block_size(name)
        if size is not None and size not in chains:
            chains[size] = prompt.hashes(picture.model_key, size, secret)
    depths = {size: {one.instance: one.blocks for one in mirror.match(chain)} for size, chain in chains.items()}
    for name in picture.instances:
        size, known, note = picture.block_size(name), mirror.standing(name), picture.note(name)
        blocks = depths[size].get(name, (0, 0, 0, 0)) if size else (0, 0, 0, 0)
        reached = blocks[-1]
        tier = Tier(blocks.index(reached)) if reached else None
        if size and tier is not None and tier is not Tier.REMOTE:
            last[name] = chains[size][reached - 1]
        complete = known is not None and known.complete
        told = None if tier is None else tier.name.lower()
        url = note.url if note is not None else None
        age = None
        if size and tier is Tier.REMOTE:
            needed = chains[size][blocks[Tier.DISK] : reached]
            known_ages = [mirror.hint_age_seconds(own, picture.now) for own in needed]
            age = max((one for one in known_ages if one is not None), default=None)
        answer.instances.append(Found(name, url, reached * (size or 0), told, age, complete))
    answer.instances.sort(key=lambda one: (-one.matched_tokens, one.id))
    return answer, last


async def ages(link: RedisLink, picture: Picture, last: Mapping[str, int], limits: Limits) -> dict[str, float]:
    """How long ago each of these blocks was stored or used, where Redis knows. Raises NoIndex."""
    found: dict[str, float] = {}
    some = sorted(last)
    for start in range(0, len(some), _PARTS_AT_ONCE):
        names = some[start : start + _PARTS_AT_ONCE]
        times = await asyncio.gather(*(_kept(link, picture, one, last[one]) for one in names))
        found.update({name: then for name, then in zip(names, times, strict=True) if then is not None})
    await _streamed(link, picture, last, found, limits)
    return {name: max(0.0, picture.wall - then) for name, then in found.items()}


async def _kept(link: RedisLink, picture: Picture, instance: str, own: int) -> float | None:
    """When the block was last used by what was written down of the instance, Unix seconds."""
    header = picture.headers.get(instance)
    if header is None:
        return None
    _, idx, _ = keys.index_keys(picture.model_key)
    mine = sorted(part for part in header.parts if part.startswith("0.m"))
    values = await fields(link, idx, [header.parts[part] for part in mine])
    if values is None:
        raise away(link)
    for part, data in zip(mine, values, strict=True):
        row = _row(data, own)
        other = header.parts.get(part.replace("m", "h"))
        if row is not None and other is not None:
            return await _tick(link, idx, other, row, header)
    return None


def _row(data: Any, own: int) -> int | None:
    """Where the block is in a part that may be gone or damaged."""
    if data is None:
        return None
    try:
        owns, counts = mirrored(decode_part(data))
    except (UnreadableError, KeptError):
        return None
    rows = [row for row, there in enumerate(owns) if there == own and counts[row]]
    return rows[0] if rows else None


async def _tick(link: RedisLink, idx: str, field: bytes, row: int, header: Header) -> float | None:
    values = await fields(link, idx, [field])
    if values is None:
        raise away(link)
    if values[0] is None:
        return None
    try:
        return time_of(ticks(decode_part(values[0]))[row]) + header.slice.wall
    except (UnreadableError, KeptError, IndexError):
        return None


async def _streamed(
    link: RedisLink, picture: Picture, last: Mapping[str, int], found: dict[str, float], limits: Limits
) -> None:
    """Stores of these blocks since the instances were written down."""
    if picture.at is None or not last:
        return
    _, _, ev = keys.index_keys(picture.model_key)
    since = min((one.sequence for one in picture.headers.values()), default=0)
    epoch, upto = picture.at
    while True:
        replies = await link.run([("XRANGE", ev, f"{epoch}-{since + 1}", "+", "COUNT", _ENTRIES_AT_ONCE)])
        if replies is None:
            raise away(link)
        entries = replies[0] if isinstance(replies[0], list) else []
        for name, values in entries:
            since = int(bytes(name).partition(b"-")[2])
            _note(values.get(DATA) if isinstance(values, dict) else None, picture, last, found, limits)
        if len(entries) < _ENTRIES_AT_ONCE or since >= upto:
            return


def _note(data: Any, picture: Picture, last: Mapping[str, int], found: dict[str, float], limits: Limits) -> None:
    if not isinstance(data, bytes) or len(data) > limits.index_entry_bytes:
        return
    try:
        wall, changes = changes_at(data, picture.model_key, picture.ahead)
    except UnreadableError:
        return
    for one in changes:
        if isinstance(one, Stored) and last.get(one.instance) in one.hashes:
            found[one.instance] = wall


def as_json(answer: Answer, found: Mapping[str, float]) -> bytes:
    """As it is printed."""
    for one in answer.instances:
        age = found.get(one.id, one.age_seconds)
        one.age_seconds = None if age is None else round(age, 1)
    return msgspec.json.format(msgspec.json.encode(answer), indent=2)


def incomplete(instances: Iterable[Found]) -> list[str]:
    """Those of which not all is known."""
    return [one.id for one in instances if not one.complete]
