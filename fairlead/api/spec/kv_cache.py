"""`spec.kvCache`: where KV is kept besides accelerator memory, and how it is transferred."""

from enum import StrEnum
from typing import Annotated, ClassVar, Final

from pydantic import Field

from fairlead.api.strict_model import Rule, StrictModel, api_field
from fairlead.api.value_types import Choice, PositiveDuration, Size

_STORE_PATTERN: Final = r"^(lm|rediss?|mooncakestore)://[A-Za-z0-9.:\[\]-]+(/[A-Za-z0-9._/-]*)?$"
"""No user and no password: a spec must not contain secrets."""


class OffloadType(StrEnum):
    """The software that moves KV to slower memory."""

    NATIVE = "Native"
    LMCACHE = "LMCache"


class Transfer(StrEnum):
    """The KV transfer from prefill to decode instances."""

    NONE = "None"
    NIXL = "NIXL"
    MOONCAKE = "Mooncake"


class PeerTransfer(StrictModel):
    """Sharing of offloaded KV between the instances of a model, where copying is faster than
    computing.

    Measure both numbers: routing compares them with the engines' own speed for every prompt.
    """

    bytes_per_token: Annotated[int, api_field("bytes of KV per token, all layers", "131072", ge=1, le=1_000_000_000)]
    bandwidth: Annotated[Size, api_field("bytes per second from one pod to another", "10Gi")]
    latency: Annotated[PositiveDuration, api_field("time from the request to the first byte of a peer", "10ms")] = (
        "10ms"
    )


def _type_rule(field: str, wanted: OffloadType, message: str) -> Rule:
    """Returns the rule that a field is for one type of offloading."""
    return Rule(
        cel=f"!has(self.{field}) || self.type == '{wanted}'",
        message=message,
        fix=f"write `type: {wanted}`, or remove {field}",
        at=(field,),
        violation=lambda offload: getattr(offload, field) is not None and offload.type is not wanted,
    )


class Offload(StrictModel):
    """Slower and larger storage for KV that leaves the accelerator."""

    rules: ClassVar[tuple[Rule, ...]] = (
        _type_rule("disk", OffloadType.LMCACHE, "only LMCache offloads to disk"),
        _type_rule("store", OffloadType.LMCACHE, "only LMCache shares a store"),
        _type_rule("peers", OffloadType.NATIVE, "only Native offloading shares with peers"),
    )

    type: Annotated[
        Choice[OffloadType],
        api_field(
            "Native: the engine itself; LMCache: the library of that name, which the image must contain", "Native"
        ),
    ] = OffloadType.NATIVE
    memory: Annotated[Size, api_field("main memory per pod, added to its memory request", "64Gi")]
    disk: Annotated[
        Size | None, api_field("scratch disk per pod, for KV that leaves the memory; left out = none", "500Gi")
    ] = None
    store: Annotated[
        str | None,
        api_field(
            "a store that all instances share, behind memory and disk: an LMCache server, a Redis without a password, "
            "or a Mooncake store. Engines query it themselves for missing KV; left out = none",
            "lm://kv-store.chat.svc:65432",
            pattern=_STORE_PATTERN,
            max_length=256,
        ),
    ] = None
    peers: Annotated[
        PeerTransfer | None,
        api_field(
            "shares offloaded KV between the instances of the model; VLLM and Sim",
            "{bytesPerToken: 131072, bandwidth: 10Gi}",
        ),
    ] = None


class KvCache(StrictModel):
    """Storage and transfer of KV beyond one engine's memory."""

    offload: Annotated[Offload | None, Field(examples=["{memory: 64Gi}"])] = None
    transfer: Annotated[
        Choice[Transfer], api_field("KV transfer from pools of role Prefill to pools of role Decode", "NIXL")
    ] = Transfer.NONE
    events: Annotated[
        bool,
        api_field("VLLM, SGLang and Sim publish their cached prefixes, so that routing need not estimate them", "true"),
    ] = True
