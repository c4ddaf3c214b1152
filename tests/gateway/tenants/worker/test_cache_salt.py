"""The cache salt of a tenant, in the body for the engine and in the hash for routing."""

import json
from typing import Any

import pytest

from fairlead.fleet.model import RequestPolicy
from fairlead.limits import Limits
from fairlead.tenants.model import CacheSharing, Tenant
from fairlead_gateway.caller_key import Caller
from fairlead_gateway.dialects.table import BODY_TYPES
from fairlead_gateway.http.listener import HttpRequest
from fairlead_gateway.http.request_parser import RequestHead
from fairlead_gateway.openai.body_parser import ModelRequest
from fairlead_gateway.openai.request import parse_passthrough_request, parse_request
from fairlead_gateway.routing import RouteRequest
from fairlead_gateway.tenants.worker.tenant_policy import TenantPolicies, takes_cache_salt
from fairlead_testing.gateway.running_gateway import fleet_of

TEXT = "long " * 500
CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": TEXT}]}
ACME, ZETA = Tenant("acme"), Tenant("zeta")
GROUPED = [Tenant(name, cache_sharing=CacheSharing.GROUP, cache_group="research") for name in ("one", "two")]
OPEN = Tenant("open", cache_sharing=CacheSharing.CLUSTER)
POLICIES = TenantPolicies(b"secret")


def isolated(
    tenant: Tenant | None,
    body: bytes | dict[str, Any],
    path: str = "/v1/chat/completions",
    *,
    policy: RequestPolicy | None = None,
    policies: TenantPolicies = POLICIES,
    header: str = "",
) -> tuple[ModelRequest, RouteRequest]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = [(b"x-session-id", header.encode())] if header else []
    head = RequestHead("POST", path, fields, 11, len(data), keep_alive=True, expects_continue=False)
    fleet = fleet_of([], requests=policy)
    if path in BODY_TYPES:
        request = parse_request(path, data, fleet, Limits())
    else:
        request = parse_passthrough_request(head, data, fleet, Limits())
    http_request = HttpRequest(head, data, "r", 0.0, 0.0, None if tenant is None else Caller(tenant, "key"))
    return request, policies.build_route_request(request, http_request, "r")


def salt_of(tenant: Tenant | None, body: bytes | dict[str, Any], **more: Any) -> str | None:
    salt: str | None = json.loads(isolated(tenant, body, **more)[0].body).get("cache_salt")
    return salt


def hashes_of(tenant: Tenant | None, body: dict[str, Any], **more: Any) -> tuple[int, ...]:
    return isolated(tenant, body, **more)[1].chain.hashes


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT),
        ("/v1/chat/completions", CHAT | {"stream": True, "tools": [{"type": "function", "function": {"name": "f"}}]}),
        ("/v1/completions", {"model": "tiny", "prompt": TEXT}),
        ("/v1/embeddings", {"model": "tiny", "input": TEXT}),
        ("/v1/responses", {"model": "tiny", "input": TEXT}),
        ("/v1/messages", {"model": "tiny", "messages": [], "max_tokens": 5}),
    ],
)
def test_each_tenant_has_a_salt_of_its_own_on_every_path(path: str, body: dict[str, Any]) -> None:
    first, second = salt_of(ACME, body, path=path), salt_of(ZETA, body, path=path)
    assert first is not None
    assert second is not None
    assert first != second
    assert len(first) == len(second) == 32
    assert salt_of(ACME, body, path=path) == first
    assert hashes_of(ACME, body, path=path) == hashes_of(ACME, body, path=path)
    tails = [isolated(tenant, body, path)[1].chain.tail for tenant in (None, ACME, ZETA)]
    assert len(set(tails)) == 3


def test_salt_is_the_only_change_of_the_body() -> None:
    data = json.dumps(CHAT).encode()
    plain, salted = isolated(None, data)[0].body, isolated(ACME, data)[0].body
    salt = json.loads(salted)["cache_salt"]
    assert salted == b'{"cache_salt":"' + salt.encode() + b'",' + plain[1:]


@pytest.mark.parametrize("tenant", [None, OPEN])
def test_no_salt_is_due_without_isolation(tenant: Tenant | None) -> None:
    request, route_request = isolated(tenant, json.dumps(CHAT).encode())
    assert request.body is request.client_body
    assert route_request.chain.hashes == hashes_of(None, CHAT)
    own = CHAT | {"cache_salt": "mine"}
    assert salt_of(tenant, own) == "mine"
    assert hashes_of(tenant, own) != hashes_of(None, CHAT)


