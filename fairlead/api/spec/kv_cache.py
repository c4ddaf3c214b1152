"""``spec.kvCache``: where KV goes besides the accelerator's own memory."""

from enum import StrEnum
from typing import Annotated, ClassVar, Final

from pydantic import Field

from fairlead.api.strict_model import Rule, StrictModel
from fairlead.api.value_types import PositiveDuration, Size

_STORE_PATTERN: Final = r"^(lm|rediss?|mooncakestore)://[A-Za-z0-9.:\[\]-]+(/[A-Za-z0-9._/-]*)?$"
"""No user and no password: what stands in a spec is no secret."""


class OffloadKind(StrEnum):
    """Who moves KV to slower memory."""

    NATIVE = "Native"
    LMCACHE = "LMCache"


class Transfer(StrEnum):
    """How KV goes from a prefill to a decode instance."""

    NONE = "None"
    NIXL = "Nixl"
    MOONCAKE = "Mooncake"


class PeerTransfer(StrictModel):
    """Instances of a model get from one another's offloaded KV what they lack, where that takes less time than computing it. Measure
    both numbers: routing compares them with the engines' own speed for every prompt."""

    bytes_per_token: Annotated[
        int, Field(ge=1, le=1_000_000_000, description="KV of one token, all layers", examples=["131072"])
    ]
    bandwidth: Annotated[Size, Field(description="bytes a second that go from one pod to another", examples=["10Gi"])]
    latency: Annotated[
        PositiveDuration, Field(description="from asking a peer to its first byte", examples=["10ms"])
    ] = "10ms"


class Offload(StrictModel):
    """Slower and larger places for KV that leaves the accelerator."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.disk) || self.kind == 'LMCache'",
            message="only LMCache offloads to disk",
            fix="write `kind: LMCache`, or remove disk",
            at=("disk",),
            violation=lambda one: one.disk is not None and one.kind is not OffloadKind.LMCACHE,
        ),
        Rule(
            cel="!has(self.store) || self.kind == 'LMCache'",
            message="only LMCache shares a store",
            fix="write `kind: LMCache`, or remove store",
            at=("store",),
            violation=lambda one: one.store is not None and one.kind is not OffloadKind.LMCACHE,
        ),
        Rule(
            cel="!has(self.peers) || self.kind == 'Native'",
            message="only Native offloading lends to peers",
            fix="write `kind: Native`, or remove peers",
            at=("peers",),
            violation=lambda one: one.peers is not None and one.kind is not OffloadKind.NATIVE,
        ),
    )

    kind: Annotated[
        OffloadKind,
        Field(
            strict=False,
            description="Native: the engine itself; LMCache: the library of that name, which the image must hold",
            examples=["Native"],
        ),
    ] = OffloadKind.NATIVE
    memory: Annotated[
        Size, Field(description="main memory of one pod, added to what it asks of its node", examples=["64Gi"])
    ]
    disk: Annotated[
        Size | None, Field(description="scratch disk of one pod, behind the memory", examples=["500Gi"])
    ] = None
    store: Annotated[
        str | None,
        Field(
            description="a store that all instances share, behind memory and disk: a server of LMCache, a Redis without a password, "
            "or a Mooncake store. Engines look there by themselves for what they lack",
            pattern=_STORE_PATTERN,
            max_length=256,
            examples=["lm://kv-store.chat.svc:65432"],
        ),
    ] = None
    peers: Annotated[
        PeerTransfer | None,
        Field(
            description="lend to the model's other instances, and borrow from them; vllm and sim",
            examples=["{bytesPerToken: 131072, bandwidth: 10Gi}"],
        ),
    ] = None


class KvCache(StrictModel):
    """What becomes of KV beyond one engine's own memory."""

    offload: Annotated[Offload | None, Field(examples=["{memory: 64Gi}"])] = None
    transfer: Annotated[
        Transfer,
        Field(
            strict=False,
            description="how pools of role Prefill hand KV to those of role Decode",
            examples=["Nixl"],
        ),
    ] = Transfer.NONE
    events: Annotated[
        bool,
        Field(
            description="vllm, sglang and sim say which prefixes they hold, so that routing knows instead of guessing",
            examples=["true"],
        ),
    ] = True
