"""A report as CSV with the columns of FOCUS 1.2, which cost tools read.

A tenant is a sub account, a model a resource. Columns that begin with `x_` are Fairlead's own.

Source: the FinOps Open Cost and Usage Specification, https://focus.finops.org/focus-specification.
"""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, timedelta
from decimal import Decimal
from typing import Final

from fairlead.errors import plain_text
from fairlead.units import NANO_USD_PER_USD
from fairlead.usage.ledger_reader import LedgerContent
from fairlead.usage.record import UsageTotals
from fairlead.usage.report import attribute_ledger

COLUMNS: Final = (
    *("BilledCost", "BillingAccountId", "BillingAccountName", "BillingCurrency"),
    *("BillingPeriodEnd", "BillingPeriodStart", "ChargeCategory", "ChargeClass", "ChargeDescription"),
    *("ChargeFrequency", "ChargePeriodEnd", "ChargePeriodStart", "ConsumedQuantity", "ConsumedUnit"),
    *("ContractedCost", "EffectiveCost", "InvoiceIssuerName", "ListCost", "PricingCategory"),
    *("PricingQuantity", "PricingUnit", "ProviderName", "PublisherName", "ResourceId", "ResourceName"),
    *("ResourceType", "ServiceCategory", "ServiceName", "ServiceSubcategory", "SkuId"),
    *("SubAccountId", "SubAccountName", "Tags", "x_Adapter", "x_ApiKey", "x_CachedTokens"),
    "x_Dialect",
    *("x_EngineSeconds", "x_InputTokens", "x_OutputTokens", "x_Pool", "x_Requests", "x_SavedCost"),
)
_ISSUER: Final = "Fairlead"
_FORMULA_STARTS: Final = ("=", "+", "-", "@")
_NUMBER: Final = re.compile(r"[+-]?\d+(\.\d+)?")


def usage_rows(rows: Iterable[UsageTotals]) -> list[dict[str, str]]:
    """Returns the charges of usage by the prices of models, one a day, tenant, key and model."""
    found = []
    for row in rows:
        tokens = row.input_tokens + row.output_tokens
        found.append(
            {
                **_charge(row.day, row.model, row.pool, row.cost_nano_usd),
                "ChargeDescription": f"Tokens of {row.model}",
                "ConsumedQuantity": str(tokens),
                "ConsumedUnit": "Tokens",
                "PricingQuantity": str(tokens),
                "PricingUnit": "Tokens",
                "SkuId": f"{row.model}/tokens",
                "SubAccountId": row.tenant,
                "SubAccountName": row.tenant,
                "x_Adapter": row.adapter,
                "x_ApiKey": row.key,
                "x_CachedTokens": str(row.cached_tokens),
                "x_Dialect": row.dialect,
                "x_EngineSeconds": _seconds(row.engine_microseconds),
                "x_InputTokens": str(row.input_tokens),
                "x_OutputTokens": str(row.output_tokens),
                "x_Requests": str(row.requests),
                "x_SavedCost": _usd(row.saved_nano_usd),
            }
        )
    return found


def cost_rows(content: LedgerContent) -> list[dict[str, str]]:
    """Returns the charges of replicas: what each tenant used, and what was unused.

    The sum of `BilledCost` is replica-seconds × price.
    """
    engine_time: dict[tuple[str, str, str, tuple[str, str, str, str]], int] = {}
    for row in content.usage:
        place = row.day, row.model, row.pool, (row.tenant, row.key, row.adapter, row.dialect)
        engine_time[place] = engine_time.get(place, 0) + row.engine_microseconds
    found = []
    for share in attribute_ledger(content).shares:
        charge = _charge(share.day, share.model, share.pool, share.nano_usd)
        charge["SkuId"] = f"{share.model}/{share.pool}"
        if share.user is None:
            charge["ChargeDescription"] = f"Replicas of {share.model}: {share.state}"
        else:
            used = _seconds(engine_time.get((share.day, share.model, share.pool, share.user), 0))
            tenant, key, adapter, dialect = share.user
            charge |= {
                "ChargeDescription": f"Engine time of {share.model}",
                "ConsumedQuantity": used,
                "ConsumedUnit": "Seconds",
                "PricingQuantity": used,
                "PricingUnit": "Seconds",
                "SubAccountId": tenant,
                "SubAccountName": tenant,
                "x_Adapter": adapter,
                "x_ApiKey": key,
                "x_Dialect": dialect,
                "x_EngineSeconds": used,
            }
        found.append(charge)
    return found


def format_csv(rows: Iterable[Mapping[str, object]], columns: Sequence[str] = COLUMNS) -> str:
    """Returns the rows as CSV with a header; None is empty."""
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return out.getvalue()


def _cell(value: object) -> object:
    """Returns a value that no spreadsheet takes for a formula, and no terminal for a command.

    Why: names of models and keys may be of another ledger, or of a fleet file, with any characters.
    """
    if not isinstance(value, str):
        return value
    text = plain_text(value)
    return f"'{text}" if text.lstrip().startswith(_FORMULA_STARTS) and not _NUMBER.fullmatch(text) else text


def _charge(day: str, model: str, pool: str, nano_usd: int) -> dict[str, str]:
    """Returns the columns that all charges have."""
    first = date.fromisoformat(day)
    month = first.replace(day=1)
    next_month = (month + timedelta(days=32)).replace(day=1)
    cost = _usd(nano_usd)
    return {
        "BilledCost": cost,
        "BillingAccountId": _ISSUER.lower(),
        "BillingAccountName": _ISSUER,
        "BillingCurrency": "USD",
        "BillingPeriodEnd": f"{next_month}T00:00:00Z",
        "BillingPeriodStart": f"{month}T00:00:00Z",
        "ChargeCategory": "Usage",
        "ChargeFrequency": "Usage-Based",
        "ChargePeriodEnd": f"{first + timedelta(days=1)}T00:00:00Z",
        "ChargePeriodStart": f"{day}T00:00:00Z",
        "ContractedCost": cost,
        "EffectiveCost": cost,
        "InvoiceIssuerName": _ISSUER,
        "ListCost": cost,
        "PricingCategory": "Standard",
        "ProviderName": _ISSUER,
        "PublisherName": _ISSUER,
        "ResourceId": model,
        "ResourceName": model.rpartition("/")[2],
        "ResourceType": "ModelDeployment",
        "ServiceCategory": "AI and Machine Learning",
        "ServiceName": "Fairlead",
        "ServiceSubcategory": "Generative AI",
        "Tags": "{}",
        "x_Pool": pool,
    }


def _usd(nano_usd: int) -> str:
    return f"{Decimal(nano_usd) / NANO_USD_PER_USD:.9f}"


def _seconds(microseconds: int) -> str:
    return f"{Decimal(microseconds) / 1_000_000:.6f}"