@pytest.mark.parametrize(
    "spelled",
    ['"cache_salt": "VALUE"', r'"cache\u005fsalt": "VALUE"', '"cache_salt": "x", "cache_salt": "VALUE"'],
)
def test_salt_of_a_client_is_replaced_and_mixed_in(spelled: str) -> None:
    def body(value: str) -> bytes:
        return json.dumps(CHAT).encode()[:-1] + b", " + spelled.replace("VALUE", value).encode() + b"}"

    def salts(tenant: Tenant, value: str) -> list[Any]:
        pairs: list[tuple[str, Any]] = json.loads(isolated(tenant, body(value))[0].body, object_pairs_hook=list)
        return [salt for name, salt in pairs if name == "cache_salt"]

    [own, *again] = salts(ACME, "a")
    assert all(salt == own for salt in again)
    assert own not in ("a", salt_of(ACME, CHAT))
    assert salts(ACME, "a")[0] == own != salts(ACME, "b")[0]
    assert salts(ZETA, "a")[0] != own
    assert isolated(ACME, body("a"))[1].chain.hashes != isolated(ZETA, body("a"))[1].chain.hashes


@pytest.mark.parametrize("value", ["null", '""'])
def test_empty_salt_of_a_client_does_not_undo_isolation(value: str) -> None:
    data = json.dumps(CHAT).encode()[:-1] + b', "cache_salt": ' + value.encode() + b"}"
    pairs: list[tuple[str, Any]] = json.loads(isolated(ACME, data)[0].body, object_pairs_hook=list)
    assert [salt for name, salt in pairs if name == "cache_salt"] == [salt_of(ACME, CHAT)]
    assert isolated(ACME, data)[1].chain.hashes == hashes_of(ACME, CHAT)


def test_text_about_the_field_in_a_prompt_stays() -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": '{"cache_salt": "x"} \\u1234'}]}
    sent = json.loads(isolated(ACME, body)[0].body)
    assert sent["messages"] == body["messages"]
    assert sent["cache_salt"] == salt_of(ACME, CHAT)


def test_tenants_of_a_group_share_and_others_do_not() -> None:
    first, second = GROUPED
    other = Tenant("three", cache_sharing=CacheSharing.GROUP, cache_group="sales")
    same_name = Tenant("research")
    assert salt_of(first, CHAT) == salt_of(second, CHAT)
    assert hashes_of(first, CHAT) == hashes_of(second, CHAT)
    assert len({salt_of(tenant, CHAT) for tenant in (first, other, same_name)}) == 3


def test_salt_follows_from_the_secret_and_the_name_alone() -> None:
    assert salt_of(Tenant("acme", weight=7), CHAT) == salt_of(ACME, CHAT, policies=TenantPolicies(b"secret"))
    assert salt_of(ACME, CHAT, policies=TenantPolicies(b"another secret")) != salt_of(ACME, CHAT)


def test_changed_sharing_of_a_tenant_counts_at_once() -> None:
    policies = TenantPolicies(b"secret")
    assert salt_of(ACME, CHAT, policies=policies) is not None
    assert salt_of(Tenant("acme", cache_sharing=CacheSharing.CLUSTER), CHAT, policies=policies) is None


def test_same_session_name_of_two_tenants_is_two_sessions() -> None:
    routes = [isolated(tenant, CHAT, header="chat-1")[1] for tenant in (None, OPEN, ACME, ZETA, *GROUPED)]
    for sessions in ([route.session_hash for route in routes], [route.session for route in routes]):
        assert len(set(sessions)) == len(sessions)


@pytest.mark.parametrize(
    ("engines", "allowed", "path", "takes"),
    [
        ((), (), "/v1/chat/completions", True),
        (("vllm",), (), "/v1/chat/completions", True),
        (("sglang", "vllm"), (), "/v1/completions", True),
        (("sim",), (), "/v1/embeddings", True),
        (("vllm",), (), "/tokenize", False),
        (("sglang",), (), "/v1/embeddings", False),
        (("external",), (), "/v1/chat/completions", False),
        (("custom", "vllm"), (), "/v1/chat/completions", False),
        (("external",), ("cache_salt",), "/v1/chat/completions", True),
        (("vllm",), (), "/v1/anything", False),
    ],
)
def test_only_engines_that_have_the_field_get_a_salt(
    engines: tuple[str, ...], allowed: tuple[str, ...], path: str, takes: bool
) -> None:
    policy = RequestPolicy(frozenset(engines), allowed_fields=frozenset(allowed))
    assert takes_cache_salt(policy, path) is takes
    if path == "/v1/chat/completions":
        request, route_request = isolated(ACME, CHAT, policy=policy)
        assert ("cache_salt" in json.loads(request.body)) is takes
        assert route_request.chain.hashes != hashes_of(ZETA, CHAT, policy=policy)
