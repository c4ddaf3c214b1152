"""`/api/limits` answers by the rights of the token."""

from typing import Any

import httpx

from fairlead.management_api import LimitOut
from fairlead_gateway.supervisor.management.access.access_scope import AccessScope, Permission
from fairlead_testing.gateway.management_client import management_answer, scoped_tokens

_LIMIT = {"unit": "requests", "per": "Minute", "key": "ci", "model": None, "amount": 60, "soft": False}


def _get(view: Any, token: str, query: str = "") -> httpx.Response:
    view.limits = [LimitOut(tenant=name, **_LIMIT, used=12, available=48, resets_at=60.0) for name in ("acme", "zeta")]
    scope = AccessScope("acme", frozenset({"acme"}), frozenset({Permission.READ}))
    return management_answer(
        view, f"/api/limits?{query}", token=token, app={"tokens": scoped_tokens("full", {"acme": scope})}
    )


def test_a_limit_is_shown_with_its_use_and_reset(made_up: Any) -> None:
    shown = _get(made_up, "full", "tenant=acme").json()["limits"]
    assert shown == [
        {
            "tenant": "acme",
            "unit": "requests",
            "per": "Minute",
            "key": "ci",
            "model": None,
            "amount": 60,
            "soft": False,
            "used": 12,
            "available": 48,
            "resets_at": 60.0,
        }
    ]


def test_a_token_sees_the_limits_of_its_tenants_alone(made_up: Any) -> None:
    assert [limit["tenant"] for limit in _get(made_up, "full").json()["limits"]] == ["acme", "zeta"]
    assert [limit["tenant"] for limit in _get(made_up, "acme").json()["limits"]] == ["acme"]
    assert _get(made_up, "acme", "tenant=zeta").json()["limits"] == []
