"""The management API does what its OpenAPI says, with inputs that Schemathesis draws from it."""

import asyncio
import hmac
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

import httpx
import jsonschema
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from fairlead.audit import Action, AuditEvent
from fairlead_gateway.errors import RelayedError
from fairlead_gateway.messages import LoggedDecision
from fairlead_gateway.supervisor.management import create_management_app
from fairlead_gateway.supervisor.management.access.access_scope import AccessScope, Permission
from fairlead_gateway.supervisor.management.access.manage_tokens import ManageTokens
from fairlead_testing.pytest_hooks.nightly import shortened

URL = "http://127.0.0.1"
PEPPER = b"pepper"
SCOPES = {
    "reader": AccessScope("reader", frozenset({"acme"}), frozenset({Permission.READ, Permission.AUDIT})),
    "viewer": AccessScope("viewer", frozenset({"acme"}), frozenset({Permission.FLEET})),
}
TOKENS = ("full", "full", "full", "reader", "viewer", "unknown", None)
EXAMPLES = shortened(settings.default.max_examples, 8)
"""Inputs of each operation."""
MAX_URL = 65_536
"""Characters that httpx takes."""
PREVIEW_STATUSES = (400, 404, 413, 415, 422, 429, 500, 501, 502, 503, 504, 508)


class ManagedGateway:
    """The management app over one gateway, called on one event loop."""

    def __init__(self, view: Any) -> None:
        tokens = ManageTokens("full", PEPPER)
        tokens.replace({hmac.digest(PEPPER, name.encode(), "sha256"): scope for name, scope in SCOPES.items()})
        transport = httpx.ASGITransport(app=create_management_app(view, tokens=tokens))
        self._client = httpx.AsyncClient(transport=transport, base_url=URL)
        self.runner = asyncio.Runner()

    def send(self, request: httpx.Request) -> httpx.Response:
        """Returns the response to a request."""
        return self.runner.run(self._client.send(request))

    def send_case(self, case: schemathesis.Case, token: str | None) -> httpx.Response:
        """Returns the response to what Schemathesis drew, sent with a token."""
        drawn = case.as_transport_kwargs(base_url=URL)
        drawn.pop("allow_redirects", None)
        prepared = requests.Request(**drawn).prepare()
        headers = [(name, value) for name, value in prepared.headers.items() if name.lower() != "authorization"]
        headers += [] if token is None else [("authorization", f"Bearer {token}")]
        assume(len(prepared.url or "") < MAX_URL)
        return self.send(
            httpx.Request(prepared.method or "", prepared.url or "", headers=headers, content=prepared.body)
        )


class Preview:
    """A preview that refuses requests in turn, each with another status of a gateway."""

    def __init__(self) -> None:
        self._numbers = count()

    async def __call__(
        self, path: str, body: bytes, session: str | None, tenant: str | None, headers: Mapping[str, str]
    ) -> list[LoggedDecision]:
        number = next(self._numbers) % (len(PREVIEW_STATUSES) + 1)
        if number < len(PREVIEW_STATUSES):
            raise RelayedError(PREVIEW_STATUSES[number], "it would be refused", "model", None)
        return []


@pytest.fixture
def managed(made_up: Any) -> Iterator[ManagedGateway]:
    """Returns a gateway that tenants have used."""
    made_up.serve(40)
    for tenant in ("acme", "beta"):
        made_up.serve_tenant(tenant, f"req_{tenant}", client_id="job-7")
        made_up.audit.add(AuditEvent(Action.KEY_CREATED, f"ApiKey/{tenant}/prod", "kubectl", tenant, after={"x": None}))
    gateway = ManagedGateway(made_up)
    yield gateway
    gateway.runner.close()


def _description(managed: ManagedGateway) -> dict[str, Any]:
    answer = managed.send(httpx.Request("GET", f"{URL}/openapi.json", headers={"authorization": "Bearer full"}))
    description: dict[str, Any] = answer.json()
    return description


@pytest.mark.property
@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize("refuses_previews", [False, True])
def test_every_route_answers_as_described(
    managed: ManagedGateway, made_up: Any, mode: GenerationMode, refuses_previews: bool
) -> None:
    if refuses_previews:
        made_up.preview_route = Preview()
    statuses: Counter[tuple[str, int]] = Counter()
    for result in schemathesis.openapi.from_dict(_description(managed)).get_all_operations():
        operation = result.ok()
        has_input = operation.query or operation.path_parameters or operation.body
        if refuses_previews != (operation.path == "/api/route") or (mode is GenerationMode.NEGATIVE and not has_input):
            continue

        @settings(suppress_health_check=list(HealthCheck), max_examples=EXAMPLES)
        @given(operation.as_strategy(generation_mode=mode), st.sampled_from(TOKENS))
        def check(case: schemathesis.Case, token: str | None) -> None:
            response = managed.send_case(case, token)
            statuses[case.operation.path, response.status_code] += 1
            # What the gateway would refuse is valid input of a preview.
            excluded = [not_a_server_error, positive_data_acceptance] if refuses_previews else []
            case.validate_response(response, excluded_checks=excluded)

        check()
    refused = {400} if mode is GenerationMode.NEGATIVE else {400, 404}
    assert {status for _, status in statuses} >= (refused if refuses_previews else {200, 401, 403})


def test_every_other_method_is_405_in_the_error_shape(managed: ManagedGateway) -> None:
    description = _description(managed)
    schema = {"$ref": "#/components/schemas/ErrorOut", "components": description["components"]}
    for path, operations in description["paths"].items():
        for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"):
            if method.lower() in operations:
                continue
            request = httpx.Request(method, URL + path.format(request_id="r"), headers={"authorization": "Bearer full"})
            response = managed.send(request)
            assert (path, method, response.status_code) == (path, method, 405)
            assert response.headers["allow"] == ("POST" if "post" in operations else "GET")
            if method != "HEAD":
                jsonschema.validate(response.json(), schema)
            assert "405" in next(iter(operations.values()))["responses"]


@pytest.mark.parametrize(("token", "status"), [(None, 401), ("unknown", 401), ("viewer", 403)])
def test_refusals_have_the_described_shape(managed: ManagedGateway, token: str | None, status: int) -> None:
    description = _description(managed)
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    response = managed.send(httpx.Request("GET", f"{URL}/api/audit", headers=headers))
    assert response.status_code == status
    schema = {"$ref": "#/components/schemas/ErrorOut", "components": description["components"]}
    jsonschema.validate(response.json(), schema)
    assert response.json()["error"]["hint"]
