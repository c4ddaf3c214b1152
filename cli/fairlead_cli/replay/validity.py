"""Validity of a run: the loop lag of gateway and engines, and requests of other clients."""

import re
from collections.abc import Iterable, Mapping

import httpx
import msgspec

from fairlead.units import format_duration

MAX_LOOP_LAG_SECONDS = 0.020
"""A run is not valid when the p99 of any loop lag is above this (wall seconds)."""

_SERIES = re.compile(r"^(fairlead_(?:gateway|sim)_loop_lag_seconds)\{([^}]*)\}\s+(\S+)\s*$", re.MULTILINE)


def lag_p99(metrics: str) -> float | None:
    """Returns the largest p99 of loop lag in Prometheus text, in seconds; None without any."""
    values = [float(value) for _, labels, value in _SERIES.findall(metrics) if 'quantile="0.99"' in labels]
    known = [value for value in values if value == value]  # a summary without observations says NaN
    return max(known, default=None)


def read_lags(urls: Iterable[str], *, timeout_seconds: float = 10.0, attempts: int = 3) -> dict[str, float | None]:
    """Returns the p99 of loop lag in seconds by base URL; None without an answer or without this
    metric.

    attempts: number of tries while a process does not answer.
    """
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
    """Returns the requests that the gateway has finished since its start; None when unknown."""
    with httpx.Client(timeout=timeout_seconds, trust_env=False) as client:
        try:
            answer = client.get(f"{manage.rstrip('/')}/api/stats")
            stats = msgspec.json.decode(answer.content, type=_StatsPage)
        except (httpx.HTTPError, ValueError):  # msgspec's own errors are ValueErrors too
            return None
    return sum(model.totals.requests for model in stats.models.values())


class _RequestTotals(msgspec.Struct):
    requests: int


class _ModelTotals(msgspec.Struct):
    totals: _RequestTotals


class _StatsPage(msgspec.Struct):
    """The used part of ``/api/stats``."""

    models: dict[str, _ModelTotals]


def lag_doubts(lags: Mapping[str, float | None]) -> list[str]:
    """Returns why a run with these lags is not valid; empty when it is valid.

    An unknown lag is a reason, except that of an engine.
    """
    reasons = []
    for name, lag in lags.items():
        if lag is None:
            if not name.startswith("engine"):
                reasons.append(f"{name}: its loop lag is not known")
        elif lag > MAX_LOOP_LAG_SECONDS:
            reasons.append(
                f"{name} ran {format_duration(lag)} late (p99), more than {format_duration(MAX_LOOP_LAG_SECONDS)}"
            )
    return reasons


def foreign_request_doubts(before: int | None, after: int | None, own_requests: int) -> list[str]:
    """Returns a doubt when the gateway finished more requests than were sent here."""
    if before is None or after is None or after - before <= own_requests:
        return []
    return [f"the gateway answered {after - before - own_requests} requests of other clients meanwhile"]
