"""`spec` of a ModelTenant: keys, models, limits and shares of a team or an application.

No message repeats what is given in place of a digest or a key's name, since it may be a key.
"""

import re
from collections.abc import Iterator
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Final, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from fairlead import units
from fairlead.api.strict_model import FieldPath, Rule, StrictModel, api_field, api_list, field_error
from fairlead.api.value_types import Choice, Cost, Int32, Int64, Label, Size, TextForm
from fairlead.names import DNS_LABEL_PATTERN
from fairlead.tenants.model import (
    ApiKey,
    CacheSharing,
    Enforcement,
    Limit,
    LimitUnit,
    Tenant,
    Tier,
    TokenSubject,
    Window,
    WithoutRedis,
)

_DIGEST_PATTERN: Final = r"^[0-9a-fA-F]{64}$"
_DIGEST: Final = re.compile(_DIGEST_PATTERN.strip("^$"))
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)")
_ISSUER_PATTERN: Final = r"^https://[^\s?#]+$"


_KEYS_FIX: Final = 'write it like `keys: [{name: prod, digest: "64 hexadecimal digits"}]`; never the key'

_CHARACTERS: Final = "[A-Za-z0-9._/:@+-]{1,253}"
_MODEL_PATTERN: Final = rf"^{DNS_LABEL_PATTERN.pattern}/{_CHARACTERS}$"
_MODELS_PATTERN: Final = rf"^{DNS_LABEL_PATTERN.pattern}/(\*|{_CHARACTERS})$"
_MAX_LENGTH: Final = 317

_IS_NO_NAME: Final = "is not the name of a model"
ModelKey = Annotated[
    str, TextForm(_MODEL_PATTERN, _IS_NO_NAME, "write it as namespace/name, like chat/llama-70b", _MAX_LENGTH)
]
"""A model, or a LoRA adapter."""
ModelsEntry = Annotated[
    str,
    TextForm(
        _MODELS_PATTERN, _IS_NO_NAME, "write it as namespace/name, or namespace/* for all of a namespace", _MAX_LENGTH
    ),
]
"""A model, a LoRA adapter, or all models of a namespace."""

_Count = Annotated[Int64, Field(ge=1, le=10**15)]

_RETURNED_UNITS: Final = frozenset({LimitUnit.CONCURRENCY, LimitUnit.BYTES_IN_FLIGHT})
_AMOUNTS_BY_UNIT: Final = {unit: "usd" if unit is LimitUnit.COST else unit.value for unit in LimitUnit}
AMOUNTS: Final = tuple(_AMOUNTS_BY_UNIT.values())
"""The fields of a limit that are amounts, one for each unit."""

_SAME_SCOPE_CEL = " && ".join(
    f"(has(b.{field}) ? b.{field} : '') == (has(a.{field}) ? a.{field} : '')" for field in ("per", "key", "model")
)

_UNMETERED_UNITS = _RETURNED_UNITS | {LimitUnit.REQUESTS}
"""Units that are counted without understanding a request."""


def check_keys(value: Any) -> Any:
    """Returns a list unchanged. For anything else, raises PydanticCustomError that does not
    repeat it.
    """
    if not isinstance(value, list):
        raise field_error("must be a list", _KEYS_FIX)
    return value


def _check_digest(value: Any) -> Any:
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise field_error(
            "this is not a digest", "write the key's HMAC-SHA-256 as 64 hexadecimal digits, in quotes; never the key"
        )
    return value


def _check_key_name(value: Any) -> Any:
    if not isinstance(value, str) or not DNS_LABEL_PATTERN.fullmatch(value):
        raise field_error("this cannot name a key", "use lower-case letters, digits and -, at most 63; never the key")
    return value


def _check_time(text: str) -> str:
    try:
        if _TIME.fullmatch(text):
            datetime.fromisoformat(text)
            return text
    except ValueError:
        pass  # such as the 31st of February
    raise field_error(f'"{text:.40}" is not a time', 'write it with a time zone, like "2027-01-01T00:00:00Z"')


KeyName = Annotated[
    str,
    BeforeValidator(_check_key_name),
    Field(json_schema_extra={"pattern": f"^{DNS_LABEL_PATTERN.pattern}$", "maxLength": 63}),
]
"""The name of one of the tenant's keys, where another field refers to it."""


