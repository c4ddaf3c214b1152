"""The usage record of one request, and the totals of many.

A record never holds a prompt, an answer or an API key.
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final, TypeAlias

import msgspec

DIMENSIONS: Final = ("tenant", "key", "model", "adapter", "dialect", "day")
"""The dimensions by which usage can be grouped."""

UsageKey: TypeAlias = tuple[str, str, str, str, str, str, str]
"""Day, tenant, key, model, adapter, dialect and pool."""


class UsageRecord(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """The use of one request.

    - id: the gateway's own id of the request.
    - at: when the request ended, in UTC, such as `2026-11-24T20:31:05.123Z`.
    - tenant, key: empty for a gateway without API keys.
    - model: `namespace/name`.
    - adapter: the LoRA adapter that answered; empty for the model itself.
    - dialect: of the request, such as `chat` or `messages`.
    - status: of the response; 499 if the client disconnected.
    - cached_tokens: the part of input_tokens that the engine had in its KV cache.
    - is_estimated: tokens are the gateway's estimate, since the engine reported none.
    - is_external: an API that others run has answered, whose engine time is not known.
    - cost_nano_usd, saved_nano_usd: None if the model has no price.
    - engine_microseconds: time of the engines in `pool`, by their profile.
    - prefill_pool, prefill_microseconds: where another pool computed the prompt.
    """

    id: str
    at: str
    tenant: str
    model: str
    status: int
    key: str = ""
    adapter: str = ""
    dialect: str = ""
    tier: str = ""
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    is_estimated: bool = False
    cost_nano_usd: int | None = None
    saved_nano_usd: int | None = None
    pool: str = ""
    instance: str = ""
    engine_microseconds: int = 0
    prefill_pool: str = ""
    prefill_microseconds: int = 0
    is_external: bool = False

    @property
    def day(self) -> str:
        return self.at[:10]


class UsageTotals(msgspec.Struct, rename="camel"):
    """The totals of requests that have all of the first fields in common, `day` to `pool`.

    - failed: requests with a status of 400 or more. Those of disconnected clients count.
    - estimated: requests whose tokens are estimates.
    - unpriced: requests for a model without a price, which are not in `cost_nano_usd`.
    """

    day: str = ""
    tenant: str = ""
    key: str = ""
    model: str = ""
    adapter: str = ""
    dialect: str = ""
    pool: str = ""
    requests: int = 0
    failed: int = 0
    estimated: int = 0
    unpriced: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    cost_nano_usd: int = 0
    saved_nano_usd: int = 0
    engine_microseconds: int = 0

    @property
    def identity(self) -> UsageKey:
        return self.day, self.tenant, self.key, self.model, self.adapter, self.dialect, self.pool

    def add(self, other: "UsageTotals") -> None:
        """Adds the amounts of other totals."""
        self.requests += other.requests
        self.failed += other.failed
        self.estimated += other.estimated
        self.unpriced += other.unpriced
        self.input_tokens += other.input_tokens
        self.cached_tokens += other.cached_tokens
        self.output_tokens += other.output_tokens
        self.cost_nano_usd += other.cost_nano_usd
        self.saved_nano_usd += other.saved_nano_usd
        self.engine_microseconds += other.engine_microseconds


class UsageTable:
    """Totals by what their requests have in common, `day` to `pool`."""

    def __init__(self, rows: Iterable[UsageTotals] = ()) -> None:
        self._rows: dict[UsageKey, UsageTotals] = {}
        for row in rows:
            self.add_totals(row)

    def add_record(self, record: UsageRecord) -> None:
        """Adds the use of one request."""
        place = (record.day, record.tenant, record.key, record.model, record.adapter, record.dialect)
        totals = self._totals((*place, record.pool))
        totals.requests += 1
        totals.failed += record.status >= 400
        totals.estimated += record.is_estimated
        totals.input_tokens += record.input_tokens
        totals.cached_tokens += record.cached_tokens
        totals.output_tokens += record.output_tokens
        totals.engine_microseconds += record.engine_microseconds
        if record.cost_nano_usd is None:
            totals.unpriced += 1
        else:
            totals.cost_nano_usd += record.cost_nano_usd
            totals.saved_nano_usd += record.saved_nano_usd or 0
        if record.prefill_pool:
            self._totals((*place, record.prefill_pool)).engine_microseconds += record.prefill_microseconds

    def add_totals(self, row: UsageTotals) -> None:
        self._totals(row.identity).add(row)

    def add_table(self, other: "UsageTable") -> None:
        for row in other._rows.values():
            self.add_totals(row)

    def rows(self) -> list[UsageTotals]:
        return [self._rows[key] for key in sorted(self._rows)]

    def between(self, first_day: str, last_day: str) -> "UsageTable":
        return UsageTable(row for row in self._rows.values() if first_day <= row.day <= last_day)

    def _totals(self, key: UsageKey) -> UsageTotals:
        totals = self._rows.get(key)
        if totals is None:
            totals = self._rows[key] = UsageTotals(*key)
        return totals


def format_time(wall: float) -> str:
    """Returns Unix seconds as a record's time."""
    return datetime.fromtimestamp(wall, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def day_of(wall: float) -> str:
    """Returns the UTC day of Unix seconds."""
    return datetime.fromtimestamp(wall, UTC).date().isoformat()
