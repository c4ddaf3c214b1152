"""`/api/usage` answers by the rights of the token."""

from typing import Any

import httpx

from fairlead.usage.ledger_reader import LedgerContent
from fairlead.usage.record import UsageTotals
from fairlead.usage.replica_log import ReplicaSpan, ReplicaView
from fairlead_gateway.supervisor.management.access.access_scope import AccessScope, Permission
from fairlead_testing.gateway.management_client import management_answer, scoped_tokens

SCOPES = {
    "acme": AccessScope("acme", frozenset({"acme"}), frozenset({Permission.READ})),
    "blind": AccessScope("blind", None, frozenset({Permission.AUDIT})),
}


def content(first_day: str, last_day: str) -> LedgerContent:
    usage = [UsageTotals(last_day, name, "k", "x/tiny", pool="main", requests=1) for name in ("acme", "zeta")]
    return LedgerContent("id", usage, [ReplicaSpan("a/1/0", 0, 60, ReplicaView("x/tiny", "main", "Ready", 7))])


def get(view: Any, token: str, query: str) -> httpx.Response:
    view.usage_ledger = content
    return management_answer(view, f"/api/usage?{query}", token=token, app={"tokens": scoped_tokens("full", SCOPES)})


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
