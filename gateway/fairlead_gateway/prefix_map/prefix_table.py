"""Which token block a prefix of bytes ends with: the bridge between what gateways see and what engines tell.

A worker knows a prompt as a chain over its raw JSON text and never tokenizes; an engine's events name blocks of tokens. Both chains
of one prompt, learned together, say how far its text reaches in tokens. A *link* leads from a byte block to (depth, own hash): the
last token block that lies wholly before that byte block's end. The prefix of text is held where this own hash is held.

**Where a byte prefix ends in tokens is not known, only where the prompt does.** Chat templates put text before, between and behind
messages, JSON spells characters with one byte or six, and a tokenizer's pieces are of any length. So a link starts as a guess:
the prefix's share of the bytes is its share of the tokens, less ``lesson.GUESS_SHARE`` and a few tokens. The guess is then
held against every prompt that is learned later: two prompts that begin with the same bytes have the same tokens *there*, so a link
is right only if the two chains agree at its depth. Where they do not, it is lowered to the longest prefix that they share. Nothing
ever raises a link, so it moves at most ``depth`` times and comes to rest; and what is left holds for each pair of prompts seen:

    link(b).depth ≤ common prefix, in blocks, of the own chains of any two prompts learned through b

A link that is too shallow credits text that is held a little less far than it says; the credit in tokens is still what is held. A
link that is too deep asks for tokens that another continuation does not have, and loses a hit until that continuation is learned.
Token ids as a prompt have no such doubt: their text is cut at commas, and ``lesson.counted`` says how many lie before each end.

**Memory.** The own chains are arrays that the links of one prompt share. A longer prompt that goes on from a known one takes its
links over, so a conversation keeps one array, not one a turn. Links are forgotten least recently used first; a use touches the end of
a prompt before its head, so what is left is always whole from the start.
"""

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from fairlead_gateway.prefix_map.prompt_alignment import PromptAlignment


class _TokenChain:
    """A prompt's own chain, and how many links use it."""

    __slots__ = ("hashes", "uses")

    def __init__(self, hashes: "array[int]") -> None:
        self.hashes = hashes
        self.uses = 0


class PrefixLink:
    """One byte block: ``before`` is the byte block before it (0: none), ``index`` its number in the chain, ``depth`` in token
    blocks."""

    __slots__ = ("_chain", "depth", "index", "previous")

    def __init__(self, owns: _TokenChain, before: int, index: int, depth: int) -> None:
        self._chain = owns
        self.previous = before
        self.index = index
        self.depth = depth

    @property
    def token_hash(self) -> int:
        """The own hash at its depth; 0 when no token block lies wholly before its end."""
        return self._chain.hashes[self.depth - 1] if self.depth else 0

    @property
    def token_hashes(self) -> "array[int]":
        """The own hashes from the prompt's start up to its depth."""
        return self._chain.hashes[: self.depth]


class PrefixTable:
    """The links of one model: byte blocks to own hashes and back. ``most`` links and ``most_owns`` own hashes in all chains."""

    def __init__(self, *, max_links: int, max_token_hashes: int) -> None:
        self._max_links = max_links
        self._max_token_hashes = max_token_hashes
        self._links: OrderedDict[int, PrefixLink] = OrderedDict()
        self._by_token_hash: dict[int, tuple[int, ...]] = {}
        self.token_hash_count = 0
        self.lowered_links = 0
        self.learned_prompts = 0

    def __len__(self) -> int:
        return len(self._links)

    def __contains__(self, digest: object) -> bool:
        return digest in self._links

    # --- questions ------------------------------------------------------------------------------------------------------

    def get(self, digest: int) -> PrefixLink | None:
        """The link of a byte block."""
        return self._links.get(digest)

    def linked_count(self, hashes: Sequence[int]) -> int:
        """How many blocks from a prompt's start are linked."""
        links, low, high = self._links, 0, len(hashes)
        while low < high:
            middle = (low + high) >> 1
            if hashes[middle] in links:
                low = middle + 1
            else:
                high = middle
        return low

    def token_hashes_of(self, digest: int) -> "array[int]":
        """The own hashes of all token blocks up to this byte block's link; empty where it has none."""
        link = self._links.get(digest)
        return link.token_hashes if link is not None else array("Q")

    def linked_blocks(self, token_hash: int) -> tuple[int, ...]:
        """The byte blocks that are linked to an own hash."""
        return self._by_token_hash.get(token_hash, ())

    def alignment(self, hashes: Sequence[int], block_size: int) -> PromptAlignment | None:
        """What is known of a prompt, all of whose blocks are linked; None where one is not."""
        links = [self._links.get(digest) for digest in hashes]
        if not links or None in links:
            return None
        depths = [link.depth for link in links if link is not None]
        return PromptAlignment(hashes, self.token_hashes_of(hashes[-1]), depths, block_size)

    def chain(self, digest: int) -> list[int]:
        """The byte blocks from the prompt's start to this one; empty where one of them is not known any more."""
        found: list[int] = []
        links = self._links
        while digest:
            link = links.get(digest)
            if link is None:
                return []
            found.append(digest)
            digest = link.previous
        found.reverse()
        return found

    def items(self) -> Iterable[tuple[int, PrefixLink]]:
        """All byte blocks that are linked, and their links."""
        return self._links.items()

    # --- what is told ---------------------------------------------------------------------------------------------------

    def touch(self, hashes: Sequence[int]) -> None:
        """A prompt was used: its links stay longer than others, its head longer than its end."""
        links = self._links
        for digest in reversed(hashes):
            if digest in links:
                links.move_to_end(digest)

    def learn(self, alignment: PromptAlignment) -> list[int]:
        """Both chains of one prompt; the byte blocks whose link is new or another now."""
        hashes, token_hashes = alignment.hashes, alignment.token_hashes
        self.learned_prompts += 1
        fresh = _TokenChain(array("Q", token_hashes))
        self.token_hash_count += len(fresh.hashes)
        changed: list[int] = []
        compared: tuple[_TokenChain, int] | None = None
        before = deepest = 0
        for index, (digest, depth) in enumerate(zip(hashes, alignment.depths, strict=True)):
            link = self._links.get(digest)
            if link is None:
                deepest = max(deepest, min(len(token_hashes), depth))
                self._links[digest] = link = PrefixLink(fresh, before, index, deepest)
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
        """Forget all: what was learned is wrong."""
        self._links.clear()
        self._by_token_hash.clear()
        self.token_hash_count = 0

    # --- inside ---------------------------------------------------------------------------------------------------------

    def _merge(self, digest: int, link: PrefixLink, fresh: _TokenChain, shared: int) -> bool:
        """Another prompt with the same bytes up to here, whose chain shares so many blocks with the link's; whether that changed
        it."""
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
        if token_hash:
            self._by_token_hash[token_hash] = (*self._by_token_hash.get(token_hash, ()), digest)

    def _unindex(self, digest: int, token_hash: int) -> None:
        left = tuple(one for one in self._by_token_hash.get(token_hash, ()) if one != digest)
        if left:
            self._by_token_hash[token_hash] = left
        else:
            self._by_token_hash.pop(token_hash, None)


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """How many blocks from the start two chains share: equal hashes are equal prefixes, so a bisection finds it."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high) >> 1
        if first[middle] == second[middle]:
            low = middle + 1
        else:
            high = middle
    return low
