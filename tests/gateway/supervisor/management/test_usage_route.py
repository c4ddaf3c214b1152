"""`/api/usage` answers by the rights of the token."""

import asyncio
import hmac
from typing import Any

import httpx

from fairlead.usage.ledger_reader import LedgerContent
from fairlead.usage.record import UsageTotals
from fairlead.usage.replica_log import ReplicaSpan, ReplicaView
from fairlead_gateway.supervisor.management import create_management_app
from fairlead_gateway.supervisor.management.access.access_scope import AccessScope, Permission
from fairlead_gateway.supervisor.management.access.manage_tokens import ManageTokens

PEPPER = b"pepper"
SCOPES = {
    "acme": AccessScope("acme", frozenset({"acme"}), frozenset({Permission.READ})),
    "blind": AccessScope("blind", None, frozenset({Permission.AUDIT})),
}


def content(first_day: str, last_day: str) -> LedgerContent:
    usage = [UsageTotals(last_day, name, "k", "x/tiny", pool="main", requests=1) for name in ("acme", "zeta")]
    return LedgerContent("id", usage, [ReplicaSpan("a/1/0", 0, 60, ReplicaView("x/tiny", "main", "Ready", 7))])


def get(view: Any, token: str, query: str) -> httpx.Response:
    view.usage_ledger = content
    tokens = ManageTokens("full", PEPPER)
    tokens.replace({hmac.digest(PEPPER, name.encode(), "sha256"): scope for name, scope in SCOPES.items()})

    async def main() -> httpx.Response:
        transport = httpx.ASGITransport(app=create_management_app(view, tokens=tokens))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.get(f"/api/usage?{query}", headers={"authorization": f"Bearer {token}"})

    return asyncio.run(main())


def tenants(response: httpx.Response) -> list[str]:
    assert response.status_code == 200, response.text
    return [row["tenant"] for row in response.json()["usage"]]


def test_token_sees_the_use_of_its_tenants_alone(made_up: Any) -> None:
    assert tenants(get(made_up, "full", "")) == ["acme", "zeta"]
    assert tenants(get(made_up, "full", "tenant=zeta")) == ["zeta"]
    assert tenants(get(made_up, "acme", "")) == ["acme"]
    assert tenants(get(made_up, "acme", "tenant=zeta")) == []
    assert get(made_up, "blind", "").status_code == 403


def test_replicas_are_for_tokens_that_see_the_fleet(made_up: Any) -> None:
    assert [span["replica"] for span in get(made_up, "full", "replicas=true").json()["replicas"]] == ["a/1/0"]
    assert get(made_up, "full", "").json()["replicas"] == []
    assert get(made_up, "acme", "replicas=true").status_code == 403
