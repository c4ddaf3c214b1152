"""The priority of a request at engines that start requests by it: that of the tenant's tier."""

import json
from typing import Any

import pytest

from fairlead.api.spec.engine import Engine
from fairlead.fleet.model import RequestPolicy
from fairlead.limits import Limits
from fairlead.tenants.model import Tenant, Tier
from fairlead_gateway.caller_key import Caller
from fairlead_gateway.http.listener import HttpRequest
from fairlead_gateway.http.request_parser import RequestHead
from fairlead_gateway.openai.request import CacheScope, parse_request
from fairlead_gateway.tenants.worker.tenant_policy import TenantPolicies, TenantPolicy
from fairlead_testing.gateway.running_gateway import fleet_of

PATH = "/v1/chat/completions"
CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": 'a "priority": 7'}]}
TIERS = (Tier.INTERACTIVE, Tier.STANDARD, Tier.BATCH)


def sent(policy: RequestPolicy, tier: Tier | None, **fields: Any) -> dict[str, Any]:
    data = json.dumps(CHAT | fields).encode()
    request = parse_request(PATH, data, fleet_of([], requests=policy), Limits())
    head = RequestHead("POST", PATH, [], 11, len(data), keep_alive=True, expects_continue=False)
    caller = None if tier is None else Caller(Tenant("acme", tier), "key")
    TenantPolicies(b"secret").build_route_request(request, HttpRequest(head, data, "r", 0.0, 0.0, caller), "r")
    body: dict[str, Any] = json.loads(request.body)
    assert body["messages"] == CHAT["messages"]
    return body


@pytest.mark.parametrize(
    ("engines", "priorities"), [({"vllm"}, [0, 1, 2]), ({"sim", "vllm"}, [0, 1, 2]), ({"sglang"}, [2, 1, 0])]
)
def test_interactive_tenants_start_first_at_every_engine(engines: set[str], priorities: list[int]) -> None:
    policy = RequestPolicy(frozenset(engines), sets_priority=True)
    assert [sent(policy, tier)["priority"] for tier in TIERS] == priorities


@pytest.mark.parametrize("engines", [{"vllm", "sglang"}, {"custom"}, set()])
def test_engines_with_other_orders_get_no_priority(engines: set[str]) -> None:
    policy = RequestPolicy(frozenset(engines), sets_priority=True)
    assert all("priority" not in sent(policy, tier) for tier in TIERS)


@pytest.mark.parametrize(("sets", "expected"), [(True, 1), (False, None)])
def test_priority_of_a_client_never_reaches_an_engine(sets: bool, expected: int | None) -> None:
    policy = RequestPolicy(frozenset({"vllm"}), allowed_fields=frozenset({"priority"}), sets_priority=sets)
    assert sent(policy, Tier.STANDARD, priority=-(2**63)).get("priority") == expected
    assert sent(policy, None, priority=-5)["priority"] == -5  # without tenants, as the operator allows it


@pytest.mark.parametrize(
    ("args", "sets"),
    [
        ([], False),
        (["--scheduling-policy=priority"], True),
        (["--max-model-len=8", "--scheduling-policy", "priority"], True),
        (["--scheduling-policy", "fcfs"], False),
        (["--enable-priority-scheduling"], True),
    ],
)
def test_command_line_says_whether_engines_order_by_priority(args: list[str], sets: bool) -> None:
    assert Engine(type="VLLM", args=args).to_request_policy().sets_priority is sets


def test_models_and_paths_in_turns_get_their_own_fields() -> None:
    policy = TenantPolicy(Tenant("acme", Tier.BATCH), CacheScope("salt"))
    vllm, sglang = (RequestPolicy(frozenset({engine}), sets_priority=True) for engine in ("vllm", "sglang"))
    silent, unsalted = RequestPolicy(frozenset({"vllm"})), RequestPolicy(frozenset({"llama.cpp"}))
    expected = [(vllm, b'"priority":2'), (sglang, b'"priority":0'), (silent, b""), (unsalted, b"")]
    for number in range(40):  # more paths than are remembered
        for rules, priority in expected:
            members = policy.members(rules, PATH)
            assert members.endswith(priority)
            assert (b'"priority"' in members, b'"salt"' in members) == (bool(priority), rules is not unsalted)
            assert policy.shows_cached(rules, PATH) == (rules is not unsalted)
            assert policy.members(rules, f"/v1/other/{number}") == b""
