"""How late the loops of the gateway and the engines ran: read from their own /metrics once a run is over."""

import re
from collections.abc import Iterable

import httpx

LIMIT_SECONDS = 0.020
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
