"""What a block *is*: our own chained hash over the token ids that engines announce.

Two caches may hold the same block under different names. An engine's hash depends on its algorithm, on a seed that some draw anew
at every start, on the path a LoRA adapter was loaded from, and on the release. Comparing such hashes between engines, or with
what a gateway computes, fails silently: kv-aware routers have been run for weeks with a hit rate of nothing. But every event
that stores blocks carries their token ids. So the index names a block by what it holds:

    root   = XXH3(secret, namespace/model, adapter)                 who computes, and with which weights
    own(i) = XXH3(token ids of block i as 32-bit little-endian, seeded with own(i-1))
    own(i) = XXH3(extra keys as msgpack, seeded with that)          only where the engine names extra keys

*Extra keys* are what else an engine's hash depends on: ``cache_salt`` on the first block (so the salt isolates the whole chain),
``[identifier, offset]`` on every block that an image touches, a digest of prompt embeddings. They go in as the engine
announces them, in its order, without the adapter's name, which is in the root. A gateway that has token ids, salt and images
computes the same chain (``own_hashes``, ``block_extras``) and needs to know nothing of the engine behind it. What an engine does
not announce, it cannot tell apart here: SGLang 0.5.9 names no extra keys, so salted prompts must not be looked up there.

An adapter's *name* may be loaded again from another path. The chain stays the same on purpose, since a gateway asks for the name;
which of an instance's blocks belong to the content that is loaded now is settled in ``adapters.py``.

The hash is XXH3-64 keyed with the installation's secret: a routing hint, no signature. With 10 million blocks the chance that any
two collide is 3 in a million, and costs a recomputation. Engine hashes are reduced to 64 bits the same way (``handle``)
and mean something within one process of one engine only.
"""

import struct
import sys
from array import array
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec
import xxhash

from fairlead.errors import BadInput

_MASK: Final = 0xFFFF_FFFF_FFFF_FFFF
TOKEN_BYTES: Final = 4
_NATIVE: Final = sys.byteorder == "little" and array("I").itemsize == TOKEN_BYTES
_ENCODE: Final = msgspec.msgpack.Encoder().encode

ExtraKeys = list[Any]
"""The extra keys of one block, as an engine announces them."""


def chain_root(model_key: str, adapter: str | None = None, *, secret: bytes = b"") -> int:
    """The start of every chain of one model (``namespace/name``) and adapter, a 64-bit number."""
    name = b"" if adapter is None else b"\0" + adapter.encode("utf-8", "surrogatepass")
    return xxhash.xxh3_64_intdigest(secret + b"\0" + model_key.encode("utf-8", "surrogatepass") + b"\0" + name)


def token_bytes(tokens: Sequence[int]) -> bytes:
    """Token ids as 32-bit little-endian. Raises BadInput for one that does not fit."""
    try:
        return array("I", tokens).tobytes() if _NATIVE else struct.pack(f"<{len(tokens)}I", *tokens)
    except (OverflowError, TypeError, struct.error):
        raise BadInput("a token id is no number from 0 to 4294967295", field="tokens") from None


def extra_bytes(extras: ExtraKeys) -> bytes:
    """Extra keys as they are hashed."""
    return _ENCODE(extras)


def hash_with_extras(own: int, extras: bytes) -> int:
    """The hash of a block with extra keys, from the one without."""
    return xxhash.xxh3_64_intdigest(extras, own)


def engine_hash(raw_hash: int | bytes) -> int:
    """An engine's hash as 64 bits, the same ones for the same hash."""
    return raw_hash & _MASK if isinstance(raw_hash, int) else xxhash.xxh3_64_intdigest(raw_hash)


def block_hashes(
    start: int, tokens: Sequence[int], block_size: int, extras: Sequence[ExtraKeys | None] | None = None
) -> list[int]:
    """The chain of a prompt's whole blocks, from ``root`` or from the last block of what comes before."""
    data, width, own = token_bytes(tokens), block_size * TOKEN_BYTES, start
    found = []
    for index in range(len(tokens) // block_size):
        own = xxhash.xxh3_64_intdigest(data[index * width : (index + 1) * width], own)
        if extras is not None and (keys := extras[index]):
            own = hash_with_extras(own, extra_bytes(keys))
        found.append(own)
    return found


def block_extras(
    blocks: int, block_size: int, *, salt: str | None = None, images: Iterable[tuple[str, int, int]] = ()
) -> list[ExtraKeys | None]:
    """The extra keys that an engine names for a prompt: ``images`` are (identifier, first token, tokens), in order.

    An image is named on every block that it touches, with its distance from the block's start; the salt on the first block.
    """
    placed = list(images)
    found: list[ExtraKeys | None] = []
    for index in range(blocks):
        start = index * block_size
        keys: ExtraKeys = [
            [name, first - start]
            for name, first, length in placed
            if first < start + block_size and first + length > start
        ]
        if salt is not None and not index:
            keys.append(salt)
        found.append(keys or None)
    return found


def cached_tokens(blocks: int, prompt_tokens: int, block_size: int, *, slower: int = 0) -> int:
    """What an engine reports as cached of a prompt, of which it holds so many blocks in the GPU, and ``slower`` with slower tiers.

    Whole blocks. The last token must be computed, so a block that ends with it is no hit in the GPU's cache; but it is one of vLLM's
    own CPU tier, which then brings the whole prompt. For an engine that has no slower tier ``slower`` is 0.
    """
    found = max(0, min(blocks, (prompt_tokens - 1) // block_size))
    return max(found, min(slower, prompt_tokens // block_size)) * block_size
