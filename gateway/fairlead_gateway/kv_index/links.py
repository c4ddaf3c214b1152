"""The links from byte prefixes to token blocks: between what gateways see and what engines report.

A worker hashes raw JSON text and never tokenizes; an engine's events name token blocks. Both chains
of one prompt, learned together, say how far its text reaches in tokens. A *link* leads from a byte
block to (depth, token hash): the last token block that lies wholly before the end of that byte
block. The byte prefix is cached where that token block is.

**A link starts as an estimate**, since only the end of a prompt is known in both. Chat templates
add text, JSON encodes a character in one byte or six, and tokens have any length. The estimate is
the prefix's share of the bytes (`estimate_links`). It is checked against every prompt learned
later. Two prompts that begin with the same bytes have the same tokens there, so their chains must
agree at its depth. If they do not, the link is lowered to their common prefix. A link is never
raised, so it moves at most `depth` times. For each pair of prompts seen:

    link(b).depth ≤ common prefix, in blocks, of the token chains of any two prompts through b

A link that is too shallow counts as cached where the end of its text was evicted: engines evict the
end of a prompt first. One that is too deep expects tokens that another continuation does not have,
and loses a hit until that continuation is learned. So an estimate has no margin to either side.
Token ids as a prompt need no estimate.

**Memory.** Links of one prompt share an array of token hashes. A longer prompt that continues a
known one takes over its links, so a conversation keeps one array. Links are dropped least recently
used first. A use touches the end of a prompt before its head, so what remains is complete from the
start.
"""

from array import array
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PromptLinks:
    """The links of one prompt: its byte blocks and token blocks.

    - hashes: the byte blocks.
    - token_hashes: the whole token blocks.
    - depths: for each byte block, how many token blocks lie wholly before its end, or an estimate.
    - block_size: in tokens.
    """

    hashes: Sequence[int]
    token_hashes: Sequence[int]
    depths: Sequence[int]
    block_size: int


