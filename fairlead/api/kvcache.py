"""``spec.kvCache``: where KV goes besides the accelerator's own memory."""

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from fairlead.api.values import Size
from fairlead.strict import Rule, Strict


class OffloadKind(StrEnum):
    """Who moves KV to slower memory."""

    NATIVE = "Native"
    LMCACHE = "LMCache"


class Transfer(StrEnum):
    """How KV goes from a prefill to a decode instance."""

    NONE = "None"
    NIXL = "Nixl"
    MOONCAKE = "Mooncake"


class Offload(Strict):
    """Slower and larger places for KV that leaves the accelerator."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.disk) || self.kind == 'LMCache'",
            message="only LMCache offloads to disk",
            fix="write `kind: LMCache`, or remove disk",
            at=("disk",),
            broken=lambda one: one.disk is not None and one.kind is not OffloadKind.LMCACHE,
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


class KvCache(Strict):
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
