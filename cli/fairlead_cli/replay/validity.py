"""What gateway and engines themselves say about a run: how late their loops were, and how many requests they saw.

A measurement is believed only when no loop lagged and nobody else used the stack meanwhile.
"""

import re
from collections.abc import Iterable, Mapping

import httpx
import msgspec

from fairlead.units import format_duration

MAX_LOOP_LAG_SECONDS = 0.020
"""A run is not believed when the p99 of any loop's lateness is above this (wall seconds)."""

_SERIES = re.compile(r"^(fairlead_(?:gateway|sim)_loop_lag_seconds)\{([^}]*)\}\s+(\S+)\s*$", re.MULTILINE)


def lag_p99(metrics: str) -> float | None:
    """The largest p99 of loop lateness in a Prometheus text, in seconds; None when it has none."""
    found = [float(value) for _, labels, value in _SERIES.findall(metrics) if 'quantile="0.99"' in labels]
    known = [value for value in found if value == value]  # a summary without observations says NaN
    return max(known, default=None)


def read_lags(urls: Iterable[str], *, timeout_seconds: float = 10.0, attempts: int = 3) -> dict[str, float | None]:
    """The p99 by base URL; None where /metrics does not say. One that does not answer is asked again."""
    lags: dict[str, float | None] = {}
    with httpx.Client(timeout=timeout_seconds, trust_env=False) as client:
        for url in urls:
            lags[url] = None
            for _ in range(attempts):
                try:
                    answer = client.get(f"{url}/metrics")
                except httpx.HTTPError:
                    continue
                if answer.status_code == 200:
                    lags[url] = lag_p99(answer.text)
                    break
    return lags


def count_finished_requests(manage: str, *, timeout_seconds: float = 10.0) -> int | None:
    """Requests that the gateway has ended since its start, whoever sent them; None when it does not say."""
    with httpx.Client(timeout=timeout_seconds, trust_env=False) as client:
        try:
            answer = client.get(f"{manage.rstrip('/')}/api/stats")
            found = msgspec.json.decode(answer.content, type=_StatsPage)
        except (httpx.HTTPError, ValueError):  # msgspec's own errors are ValueErrors too
            return None
    return sum(model.totals.requests for model in found.models.values())


class _RequestTotals(msgspec.Struct):
    requests: int


class _ModelTotals(msgspec.Struct):
    totals: _RequestTotals


class _StatsPage(msgspec.Struct):
    """``/api/stats``, as far as it is read here."""

    models: dict[str, _ModelTotals]


def lag_doubts(lags: Mapping[str, float | None]) -> list[str]:
    """Why a run with these latenesses is not to be believed; empty when it is. Engines may keep theirs to themselves."""
    found = []
    for name, lag in lags.items():
        if lag is None:
            if not name.startswith("engine"):
                found.append(f"{name}: how late it ran is not known")
        elif lag > MAX_LOOP_LAG_SECONDS:
            found.append(
                f"{name} ran {format_duration(lag)} late (p99), more than {format_duration(MAX_LOOP_LAG_SECONDS)}"
            )
    return found


def foreign_request_doubts(before: int | None, after: int | None, ours: int) -> list[str]:
    """A doubt when the gateway answered more requests than were sent here."""
    if before is None or after is None or after - before <= ours:
        return []
    return [f"the gateway answered {after - before - ours} requests of somebody else meanwhile"]