class TenantKey(StrictModel):
    """An API key, of which only the digest is written."""

    # Why rules and no patterns: the API server's errors about patterns repeat the value.
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel=f"self.name.matches('^{DNS_LABEL_PATTERN.pattern}$')",
            message="this cannot name a key",
            fix="use lower-case letters, digits and -, at most 63; never the key",
            at=("name",),
        ),
        Rule(
            cel=f"self.digest.matches('{_DIGEST_PATTERN}')",
            message="this is not a digest",
            fix="write the key's HMAC-SHA-256 as 64 hexadecimal digits, in quotes; never the key",
            at=("digest",),
        ),
    )

    name: Annotated[
        str,
        BeforeValidator(_check_key_name),
        api_field("name of the key in logs, metrics and limits", "prod", json_schema_extra={"maxLength": 63}),
    ]
    digest: Annotated[
        str,
        BeforeValidator(_check_digest),
        api_field(
            "HMAC-SHA-256 of the key under the installation's pepper, in hexadecimal",
            json_schema_extra={"maxLength": 64},
        ),
    ]
    expires_at: Annotated[
        str | None,
        AfterValidator(_check_time),
        api_field(
            "time from which the key is refused; left out = it does not expire",
            '"2027-01-01T00:00:00Z"',
            json_schema_extra={"format": "date-time", "maxLength": 40},
        ),
    ] = None

    @model_validator(mode="before")
    @classmethod
    def _require_mapping(cls, data: Any) -> Any:
        """Refuses other values here, since the general error would repeat them."""
        if not isinstance(data, dict):
            raise field_error("a key is a mapping of its name and its digest", _KEYS_FIX)
        return data

    def to_api_key(self) -> ApiKey:
        expires_at = None if self.expires_at is None else datetime.fromisoformat(self.expires_at).timestamp()
        return ApiKey(self.name, bytes.fromhex(self.digest), expires_at)


class TenantSubject(StrictModel):
    """The bearer tokens of one issuer that identify the tenant."""

    issuer: Annotated[
        str,
        api_field(
            "issuer of the tokens, the claim `iss`",
            '"https://login.example.com"',
            max_length=512,
            pattern=_ISSUER_PATTERN,
        ),
    ]
    claim: Annotated[
        str, api_field("claim that is compared with `value`", "sub", min_length=1, max_length=128, pattern=r"^[!-~]+$")
    ] = "sub"
    value: Annotated[
        str, api_field("value of the claim", '"system:serviceaccount:team-a:app"', min_length=1, max_length=512)
    ]


class OnExceeded(StrEnum):
    """The answer to requests beyond a limit."""

    REFUSE = "Refuse"
    WARN = "Warn"


def _has_any(*, is_returned: bool) -> str:
    names = [name for unit, name in _AMOUNTS_BY_UNIT.items() if (unit in _RETURNED_UNITS) is is_returned]
    return " || ".join(f"has(self.{name})" for name in names)


