"""Which instance of a model is cheapest to lose, for whoever scales it down. Pure.

What goes with an instance is what nobody else holds: of that, what prompts used lately is computed again soon, by somebody whose
client waits, and the rest perhaps never. So the one with the fewest blocks that are both comes first, then the one with the fewest
that nobody else holds, then the one with the fewest at all. Of an instance that is not known completely nobody can say what would
be lost: it has no rank. What the others lose is then at most what is said here, since it may hold the same.
"""

from collections.abc import Mapping

import msgspec

from fairlead_kvstore.analysis.block_counts import BlockCounts


class RemovalRank(msgspec.Struct, frozen=True):
    """``rank`` 1 is the cheapest to lose, None where that cannot be told; ``used`` of its ``unique`` blocks were used lately, None
    where nobody looked."""

    instance: str
    rank: int | None
    unique: int
    used: int | None
    reason: str


def rank_removals(
    counts: Mapping[str, BlockCounts], incomplete: Mapping[str, str], used: Mapping[str, int] | None
) -> tuple[RemovalRank, ...]:
    """Of all in ``counted``, those that are cheapest to lose first.

    ``unknown``: instances that are not known completely, and why. ``used``: how many of the blocks that only this instance holds were
    used lately (a missing instance: none); None where nobody knows what was used.
    """

    def price(name: str) -> tuple[int, int, int, str]:
        one = counts[name]
        return (used.get(name, 0) if used is not None else 0, one.unique, one.blocks, name)

    found = []
    for rank, name in enumerate(sorted(counts.keys() - incomplete.keys(), key=price), 1):
        one = counts[name]
        lately = used.get(name, 0) if used is not None else None
        found.append(RemovalRank(name, rank, one.unique, lately, _describe(one, lately)))
    for name in sorted(counts.keys() & incomplete.keys()):
        lately = used.get(name, 0) if used is not None else None
        found.append(RemovalRank(name, None, counts[name].unique, lately, f"cannot be told: {incomplete[name]}"))
    return tuple(found)


def _describe(one: BlockCounts, used: int | None) -> str:
    if not one.blocks:
        return "it holds nothing"
    if not one.unique:
        return f"others hold all of its {one.blocks:,} blocks"
    lately = "" if used is None else f", {used:,} of them used lately"
    return f"only it holds {one.unique:,} of its {one.blocks:,} blocks{lately}"
