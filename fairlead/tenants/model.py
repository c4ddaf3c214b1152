"""Tenants as gateways see them: immutable data, replaced as a whole on every change.

A tenant owns API keys. A request is made with one key, for one model; each limit that matches both
applies to it. Amounts are whole numbers: requests, tokens, bytes, or billionths of a US dollar.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Self


class Tier(StrEnum):
    """The class of service of a tenant's requests, from most to least urgent."""

    INTERACTIVE = "Interactive"
    STANDARD = "Standard"
    BATCH = "Batch"


class CacheSharing(StrEnum):
    """With whom a tenant shares the KV cache of equal prompts."""

    TENANT = "Tenant"
    GROUP = "Group"
    CLUSTER = "Cluster"


class Enforcement(StrEnum):
    """The way in which a request is counted before its length is known.

    STRICT: with the most that it can use, so that no limit is ever exceeded.
    ESTIMATED: with what it will probably use. The rest is carried over as debt.
    """

    STRICT = "Strict"
    ESTIMATED = "Estimated"


class WithoutRedis(StrEnum):
    """The answer to requests that need more of a limit while Redis is away."""

    ADMIT = "Admit"
    REFUSE = "Refuse"


class LimitUnit(StrEnum):
    """The thing that a limit counts.

    noun: as messages name it.
    """

    noun: str

    def __new__(cls, value: str, noun: str) -> Self:
        unit = str.__new__(cls, value)
        unit._value_, unit.noun = value, noun
        return unit

    REQUESTS = "requests", "requests"
    INPUT_TOKENS = "inputTokens", "input tokens"
    OUTPUT_TOKENS = "outputTokens", "output tokens"
    TOKENS = "tokens", "tokens"
    COST = "cost", "US dollars"
    CONCURRENCY = "concurrency", "requests at the same time"
    BYTES_IN_FLIGHT = "bytesInFlight", "bytes in flight"


class Window(StrEnum):
    """The period of a limit: whole minutes, days and months in UTC."""

    MINUTE = "Minute"
    DAY = "Day"
    MONTH = "Month"


@dataclass(frozen=True, slots=True)
class Limit:
    """A bound on what a tenant, one of its keys, or its requests for one model may use.

    window: None for units that are returned.
    amount: in whole units; billionths of a US dollar for COST.
    key: name of the key whose requests count; None for all.
    model: `namespace/name` of the model or LoRA adapter whose requests count; None for all. Those
        of a model's adapters count for the model.
    is_soft: the limit is reported when it is exceeded, and refuses nothing.
    """

    unit: LimitUnit
    amount: int
    window: Window | None = None
    key: str | None = None
    model: str | None = None
    is_soft: bool = False

    @property
    def id(self) -> str:
        window = self.window.value if self.window is not None else "-"
        return f"{self.unit.value}|{window}|{self.key or '*'}|{self.model or '*'}"

    def applies_to(self, key: str, model: str, adapter: str | None = None) -> bool:
        """Returns whether a request with this key for this model, or for its adapter, counts.

        model, adapter: as `namespace/name`.
        """
        if self.key is not None and self.key != key:
            return False
        return self.model is None or self.model == model or (adapter is not None and self.model == adapter)


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key, of which only the digest is known.

    digest: HMAC-SHA-256 of the key under the installation's pepper.
    expires_at: seconds since the epoch; None if the key does not expire.
    """

    name: str
    digest: bytes
    expires_at: float | None = None


@dataclass(frozen=True, slots=True)
class TokenSubject:
    """Bearer tokens (JWT) that identify a tenant: those of an issuer with this value of a claim."""

    issuer: str
    claim: str
    value: str


@dataclass(frozen=True, slots=True)
class Tenant:
    """A team or application that calls models.

    weight: share of engine time against other tenants of the same tier.
    models: `namespace/name` of models and LoRA adapters, or `namespace/*`; None for all models. A
        tenant that may use a model may use its adapters.
    cache_group: name of the group of tenants for CacheSharing.GROUP.
    may_leave_cluster: requests may go to OpenAI-compatible APIs that others run.
    is_suspended: every request is refused.
    may_use_other_paths: requests may use paths that are forwarded without being understood.
    shows_placement: responses name the instance, the reason and the cached tokens.
    may_wake_models: requests start a model that has no instance.
    """

    name: str
    tier: Tier = Tier.STANDARD
    weight: int = 1
    models: frozenset[str] | None = None
    keys: tuple[ApiKey, ...] = ()
    subjects: tuple[TokenSubject, ...] = ()
    limits: tuple[Limit, ...] = ()
    enforcement: Enforcement = Enforcement.ESTIMATED
    without_redis: WithoutRedis = WithoutRedis.REFUSE
    cache_sharing: CacheSharing = CacheSharing.TENANT
    cache_group: str | None = None
    is_suspended: bool = False
    may_use_other_paths: bool = True
    shows_placement: bool = True
    may_wake_models: bool = True
    may_leave_cluster: bool = True

    def may_use(self, model_key: str) -> bool:
        """Returns whether the tenant may call a model, given as `namespace/name`."""
        if self.models is None or model_key in self.models:
            return True
        return f"{model_key.partition('/')[0]}/*" in self.models

    def limits_of(self, key: str, model: str, adapter: str | None = None) -> tuple[Limit, ...]:
        """Returns the limits that apply to requests with this key for this model, or its adapter.

        model, adapter: as `namespace/name`.
        """
        return tuple(limit for limit in self.limits if limit.applies_to(key, model, adapter))


@dataclass(frozen=True, slots=True)
class TenantTable:
    """A snapshot of all tenants, by name, and of the keys that were revoked.

    revoked: digests of keys that are refused whatever the tenants say.
    """

    version: int = 0
    tenants: Mapping[str, Tenant] = field(default_factory=dict)
    revoked: frozenset[bytes] = frozenset()
