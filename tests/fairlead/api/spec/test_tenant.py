"""A ModelTenant as gateways see it."""

from typing import Any

import pytest

from fairlead.api.v1alpha1 import ModelTenant
from fairlead.errors import BadInput
from fairlead.manifests.loader import read_object
from fairlead.tenants.model import (
    ApiKey,
    CacheSharing,
    Enforcement,
    Limit,
    LimitUnit,
    Tenant,
    Tier,
    TokenSubject,
    Window,
    WithoutRedis,
)

SECRET = "fl_this-is-a-key"


def tenant_of(**spec: Any) -> Tenant:
    head = {"apiVersion": "serving.fairlead.io/v1alpha1", "kind": "ModelTenant", "metadata": {"name": "acme"}}
    model_tenant = read_object({**head, "spec": spec})
    assert isinstance(model_tenant, ModelTenant)
    return model_tenant.to_tenant()


def test_tenant_without_fields_has_all_models_and_no_limit() -> None:
    assert tenant_of() == Tenant("acme")


def test_every_field_of_the_spec_reaches_the_tenant() -> None:
    tenant = tenant_of(
        suspended=True,
        tier="Batch",
        weight=7,
        models=["chat/llama", "search/*"],
        otherPaths="Admit",
        keys=[{"name": "prod", "digest": "0A" * 32, "expiresAt": "2027-01-01T01:00:00.5+01:00"}],
        subjects=[{"issuer": "https://login.example.com", "value": "app"}],
        limits=[{"per": "Day", "requests": 6, "key": "prod"}],
        enforcement="Strict",
        withoutRedis="Admit",
        cacheSharing="Group",
        cacheGroup="research",
        showPlacement=True,
        wakesModels=False,
    )
    assert tenant == Tenant(
        "acme",
        Tier.BATCH,
        7,
        frozenset({"chat/llama", "search/*"}),
        (ApiKey("prod", b"\x0a" * 32, 1_798_761_600.5),),
        (TokenSubject("https://login.example.com", "sub", "app"),),
        (Limit(LimitUnit.REQUESTS, 6, Window.DAY, "prod"),),
        Enforcement.STRICT,
        WithoutRedis.ADMIT,
        CacheSharing.GROUP,
        "research",
        is_suspended=True,
        shows_placement=True,
        may_wake_models=False,
    )


@pytest.mark.parametrize(
    ("spec", "shows"),
    [
        ({}, True),
        ({"cacheSharing": "Cluster"}, False),
        ({"cacheSharing": "Group", "cacheGroup": "research"}, False),
        ({"cacheSharing": "Cluster", "showPlacement": True}, True),
        ({"showPlacement": False}, False),
    ],
)
def test_placement_is_shown_where_all_of_it_is_the_tenants_own(spec: dict[str, Any], shows: bool) -> None:
    assert tenant_of(**spec).shows_placement is shows


@pytest.mark.parametrize(
    ("spec", "may_wake"),
    [
        ({}, True),
        ({"tier": "Batch"}, False),
        ({"tier": "Batch", "wakesModels": True}, True),
        ({"wakesModels": False}, False),
    ],
)
def test_batch_tenants_wake_models_only_where_they_may(spec: dict[str, Any], may_wake: bool) -> None:
    assert tenant_of(**spec).may_wake_models is may_wake


def test_an_entry_becomes_one_limit_for_each_amount() -> None:
    amounts = {"requests": 1, "inputTokens": 2, "outputTokens": 3, "tokens": 4, "usd": "0.000001"}
    rows = [
        {"per": "Minute", **amounts, "model": "chat/llama", "onExceeded": "Warn"},
        {"concurrency": 5, "bytesInFlight": "1.5Mi"},
    ]
    tenant = tenant_of(limits=rows, budget={"usd": "500"})
    of_model = {"window": Window.MINUTE, "model": "chat/llama", "is_soft": True}
    assert tenant.limits == (
        Limit(LimitUnit.REQUESTS, 1, **of_model),
        Limit(LimitUnit.INPUT_TOKENS, 2, **of_model),
        Limit(LimitUnit.OUTPUT_TOKENS, 3, **of_model),
        Limit(LimitUnit.TOKENS, 4, **of_model),
        Limit(LimitUnit.COST, 1_000, **of_model),
        Limit(LimitUnit.CONCURRENCY, 5),
        Limit(LimitUnit.BYTES_IN_FLIGHT, 1_572_864),
        Limit(LimitUnit.COST, 500_000_000_000, Window.MONTH),
    )
    assert len({limit.id for limit in tenant.limits}) == len(tenant.limits)
    assert {limit.unit for limit in tenant.limits} == set(LimitUnit)


@pytest.mark.parametrize(
    ("spec", "may_use"),
    [
        ({}, True),
        ({"limits": [{"per": "Minute", "requests": 6}, {"concurrency": 6}]}, True),
        ({"limits": [{"per": "Minute", "tokens": 6}]}, False),
        ({"budget": {"usd": "6", "onExceeded": "Warn"}}, False),
        ({"budget": {"usd": "6"}, "otherPaths": "Admit"}, True),
        ({"otherPaths": "Refuse"}, False),
    ],
)
def test_paths_without_usage_are_closed_to_tenants_with_limits_of_it(spec: dict[str, Any], may_use: bool) -> None:
    assert tenant_of(**spec).may_use_other_paths is may_use


@pytest.mark.parametrize(
    "spec",
    [
        {"keys": SECRET},
        {"keys": [SECRET]},
        {"keys": {"name": SECRET}},
        {"keys": [{"name": SECRET, "digest": SECRET}]},
        {"keys": [{"name": "prod", "digest": [SECRET]}]},
        {"keys": [{"name": "prod", "digest": "0" * 64, "key": SECRET}]},
        {"keys": [{"name": "prod", "digest": "0" * 64, "expiresAt": {"at": SECRET}}]},
        {"limits": [{"per": "Minute", "requests": 6, "key": SECRET}]},
    ],
)
def test_no_message_repeats_a_key_in_the_wrong_place(spec: dict[str, Any]) -> None:
    with pytest.raises(BadInput) as caught:
        tenant_of(**spec)
    assert SECRET not in f"{caught.value} {caught.value.hint}"