class TenantLimit(StrictModel):
    """Bounds on what a tenant, one of its keys, or its requests for one model may use."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel=f"{_has_any(is_returned=False)} || {_has_any(is_returned=True)}",
            message="the limit has no amount",
            fix="add one, for example `requests: 600`",
            violation=lambda limit: not limit.has_windowed and not limit.has_returned,
        ),
        Rule(
            cel=f"has(self.per) || !({_has_any(is_returned=False)})",
            message="requests, tokens and dollars are counted per Minute, Day or Month",
            fix="add `per: Minute`",
            at=("per",),
            violation=lambda limit: limit.per is None and limit.has_windowed,
        ),
        Rule(
            cel=f"!has(self.per) || !({_has_any(is_returned=True)})",
            message="concurrency and bytesInFlight are counted at each moment, not per time",
            fix="move them to an entry without `per`",
            at=("per",),
            violation=lambda limit: limit.per is not None and limit.has_returned,
        ),
    )

    per: Annotated[
        Choice[Window] | None,
        api_field(
            "calendar window in UTC over which amounts are counted; left out for concurrency and bytesInFlight",
            "Minute",
        ),
    ] = None
    requests: Annotated[_Count | None, api_field("requests; left out = no limit", "600")] = None
    input_tokens: Annotated[_Count | None, api_field("tokens of prompts; left out = no limit", "300000")] = None
    output_tokens: Annotated[_Count | None, api_field("generated tokens; left out = no limit", "100000")] = None
    tokens: Annotated[
        _Count | None, api_field("tokens of prompts and generated tokens; left out = no limit", "400000")
    ] = None
    usd: Annotated[Cost | None, api_field("cost in US dollars, by the models' prices; left out = no limit", '"20"')] = (
        None
    )
    concurrency: Annotated[_Count | None, api_field("requests at the same time; left out = no limit", "64")] = None
    bytes_in_flight: Annotated[
        Size | None, api_field("bytes of the bodies of unfinished requests; left out = no limit", "64Mi")
    ] = None
    key: Annotated[KeyName | None, api_field("name of a key: only its requests count; left out = all keys", "ci")] = (
        None
    )
    model: Annotated[
        ModelKey | None,
        api_field(
            "`namespace/name`: only requests for this model, its adapters included, or for this LoRA "
            "adapter count; left out = all models",
            "chat/llama-70b",
        ),
    ] = None
    on_exceeded: Annotated[
        Choice[OnExceeded], api_field("Refuse: 429; Warn: requests pass, and it is reported", "Warn")
    ] = OnExceeded.REFUSE

    @property
    def has_windowed(self) -> bool:
        return any(limit.unit not in _RETURNED_UNITS for limit in self.to_limits())

    @property
    def has_returned(self) -> bool:
        return any(limit.unit in _RETURNED_UNITS for limit in self.to_limits())

    @property
    def scope(self) -> tuple[Window | None, str | None, str | None]:
        return self.per, self.key, self.model

    def to_limits(self) -> Iterator[Limit]:
        """Yields one limit for each amount."""
        amounts = {
            LimitUnit.REQUESTS: self.requests,
            LimitUnit.INPUT_TOKENS: self.input_tokens,
            LimitUnit.OUTPUT_TOKENS: self.output_tokens,
            LimitUnit.TOKENS: self.tokens,
            LimitUnit.COST: None if self.usd is None else units.parse_usd(self.usd),
            LimitUnit.CONCURRENCY: self.concurrency,
            LimitUnit.BYTES_IN_FLIGHT: None if self.bytes_in_flight is None else units.parse_size(self.bytes_in_flight),
        }
        is_soft = self.on_exceeded is OnExceeded.WARN
        for unit, amount in amounts.items():
            if amount is not None:
                yield Limit(unit, amount, self.per, self.key, self.model, is_soft)


class TenantBudget(StrictModel):
    """The cost that a tenant may cause in a calendar window in UTC."""

    usd: Annotated[Cost, api_field("cost in US dollars, by the models' prices", '"500"')]
    per: Annotated[Choice[Window], api_field("calendar window in UTC of the budget", "Month")] = Window.MONTH
    on_exceeded: Annotated[
        Choice[OnExceeded], api_field("Refuse: 429; Warn: requests pass, and it is reported", "Warn")
    ] = OnExceeded.REFUSE

    def to_limit(self) -> Limit:
        return Limit(LimitUnit.COST, units.parse_usd(self.usd), self.per, is_soft=self.on_exceeded is OnExceeded.WARN)


class OtherPaths(StrEnum):
    """The answer to requests on paths that are forwarded without being understood."""

    ADMIT = "Admit"
    REFUSE = "Refuse"


class ExternalEndpoints(StrEnum):
    """The answer to requests that would leave the cluster."""

    ADMIT = "Admit"
    REFUSE = "Refuse"


def _repeated_scope(spec: "ModelTenantSpec") -> FieldPath | bool:
    scopes = [limit.scope for limit in spec.limits]
    repeated = [index for index, scope in enumerate(scopes) if scope in scopes[:index]]
    return ("limits", repeated[0]) if repeated else False


def _repeated_budget(spec: "ModelTenantSpec") -> bool:
    if spec.budget is None:
        return False
    return any(limit.usd is not None and limit.scope == (spec.budget.per, None, None) for limit in spec.limits)


class ModelTenantSpec(StrictModel):
    """The keys, models, limits and shares of a tenant."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="(self.cacheSharing == 'Group') == has(self.cacheGroup)",
            message="cacheGroup names the group of `cacheSharing: Group`, and they need each other",
            fix="give both, or neither",
            at=("cacheSharing",),
            violation=lambda spec: (spec.cache_sharing is CacheSharing.GROUP) != (spec.cache_group is not None),
        ),
        Rule(
            cel=f"!has(self.limits) || self.limits.all(a, self.limits.exists_one(b, {_SAME_SCOPE_CEL}))",
            message="two limits have the same per, key and model",
            fix="put their amounts into one entry",
            at=("limits",),
            violation=_repeated_scope,
        ),
        Rule(
            cel="!has(self.budget) || !has(self.limits) || !self.limits.exists(l, has(l.usd) && !has(l.key) && "
            "!has(l.model) && has(l.per) && l.per == self.budget.per)",
            message="a limit of dollars repeats the budget: both are for all keys and models, in the same window",
            fix="remove one of them",
            at=("budget",),
            violation=_repeated_budget,
        ),
    )

    suspended: Annotated[bool, api_field("refuses every request of the tenant with 403", "true")] = False
    tier: Annotated[
        Choice[Tier],
        api_field("class of service: Interactive goes first, Batch waits when engines are busy", "Interactive"),
    ] = Tier.STANDARD
    weight: Annotated[
        Int32, api_field("share of engine time against other tenants of the same tier", "4", ge=1, le=1000)
    ] = 1
    models: Annotated[
        list[ModelsEntry] | None,
        api_field(
            "models and LoRA adapters that the tenant may use, as `namespace/name` or `namespace/*`; a "
            "listed model includes its adapters; left out = all models",
            '[chat/llama-70b, "search/*"]',
            min_length=1,
            max_length=256,
            json_schema_extra={"x-kubernetes-list-type": "set"},
        ),
    ] = None
    other_paths: Annotated[
        Choice[OtherPaths] | None,
        api_field(
            "whether the tenant may use paths that are forwarded without being understood, so that their "
            "tokens are not counted; `/v1/responses` and `/v1/messages` are counted, and always open, as are "
            "paths that only tokenize; left out = "
            "Refuse if it has limits of tokens or dollars, else Admit",
            "Admit",
        ),
    ] = None
    keys: Annotated[list[TenantKey], BeforeValidator(check_keys)] = api_list(
        "API keys; two have one name while one replaces the other", max_length=64, key="digest"
    )
    subjects: list[TenantSubject] = api_list("bearer tokens (JWT) that identify the tenant", max_length=64)
    limits: list[TenantLimit] = api_list(
        "bounds; each that applies to a request must have room for it", "[{per: Minute, requests: 600}]", max_length=64
    )
    budget: Annotated[
        TenantBudget | None, api_field("cost that the tenant may cause; left out = any", '{usd: "500", per: Month}')
    ] = None
    enforcement: Annotated[
        Choice[Enforcement],
        api_field(
            "Estimated: a request counts with its probable length, and the rest is carried over as debt. "
            "Strict: with the most that it can use, so that no limit is ever exceeded; requests must set max_tokens",
            "Strict",
        ),
    ] = Enforcement.ESTIMATED
    without_redis: Annotated[
        Choice[WithoutRedis],
        api_field(
            "answer to requests that need more of a limit than a gateway has at hand while Redis is away", "Admit"
        ),
    ] = WithoutRedis.REFUSE
    cache_sharing: Annotated[
        Choice[CacheSharing],
        api_field(
            "with whom the tenant shares the KV cache of equal prompts: with itself, its cacheGroup, or all "
            "that say Cluster",
            "Group",
        ),
    ] = CacheSharing.TENANT
    cache_group: Annotated[
        Label | None, api_field("group of tenants that share their cache; left out = none", "research")
    ] = None

    wakes_models: Annotated[
        bool | None,
        api_field("whether its requests start a model that has no instance; left out = true, except for Batch", "true"),
    ] = None
    external_endpoints: Annotated[
        Choice[ExternalEndpoints] | None,
        api_field(
            "whether its requests may leave the cluster, to models with an engine of type OpenAI. Refuse: none "
            "does, as a fallback neither; left out = Admit",
            "Refuse",
        ),
    ] = None
    show_placement: Annotated[
        bool | None,
        api_field(
            "whether responses name the instance, the reason, times and cached tokens; left out = true if "
            "the tenant shares its cache with itself only",
            "true",
        ),
    ] = None

    @model_validator(mode="after")
    def _check_unique_keys(self) -> Self:
        digests = [key.digest.lower() for key in self.keys]
        for index, digest in enumerate(digests):
            if digest in digests[:index]:
                message = f"this digest is already given in keys[{digests.index(digest)}]"
                raise field_error(message, "keep one of the two", at=("keys", index))
        return self

    def to_tenant(self, name: str) -> Tenant:
        """Returns the tenant as gateways use it."""
        limits = [limit for entry in self.limits for limit in entry.to_limits()]
        if self.budget is not None:
            limits.append(self.budget.to_limit())
        is_metered = any(limit.unit not in _UNMETERED_UNITS for limit in limits)
        return Tenant(
            name=name,
            tier=self.tier,
            weight=self.weight,
            models=None if self.models is None else frozenset(self.models),
            keys=tuple(key.to_api_key() for key in self.keys),
            subjects=tuple(TokenSubject(subject.issuer, subject.claim, subject.value) for subject in self.subjects),
            limits=tuple(limits),
            enforcement=self.enforcement,
            without_redis=self.without_redis,
            cache_sharing=self.cache_sharing,
            cache_group=self.cache_group,
            shows_placement=(
                self.cache_sharing is CacheSharing.TENANT if self.show_placement is None else self.show_placement
            ),
            may_wake_models=self.tier is not Tier.BATCH if self.wakes_models is None else self.wakes_models,
            may_leave_cluster=self.external_endpoints is not ExternalEndpoints.REFUSE,
            is_suspended=self.suspended,
            may_use_other_paths=(not is_metered if self.other_paths is None else self.other_paths is OtherPaths.ADMIT),
        )
