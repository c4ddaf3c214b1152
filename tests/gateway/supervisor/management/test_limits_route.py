"""`/api/limits` answers by the rights of the token."""

import asyncio
import hmac
from typing import Any

import httpx

from fairlead.management_api import LimitOut
from fairlead_gateway.supervisor.management import create_management_app
from fairlead_gateway.supervisor.management.access.access_scope import AccessScope, Permission
from fairlead_gateway.supervisor.management.access.manage_tokens import ManageTokens

_PEPPER = b"pepper"
_LIMIT = {"unit": "requests", "per": "Minute", "key": "ci", "model": None, "amount": 60, "soft": False}


def _get(view: Any, token: str, query: str = "") -> httpx.Response:
    view.limits = [LimitOut(tenant=name, **_LIMIT, used=12, available=48, resets_at=60.0) for name in ("acme", "zeta")]
    tokens = ManageTokens("full", _PEPPER)
    scope = AccessScope("acme", frozenset({"acme"}), frozenset({Permission.READ}))
    tokens.replace({hmac.digest(_PEPPER, b"acme", "sha256"): scope})

    async def main() -> httpx.Response:
        transport = httpx.ASGITransport(app=create_management_app(view, tokens=tokens))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.get(f"/api/limits?{query}", headers={"authorization": f"Bearer {token}"})

    return asyncio.run(main())


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
