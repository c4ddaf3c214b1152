"""``fairlead index match``: which instances have a prompt's prefix cached, how much of it, in which
tier and how old.

Hashes are computed once for each block size of the model's engines. ``tier`` is the slowest tier
that has a block of the match. ``age_seconds`` is the time since the last of these blocks was
stored or used, to sixteen seconds. For blocks of a shared store it is the age of the oldest needed
one: the store reports no evictions, so old blocks are likely gone.
"""

from collections.abc import Sequence

import msgspec

from fairlead.units import format_duration
from fairlead_cli.exit_codes import UnusableIndex
from fairlead_cli.formatting import UNKNOWN, align_columns
from fairlead_cli.index.snapshot import IndexSnapshot
from fairlead_kvstore.blockstore.block_hash import block_hashes, chain_root
from fairlead_kvstore.blockstore.storage_tiers import StorageTier, shared_store_id
from fairlead_kvstore.index.format import secret_fingerprint


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


class TokenPrompt(msgspec.Struct, frozen=True):
    """A prompt as token ids, with the LoRA adapter and the ``cache_salt`` of its request."""

    tokens: Sequence[int]
    adapter: str | None = None
    salt: str | None = None

    def hashes(self, model_key: str, block_size: int, secret: bytes) -> list[int]:
        """Returns the prompt's chain of block hashes. Raises BadInput for an invalid token id."""
        start = chain_root(model_key, self.adapter, secret=secret)
        return block_hashes(start, self.tokens, block_size, None if self.salt is None else {0: [self.salt]})


def check_secret(snapshot: IndexSnapshot, secret: bytes) -> None:
    """Raises UnusableIndex when the index was made with another secret.

    Why: nothing would match, with no visible reason.
    """
    if snapshot.notes is not None and snapshot.notes.mark != secret_fingerprint(secret):
        text = f"the index of {snapshot.model_key} was made with another secret than FAIRLEAD_HASH_SECRET has here"
        raise UnusableIndex(text, hint="set it to the value that gateways and the indexer have; unset is a value, too")


def match_prompt(snapshot: IndexSnapshot, prompt: TokenPrompt, secret: bytes) -> MatchResult:
    """Returns the matches of a prompt."""
    index, chains = snapshot.index, dict[int, list[int]]()
    answer = MatchResult(snapshot.model_key, len(prompt.tokens), [])
    for name in snapshot.instances:
        size, known, note = snapshot.block_size(name) or 0, index.completeness(name), snapshot.note(name)
        if size and size not in chains:
            chains[size] = prompt.hashes(snapshot.model_key, size, secret)
        chain = chains.get(size, [])
        blocks = index.match(name, chain)
        reached = blocks[-1]
        tier = StorageTier(blocks.index(reached)) if reached else None
        if tier is StorageTier.REMOTE:
            place, needed = shared_store_id(snapshot.model_key), chain[blocks[StorageTier.DISK] : reached]
        else:
            place, needed = name, chain[:reached][-1:]
        times = [index.used_at(place, own) for own in needed]
        used_at = min((time for time in times if time is not None), default=None)
        age = None if not used_at else round(max(0.0, snapshot.wall - used_at), 1)
        tier_name = None if tier is None else tier.name.lower()
        url = note.url if note is not None else None
        complete = known is not None and known[0]
        answer.instances.append(InstanceMatch(name, url, reached * size, tier_name, age, complete))
    answer.instances.sort(key=lambda match: (-match.matched_tokens, match.id))
    return answer


def render_match(answer: MatchResult) -> str:
    """Returns the answer as a table."""
    rows = [("INSTANCE", "MATCHED", "TIER", "AGE", "COMPLETE", "URL")]
    for match in answer.instances:
        age = UNKNOWN if match.age_seconds is None else format_duration(match.age_seconds)
        complete = "yes" if match.complete else "no"
        tokens = f"{match.matched_tokens:,}/{answer.tokens:,}"
        rows.append((match.id, tokens, match.tier or UNKNOWN, age, complete, match.url or UNKNOWN))
    return align_columns(rows)
