"""Scoped management tokens: each sees the data of its tenants, by its permissions, and no more."""

from typing import Any

import httpx
import pytest

from fairlead.audit import Action, AuditEvent
from fairlead.tenants.model import ApiKey, Tenant
from fairlead_gateway.supervisor.management.access.access_scope import AccessScope, Permission
from fairlead_gateway.supervisor.management.access.manage_tokens import ManageTokens
from fairlead_testing.gateway.management_client import management_answer, scoped_tokens

PEPPER = b"pepper"
READ, AUDIT, FLEET, PREVIEW = Permission
SCOPES = {
    "t-acme": AccessScope("acme-team", frozenset({"acme"}), frozenset({READ})),
    "t-both": AccessScope("support", frozenset({"acme", "beta"}), frozenset({READ, AUDIT})),
    "t-all": AccessScope("auditors", None, frozenset({READ, AUDIT})),
    "t-preview": AccessScope("testers", frozenset({"acme"}), frozenset({PREVIEW})),
    "t-fleet": AccessScope("dashboards", frozenset({"acme"}), frozenset({FLEET})),
}


def _tokens() -> ManageTokens:
    return scoped_tokens("t-installation", SCOPES)


def _get(view: Any, path: str, token: str | None, *, seen: list[Any] | None = None) -> httpx.Response:
    def on_access(*request: Any) -> None:
        if seen is not None:
            seen.append(request)

    return management_answer(view, path, token=token, app={"tokens": _tokens(), "on_access": on_access})


@pytest.fixture
def shared(made_up: Any) -> Any:
    """Returns a gateway that two tenants and a client without a key have used."""
    made_up.serve_tenant("acme", "req_1", client_id="job-7")
    made_up.serve_tenant("beta", "req_2", client_id="job-7")
    made_up.serve(1)
    for tenant in ("acme", "beta", None):
        made_up.audit.add(AuditEvent(Action.KEY_CREATED, f"ApiKey/{tenant}/prod", "kubectl", tenant))
    return made_up


def test_metrics_of_tenants_need_a_token_that_reads_all_tenants(shared: Any) -> None:
    shared.telemetry.tenant_values = {"tenant_cost_usd_total": [("acme", 3.5)], "budget_used_ratio": [("acme", 0.5)]}
    for token in (None, "wrong", "t-acme", "t-both", "t-preview", "t-fleet", "t-all", "t-installation"):
        answer = _get(shared, "/metrics", token)
        assert answer.status_code == 200
        assert "fairlead_gateway_received_total{" in answer.text
        assert ("acme" in answer.text) == (token in ("t-all", "t-installation")), token


def _ids(response: httpx.Response) -> list[str]:
    return [decision["request_id"] for decision in response.json()["decisions"]]


def test_a_token_sees_the_decisions_of_its_tenants_only(shared: Any) -> None:
    assert _ids(_get(shared, "/api/decisions", "t-acme")) == ["req_1"]
    assert _ids(_get(shared, "/api/decisions", "t-both")) == ["req_2", "req_1"]
    assert len(_ids(_get(shared, "/api/decisions", "t-all"))) == 3
    assert len(_ids(_get(shared, "/api/decisions", "t-installation"))) == 3
    assert _ids(_get(shared, "/api/decisions?tenant=beta", "t-acme")) == []
    assert _ids(_get(shared, "/api/decisions?tenant=beta", "t-both")) == ["req_2"]


def test_a_decision_of_another_tenant_is_not_found_by_any_id(shared: Any) -> None:
    shared.serve_tenant("acme", "req_3", client_id="req_2")
    assert _get(shared, "/api/decisions/req_2", "t-acme").json()["request_id"] == "req_3"
    assert _get(shared, "/api/decisions/req_2", "t-installation").json()["request_id"] == "req_2"
    assert _get(shared, "/api/decisions/job-7", "t-acme").json()["request_id"] == "req_1"
    assert _get(shared, "/api/decisions/req_2?tenant=beta", "t-acme").status_code == 404
    unknown = _get(shared, "/api/decisions/req_9", "t-acme")
    other = _get(shared, "/api/decisions/req_2?tenant=beta", "t-acme")
    assert unknown.json()["error"]["message"].replace("req_9", "") == other.json()["error"]["message"].replace(
        "req_2", ""
    )


def test_who_may_not_see_the_fleet_sees_no_instance_no_load_and_no_cached_tokens(shared: Any) -> None:
    shared.serve(30)
    everything = _get(shared, "/api/decisions?limit=40", "t-installation")
    instances = [instance.id for instances in shared.snapshot.instances.values() for instance in instances]
    assert any(name in everything.text for name in instances)
    for token, path in (("t-all", "/api/decisions?limit=40"), ("t-acme", "/api/decisions/req_1")):
        shown = _get(shared, path, token)
        assert shown.status_code == 200
        assert not any(name in shown.text for name in instances)
        assert "matched_tokens" not in shown.text
    outcomes = [
        decision["outcome"] for decision in _get(shared, "/api/decisions?limit=40", "t-all").json()["decisions"]
    ]
    assert {outcome["cached_tokens"] for outcome in outcomes if outcome} == {None}
    assert {outcome["prompt_tokens"] for outcome in outcomes if outcome} != {None}


def test_an_id_that_several_tenants_chose_is_asked_with_the_tenant(shared: Any) -> None:
    answer = _get(shared, "/api/decisions/job-7", "t-installation")
    assert answer.status_code == 409
    assert "?tenant=NAME" in answer.json()["error"]["message"]
    assert _get(shared, "/api/decisions/job-7?tenant=beta", "t-installation").json()["request_id"] == "req_2"


