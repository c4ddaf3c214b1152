"""Reports as data for programs: JSON, YAML and CSV. Amounts of money are exact, as text."""

from collections.abc import Mapping, Sequence

from fairlead.units import format_exact_usd
from fairlead.usage.focus import format_csv
from fairlead.usage.record import UsageTotals
from fairlead.usage.report import CostReport


def usage_rows(rows: Sequence[UsageTotals], dimensions: Sequence[str]) -> list[dict[str, object]]:
    """Returns one mapping for each group."""
    return [
        {
            **{name: getattr(row, name) for name in dimensions},
            "requests": row.requests,
            "failed": row.failed,
            "estimated": row.estimated,
            "unpriced": row.unpriced,
            "inputTokens": row.input_tokens,
            "cachedTokens": row.cached_tokens,
            "outputTokens": row.output_tokens,
            "engineSeconds": row.engine_microseconds / 1e6,
            "costUsd": format_exact_usd(row.cost_nano_usd),
            "savedUsd": format_exact_usd(row.saved_nano_usd),
        }
        for row in rows
    ]


def cost_rows(report: CostReport) -> list[dict[str, object]]:
    """Returns one mapping for each group, and for what was unused."""
    return [
        {
            **dict(zip(report.dimensions, row.group, strict=True)),
            "state": row.state or "Used",
            "engineSeconds": row.engine_microseconds / 1e6,
            "costUsd": format_exact_usd(row.nano_usd),
            "savedUsd": format_exact_usd(row.saved_nano_usd),
        }
        for row in report.rows
    ]


def format_rows(rows: Sequence[Mapping[str, object]]) -> str:
    """Returns rows as CSV with a header, without a line break at its end; None is empty."""
    return format_csv(rows, list(rows[0])).rstrip("\n") if rows else ""
