"""A ranking of a model's instances by the cost of their removal, for scale-down. Pure.

The cost is the blocks that no other instance has cached. Those that recent prompts used are soon
computed again while a client waits, the rest perhaps never. So the order is: fewest blocks that are
both unique and recently used, then fewest unique blocks, then fewest blocks. An incomplete instance
has no rank, because its loss cannot be estimated. The costs of the others are upper bounds, since
it may have the same blocks.
"""

from collections.abc import Mapping

import msgspec

from fairlead_kvstore.analysis.block_counts import BlockCounts


class RemovalRank(msgspec.Struct, frozen=True):
    """The rank of one instance; 1 is the cheapest to remove, None is unknown.

    used: unique blocks that recent prompts used; None where usage is unknown.
    """

    instance: str
    rank: int | None
    unique: int
    used: int | None
    reason: str


def rank_removals(
    counts: Mapping[str, BlockCounts], incomplete: Mapping[str, str], used: Mapping[str, int] | None
) -> tuple[RemovalRank, ...]:
    """Returns the ranks of all instances in ``counts``, the cheapest to remove first.

    Incomplete instances come last, without a rank.

    incomplete: incomplete instances, and why.
    used: recently used unique blocks by instance (missing: none); None where usage is unknown.
    """

    def price(name: str) -> tuple[int, int, int, str]:
        counted = counts[name]
        return (used.get(name, 0) if used is not None else 0, counted.unique, counted.blocks, name)

    found = []
    for rank, name in enumerate(sorted(counts.keys() - incomplete.keys(), key=price), 1):
        counted = counts[name]
        recent = used.get(name, 0) if used is not None else None
        found.append(RemovalRank(name, rank, counted.unique, recent, _describe(counted, recent)))
    for name in sorted(counts.keys() & incomplete.keys()):
        recent = used.get(name, 0) if used is not None else None
        found.append(RemovalRank(name, None, counts[name].unique, recent, f"unknown: {incomplete[name]}"))
    return tuple(found)


def _describe(counted: BlockCounts, used: int | None) -> str:
    if not counted.blocks:
        return "it has no cached blocks"
    if not counted.unique:
        return f"other instances have all of its {counted.blocks:,} blocks"
    recent = "" if used is None else f", {used:,} of them used recently"
    return f"it alone has {counted.unique:,} of its {counted.blocks:,} blocks{recent}"
