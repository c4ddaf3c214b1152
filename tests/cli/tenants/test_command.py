"""Limits as `fairlead tenants` describes them."""

from typing import Any

import pytest

from fairlead.api.spec.tenant.spec import AMOUNTS
from fairlead_cli.tenants.command import describe_limits


@pytest.mark.parametrize(
    ("limit", "text"),
    [
        ({"per": "Day", "usd": "20"}, "20 USD per day"),
        (
            {"per": "Minute", "requests": 600, "tokens": 9, "key": "ci"},
            "600 requests, 9 tokens per minute of the key ci",
        ),
        ({"concurrency": 8, "bytesInFlight": "64Mi"}, "8 concurrency, 64Mi bytesInFlight"),
        *[({name: 7}, f"7 {name}") for name in AMOUNTS if name != "usd"],
    ],
)
def test_a_limit_names_its_amounts_window_and_key(limit: dict[str, Any], text: str) -> None:
    assert describe_limits({"limits": [limit]}) == [text]