def test_audit_records_are_of_the_tenants_of_the_token(shared: Any) -> None:
    def tenants(token: str, query: str = "") -> list[str | None]:
        return [record["tenant"] for record in _get(shared, f"/api/audit{query}", token).json()["records"]]

    assert tenants("t-both") == ["beta", "acme"]
    assert tenants("t-all") == tenants("t-installation") == [None, "beta", "acme"]
    assert tenants("t-installation", "?tenant=acme") == ["acme"]
    assert tenants("t-both", "?limit=1") == ["beta"]
    assert tenants("t-both", f"?since={shared.clock.wall() + 1}") == []


@pytest.mark.parametrize(
    ("token", "path", "permission"),
    [
        ("t-acme", "/api/audit", "Audit"),
        ("t-acme", "/api/fleet", "Fleet"),
        ("t-acme", "/api/stats", "Fleet"),
        ("t-fleet", "/api/decisions", "Read"),
        ("t-fleet", "/api/decisions/req_1", "Read"),
        ("t-all", "/api/fleet", "Fleet"),
    ],
)
def test_a_missing_permission_is_403_that_names_it(shared: Any, token: str, path: str, permission: str) -> None:
    answer = _get(shared, path, token)
    assert answer.status_code == 403
    error = answer.json()["error"]
    assert error["message"] == f"the token {SCOPES[token].name} may not do this: it needs the permission {permission}"
    assert "administrator" in error["hint"]


@pytest.mark.parametrize("path", ["/api/new-route", "/api/fleet/", "/docs", "/api/decisionsX", "/api/usage/"])
def test_a_route_that_nobody_decided_about_is_closed_to_limited_tokens(shared: Any, path: str) -> None:
    assert _get(shared, path, "t-all").status_code == 403
    assert _get(shared, path, "t-installation").status_code in (307, 404)


def test_tenants_are_shown_with_the_last_use_of_their_keys(shared: Any) -> None:
    digests = [bytes([number]) * 32 for number in range(3)]
    keys = (ApiKey("prod", digests[0]), ApiKey("ci", digests[1], 2_000.0))
    shared.tenant_table = {
        "beta": Tenant("beta", keys=(ApiKey("prod", digests[2]),)),
        "acme": Tenant("acme", keys=keys),
    }
    shared.key_uses = {digests[0]: 1_020.0}
    shown = _get(shared, "/api/tenants", "t-all").json()
    assert shown["started_at"] == 1_000.0
    assert [tenant["name"] for tenant in shown["tenants"]] == ["acme", "beta"]
    assert shown["tenants"][0]["keys"] == [
        {"name": "prod", "digest": "000000000000", "expires_at": None, "last_used_at": 1_020.0},
        {"name": "ci", "digest": "010101010101", "expires_at": 2_000.0, "last_used_at": None},
    ]
    own = _get(shared, "/api/tenants", "t-acme").json()
    assert [tenant["name"] for tenant in own["tenants"]] == ["acme"]
    assert _get(shared, "/api/tenants?tenant=beta", "t-acme").json()["tenants"] == []
    assert _get(shared, "/api/tenants", "t-fleet").status_code == 403


def test_who_may_not_see_the_fleet_learns_no_name_of_a_model(shared: Any) -> None:
    there, not_there = (_get(shared, f"/api/decisions?model={name}", "t-both") for name in ("qwen3-8b", "qwen3-9b"))
    assert there.content == not_there.content
    assert there.json() == {"decisions": []}
    assert "qwen3-8b" in _get(shared, "/api/decisions?model=qwen3-9b", "t-installation").text


@pytest.mark.parametrize("token", [None, "", "t-acm", "t-acme ", "t-acme\tx", "x" * 5_000])
def test_an_unknown_token_is_401(shared: Any, token: str | None) -> None:
    assert _get(shared, "/api/decisions", token).status_code == (200 if token == "t-acme " else 401)


def test_open_paths_and_the_description_need_no_permission(shared: Any) -> None:
    assert _get(shared, "/readyz", None).status_code == 200
    assert _get(shared, "/openapi.json", "t-acme").status_code == 200


def test_each_request_is_reported_with_the_name_of_its_token_and_its_route(shared: Any) -> None:
    seen: list[Any] = []
    for path, token in (("/api/decisions/req_1", "t-acme"), ("/api/audit", "t-acme"), ("/api/stats", None)):
        _get(shared, path, token, seen=seen)
    _get(shared, "/readyz", None, seen=seen)
    assert [(scope.name, request.method, request.route, request.status) for scope, request in seen] == [
        ("acme-team", "GET", "/api/decisions/{request_id}", 200),
        ("acme-team", "GET", "/api/audit", 403),
        ("without a known token", "GET", "/api/stats", 401),
    ]


def test_without_any_token_this_machine_sees_everything(shared: Any) -> None:
    assert len(_ids(management_answer(shared, "/api/decisions"))) == 3


def test_a_file_of_tokens_closes_the_port_to_this_machine_too(made_up: Any) -> None:
    assert management_answer(made_up, "/api/decisions", app={"tokens": ManageTokens(None, PEPPER)}).status_code == 401


def test_a_token_of_some_tenants_previews_their_requests_only(shared: Any) -> None:
    def statuses(token: str) -> list[int]:
        paths = [f"/api/route{query}" for query in ("?tenant=acme", "?tenant=beta", "")]
        answers = [
            management_answer(shared, path, token=token, method="POST", json={}, app={"tokens": _tokens()})
            for path in paths
        ]
        return [answer.status_code for answer in answers]

    assert statuses("t-preview") == [200, 403, 403]
    assert shared.previewed == ["acme"]
    assert statuses("t-installation") == [200, 200, 200]
    assert shared.previewed[1:] == ["acme", "beta", None]
