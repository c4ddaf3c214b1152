"""Block hashes: chained content hashes over the token ids that engines report.

Why: two caches may give the same block different names. An engine's hash depends on its algorithm,
its release, a seed that may change at every start, and the path of a LoRA adapter. Comparing such
hashes between engines, or with those of a gateway, fails silently: KV-aware routers have run for
weeks with a hit rate of zero. But every event that stores blocks carries their token ids. The index
therefore names a block by its content:

    root    = XXH3(secret, namespace/model, adapter)                 installation, weights
    hash(i) = XXH3(token ids of block i, 32-bit little-endian, seeded with hash(i-1))
    hash(i) = XXH3(extra keys as msgpack, seeded with that)          only where there are extra keys

*Extra keys* are the other inputs of an engine's hash:

- ``cache_salt`` on the first block, so that the salt isolates the whole chain
- ``[identifier, offset]`` on every block that an image touches
- a digest of prompt embeddings

They are hashed as the engine reports them, in its order, without the adapter's name, which is in
the root. A gateway that has token ids, salt and images computes the same chain with
``block_hashes``, without knowledge of the engine. Blocks that differ only in what an engine does
not report share a hash. SGLang 0.5.9 reports no extra keys, so salted prompts
must not be looked up there.

An adapter's *name* may be loaded again from another path. The chain stays the same on purpose,
since a gateway looks up the name. ``adapter_loads.py`` decides which of an instance's blocks belong
to the content that is loaded now.

The hash is XXH3-64 keyed with the installation's secret: a routing hint, no signature. With 10
million blocks, the chance of any collision is 3 in a million, and a collision costs a
recomputation. ``engine_hash`` reduces engine hashes to 64 bits; they are valid within one engine
process only.
"""

import struct
import sys
from array import array
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
import xxhash

from fairlead.errors import BadInput

_MASK: Final = 0xFFFF_FFFF_FFFF_FFFF
TOKEN_BYTES: Final = 4
_NATIVE: Final = sys.byteorder == "little" and array("I").itemsize == TOKEN_BYTES
_ENCODE: Final = msgspec.msgpack.Encoder().encode

ExtraKeys = list[Any]
"""The extra keys of one block, as an engine reports them."""


def chain_root(model_key: str, adapter: str | None = None, *, secret: bytes = b"") -> int:
    """Returns the start of every chain of one model (``namespace/name``) and adapter, a 64-bit
    number.
    """
    name = b"" if adapter is None else b"\0" + adapter.encode("utf-8", "surrogatepass")
    return xxhash.xxh3_64_intdigest(secret + b"\0" + model_key.encode("utf-8", "surrogatepass") + b"\0" + name)


def token_bytes(tokens: Sequence[int]) -> bytes:
    """Returns token ids as 32-bit little-endian numbers. Raises BadInput for one that does not
    fit.
    """
    try:
        return array("I", tokens).tobytes() if _NATIVE else struct.pack(f"<{len(tokens)}I", *tokens)
    except (OverflowError, TypeError, struct.error):
        raise BadInput("a token id must be a number from 0 to 4294967295", field="tokens") from None


def extra_bytes(extras: ExtraKeys) -> bytes:
    """Returns the msgpack bytes of extra keys, which are the input of the hash."""
    return _ENCODE(extras)


def hash_with_extras(block_hash: int, extras: bytes) -> int:
    return xxhash.xxh3_64_intdigest(extras, block_hash)


def engine_hash(raw_hash: int | bytes) -> int:
    return raw_hash & _MASK if isinstance(raw_hash, int) else xxhash.xxh3_64_intdigest(raw_hash)


def parent_hash(raw_hash: int | bytes | None) -> int | None:
    """Returns a parent's hash as 64 bits; None for no parent, which llm-d-inference-sim writes as
    0.
    """
    return engine_hash(raw_hash) if raw_hash else None


def extra_key_bytes(extras: list[ExtraKeys | None] | None, adapter: str | None) -> list[bytes | None] | None:
    """Returns the bytes of each block's extra keys, without the adapter's name at their start.

    A block without other keys has None. Returns None if the engine reports no extra keys.
    """
    if extras is None:
        return None
    found: list[bytes | None] = []
    for keys in extras:
        rest = keys[1:] if keys and adapter is not None and keys[0] == adapter else keys
        found.append(extra_bytes(rest) if rest else None)
    return found


def block_hashes(
    start: int, tokens: Sequence[int], block_size: int, extras: Mapping[int, ExtraKeys] | None = None
) -> list[int]:
    """Returns the hashes of a prompt's whole blocks, in order.

    start: the root of the chain, or the hash of the block before the first.
    extras: the extra keys of a block by its number; those of the first one end with the salt.
    """
    data, width, block_hash = token_bytes(tokens), block_size * TOKEN_BYTES, start
    found = []
    for index in range(len(tokens) // block_size):
        block_hash = xxhash.xxh3_64_intdigest(data[index * width : (index + 1) * width], block_hash)
        if extras is not None and (keys := extras.get(index)):
            block_hash = hash_with_extras(block_hash, extra_bytes(keys))
        found.append(block_hash)
    return found
