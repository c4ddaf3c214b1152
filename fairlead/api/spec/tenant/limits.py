"""`spec.limits` and `spec.budget` of a ModelTenant: what it may use."""

from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Any, ClassVar

from pydantic import Field

from fairlead import units
from fairlead.api.spec.tenant.credentials import KeyName
from fairlead.api.spec.tenant.model_names import ModelKey
from fairlead.api.strict_model import Rule, StrictModel
from fairlead.api.value_types import Cost, Size
from fairlead.tenants.model import Limit, LimitUnit, Window


class OnExceeded(StrEnum):
    """The answer to requests beyond a limit."""

    REFUSE = "Refuse"
    WARN = "Warn"


_Count = Annotated[int, Field(ge=1, le=10**15, json_schema_extra={"format": "int64"})]


def _count(description: str, example: str) -> Any:
    return Field(description=description, examples=[example])


_WINDOWED = ("requests", "inputTokens", "outputTokens", "tokens", "usd")
_RETURNED = ("concurrency", "bytesInFlight")


def _has_any(names: tuple[str, ...]) -> str:
    return " || ".join(f"has(self.{name})" for name in names)


class TenantLimit(StrictModel):
    """Bounds on what a tenant, one of its keys, or its requests for one model may use."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel=f"{_has_any(_WINDOWED)} || {_has_any(_RETURNED)}",
            message="the limit has no amount",
            fix="add one, for example `requests: 600`",
            violation=lambda limit: not limit.has_windowed and not limit.has_returned,
        ),
        Rule(
            cel=f"has(self.per) || !({_has_any(_WINDOWED)})",
            message="requests, tokens and dollars are counted per Minute, Day or Month",
            fix="add `per: Minute`",
            at=("per",),
            violation=lambda limit: limit.per is None and limit.has_windowed,
        ),
        Rule(
            cel=f"!has(self.per) || !({_has_any(_RETURNED)})",
            message="concurrency and bytesInFlight are counted at each moment, not per time",
            fix="move them to an entry without `per`",
            at=("per",),
            violation=lambda limit: limit.per is not None and limit.has_returned,
        ),
    )

    per: Annotated[
        Window | None,
        Field(
            strict=False,
            description="calendar window in UTC over which amounts are counted; left out for concurrency and bytesInFlight",
            examples=["Minute"],
        ),
    ] = None
    requests: Annotated[_Count | None, _count("requests", "600")] = None
    input_tokens: Annotated[_Count | None, _count("tokens of prompts", "300000")] = None
    output_tokens: Annotated[_Count | None, _count("generated tokens", "100000")] = None
    tokens: Annotated[_Count | None, _count("tokens of prompts and generated tokens", "400000")] = None
    usd: Annotated[Cost | None, Field(description="cost in US dollars, by the models' prices", examples=['"20"'])] = (
        None
    )
    concurrency: Annotated[_Count | None, _count("requests at the same time", "64")] = None
    bytes_in_flight: Annotated[
        Size | None, Field(description="bytes of the bodies of unfinished requests", examples=["64Mi"])
    ] = None
    key: Annotated[
        KeyName | None,
        Field(description="name of a key: only its requests count; left out = all keys", examples=["ci"]),
    ] = None
    model: Annotated[
        ModelKey | None,
        Field(
            description="`namespace/name`: only requests for this model, its adapters included, or for this LoRA "
            "adapter count; left out = all models",
            examples=["chat/llama-70b"],
        ),
    ] = None
    on_exceeded: Annotated[
        OnExceeded,
        Field(strict=False, description="Refuse: 429; Warn: requests pass, and it is reported", examples=["Warn"]),
    ] = OnExceeded.REFUSE

    @property
    def has_windowed(self) -> bool:
        """Whether an amount is counted over a window."""
        return any(
            amount is not None
            for amount in (self.requests, self.input_tokens, self.output_tokens, self.tokens, self.usd)
        )

    @property
    def has_returned(self) -> bool:
        """Whether an amount is returned at the end of a request."""
        return self.concurrency is not None or self.bytes_in_flight is not None

    @property
    def scope(self) -> tuple[Window | None, str | None, str | None]:
        """The window, key and model that the amounts are for."""
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

    usd: Annotated[Cost, Field(description="cost in US dollars, by the models' prices", examples=['"500"'])]
    per: Annotated[
        Window, Field(strict=False, description="calendar window in UTC of the budget", examples=["Month"])
    ] = Window.MONTH
    on_exceeded: Annotated[
        OnExceeded,
        Field(strict=False, description="Refuse: 429; Warn: requests pass, and it is reported", examples=["Warn"]),
    ] = OnExceeded.REFUSE

    def to_limit(self) -> Limit:
        """Returns the budget as a limit of cost."""
        return Limit(LimitUnit.COST, units.parse_usd(self.usd), self.per, is_soft=self.on_exceeded is OnExceeded.WARN)