def estimate_links(
    hashes: Sequence[int], ends: Sequence[int], token_hashes: Sequence[int], *, size: int, tokens: int, block_size: int
) -> PromptLinks:
    """Returns the links of a prompt as if its tokens were spread evenly over its bytes.

    - ends: where `hashes` end in its `size` bytes.
    - tokens: the number of tokens, of which `token_hashes` are the whole blocks.
    """
    depths = [tokens * end // (size * block_size) if size > 0 else 0 for end in ends]
    return PromptLinks(hashes, token_hashes, depths, block_size)


@dataclass(slots=True, eq=False)
class _TokenChain:
    """The token hashes of a prompt, and how many links use them."""

    hashes: "array[int]"
    uses: int = 0


@dataclass(slots=True, eq=False)
class Link:
    """The link of one byte block.

    - previous: the byte block before this one; 0: none.
    - index: the number of the byte block in its chain.
    - depth: in token blocks.
    """

    _chain: _TokenChain
    previous: int
    index: int
    depth: int

    @property
    def token_hash(self) -> int:
        """The hash of the last token block wholly before the byte block's end; 0 if there
        is none.
        """
        return self._chain.hashes[self.depth - 1] if self.depth else 0


class LinkTable:
    """The links of one model, in both directions.

    max_links, max_token_hashes: maximum number of links, and of token hashes in all their chains.
    """

    def __init__(self, *, max_links: int, max_token_hashes: int) -> None:
        self._max_links = max_links
        self._max_token_hashes = max_token_hashes
        self._links: OrderedDict[int, Link] = OrderedDict()
        self._by_token_hash: dict[int, int | dict[int, None]] = {}  # a dict of several
        self.token_hash_count = 0
        self.lowered_links = 0
        self.learned_prompts = 0

    def __len__(self) -> int:
        return len(self._links)

    def __contains__(self, digest: object) -> bool:
        return digest in self._links

    # --- reads

    def get(self, digest: int) -> Link | None:
        """Returns the link of a byte block; None if it has none."""
        return self._links.get(digest)

    def linked_count(self, hashes: Sequence[int]) -> int:
        return bisect_left(range(len(hashes)), True, key=lambda number: hashes[number] not in self._links)

    def token_hashes_of(self, digest: int) -> "array[int]":
        """Returns the token hashes up to this byte block's link; empty without one."""
        link = self._links.get(digest)
        return array("Q") if link is None else link._chain.hashes[: link.depth]

    def linked_blocks(self, token_hash: int) -> Collection[int]:
        known = self._by_token_hash.get(token_hash, ())
        return (known,) if isinstance(known, int) else known

    def links_of(self, hashes: Sequence[int], block_size: int) -> PromptLinks | None:
        """Returns the links of a prompt whose blocks are all linked; else None."""
        if not hashes or not all(digest in self._links for digest in hashes):
            return None
        depths = [self._links[digest].depth for digest in hashes]
        return PromptLinks(hashes, self.token_hashes_of(hashes[-1]), depths, block_size)

    def chain(self, digest: int) -> list[int]:
        """Returns the byte blocks from the start of the prompt to this one; empty if one is
        unknown, or if they are no chain.

        Why: links in Redis may be forged so that blocks follow each other in a circle.
        """
        found: list[int] = []
        links = self._links
        index = -1
        while digest:
            link = links.get(digest)
            if link is None or (found and link.index != index - 1):
                return []
            index = link.index
            found.append(digest)
            digest = link.previous
        found.reverse()
        return found

    def items(self) -> Iterable[tuple[int, Link]]:
        return self._links.items()

    # --- changes

    def touch(self, hashes: Sequence[int]) -> None:
        """Marks the blocks of a prompt as used, the first ones as the most recent."""
        links = self._links
        for digest in reversed(hashes):
            if digest in links:
                links.move_to_end(digest)

    def learn(self, links: PromptLinks) -> list[int]:
        """Adds the chains of one prompt; returns the byte blocks whose link is new or changed.

        Beyond the bounds, the least recently used links are dropped.
        """
        hashes, token_hashes = links.hashes, links.token_hashes
        self.learned_prompts += 1
        fresh = _TokenChain(array("Q", token_hashes))
        self.token_hash_count += len(fresh.hashes)
        changed: list[int] = []
        compared: tuple[_TokenChain, int] | None = None
        before = deepest = 0
        for index, (digest, depth) in enumerate(zip(hashes, links.depths, strict=True)):
            link = self._links.get(digest)
            if link is None:
                deepest = max(deepest, min(len(token_hashes), depth))
                self._links[digest] = link = Link(fresh, before, index, deepest)
                fresh.uses += 1
                self._index(digest, link.token_hash)
                changed.append(digest)
            else:
                if compared is None or compared[0] is not link._chain:
                    compared = link._chain, common_prefix(link._chain.hashes, fresh.hashes)
                if self._merge(digest, link, fresh, compared[1]):
                    changed.append(digest)
                deepest = link.depth
            before = digest
        if not fresh.uses:
            self.token_hash_count -= len(fresh.hashes)
        self.touch(hashes)
        while len(self._links) > self._max_links or (
            self.token_hash_count > self._max_token_hashes and len(self._links) > len(hashes)
        ):
            self._remove(next(iter(self._links)))
        return changed

    def clear(self) -> None:
        """Removes all links."""
        self._links.clear()
        self._by_token_hash.clear()
        self.token_hash_count = 0

    # --- helpers

    def _merge(self, digest: int, link: Link, fresh: _TokenChain, shared: int) -> bool:
        """Merges a link with another prompt of the same bytes. Returns True if that lowered it.

        shared: how many token blocks the two chains share.
        """
        token_hash, lowered = link.token_hash, link.depth > shared
        if lowered:
            self.lowered_links += 1
            link.depth = shared
        if link._chain is not fresh:
            self._release(link._chain)
            link._chain = fresh
            fresh.uses += 1
        if lowered:
            self._unindex(digest, token_hash)
            self._index(digest, link.token_hash)
        return lowered

    def _release(self, chain: _TokenChain) -> None:
        chain.uses -= 1
        if not chain.uses:
            self.token_hash_count -= len(chain.hashes)

    def _remove(self, digest: int) -> None:
        link = self._links.pop(digest)
        self._unindex(digest, link.token_hash)
        self._release(link._chain)

    def _index(self, digest: int, token_hash: int) -> None:
        known = self._by_token_hash.get(token_hash)
        if isinstance(known, dict):
            known[digest] = None
        elif token_hash:
            self._by_token_hash[token_hash] = digest if known is None else {known: None, digest: None}

    def _unindex(self, digest: int, token_hash: int) -> None:
        known = self._by_token_hash.get(token_hash)
        if isinstance(known, dict):
            known.pop(digest, None)
        if not isinstance(known, dict) or not known:
            self._by_token_hash.pop(token_hash, None)


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    shorter = range(min(len(first), len(second)))
    return bisect_left(shorter, True, key=lambda number: first[number] != second[number])
