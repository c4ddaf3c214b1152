"""Tenants: which models and limits concern a request."""

from fairlead.tenants.model import Limit, LimitUnit, Tenant, Window


def test_a_tenant_without_models_may_use_all() -> None:
    assert Tenant("acme").may_use("chat/llama")


def test_a_tenant_may_use_listed_models_and_those_of_listed_namespaces() -> None:
    tenant = Tenant("acme", models=frozenset({"chat/llama", "search/*"}))
    assert tenant.may_use("chat/llama")
    assert tenant.may_use("search/bge")
    assert not tenant.may_use("chat/qwen")
    assert not tenant.may_use("chat")


def test_limits_apply_by_key_and_model() -> None:
    everything = Limit(LimitUnit.REQUESTS, 600, Window.MINUTE)
    of_key = Limit(LimitUnit.TOKENS, 1_000, Window.DAY, key="ci")
    of_model = Limit(LimitUnit.CONCURRENCY, 8, model="chat/llama")
    tenant = Tenant("acme", limits=(everything, of_key, of_model))
    assert tenant.limits_of("ci", "chat/qwen") == (everything, of_key)
    assert tenant.limits_of("prod", "chat/llama") == (everything, of_model)


def test_the_id_of_a_limit_does_not_depend_on_its_amount() -> None:
    limit = Limit(LimitUnit.TOKENS, 1_000, Window.DAY, key="ci")
    assert limit.id == Limit(LimitUnit.TOKENS, 2_000, Window.DAY, key="ci").id
    assert limit.id != Limit(LimitUnit.TOKENS, 1_000, Window.MONTH, key="ci").id
    assert limit.id != Limit(LimitUnit.TOKENS, 1_000, Window.DAY).id
