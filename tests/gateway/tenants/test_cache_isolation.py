"""Warnings about engines that share their cache among tenants who want isolation."""

from fairlead.fleet.model import Model, RequestPolicy
from fairlead.tenants.model import CacheSharing, Tenant
from fairlead_gateway.tenants.cache_isolation import has_cache_salt, shared_caches


def model(name: str, *engines: str, allowed: frozenset[str] = frozenset()) -> Model:
    return Model("chat", name, requests=RequestPolicy(frozenset(engines), allowed_fields=allowed))


def test_engines_of_known_types_take_a_salt_and_others_if_they_say_so() -> None:
    assert has_cache_salt(model("a", "vllm", "sglang", "sim").requests)
    assert has_cache_salt(model("a").requests)
    assert not has_cache_salt(model("a", "vllm", "custom").requests)
    assert has_cache_salt(model("a", "custom", allowed=frozenset({"cache_salt"})).requests)


def test_a_model_without_salt_is_a_warning_for_tenants_that_want_isolation() -> None:
    models = {deployment.key: deployment for deployment in (model("own", "vllm"), model("theirs", "external"))}
    wanting = Tenant("acme"), Tenant("zeta", cache_sharing=CacheSharing.GROUP, cache_group="research")
    sharing = Tenant("open", cache_sharing=CacheSharing.CLUSTER)
    barred = Tenant("barred", models=frozenset({"chat/own"}))
    assert shared_caches({tenant.name: tenant for tenant in (*wanting, sharing, barred)}, models) == [
        "engines of chat/theirs share cached prompts among all clients, though tenant acme and 1 more tenant"
        " should be isolated: no cache_salt is known of type external"
    ]
    assert shared_caches({tenant.name: tenant for tenant in (sharing, barred)}, models) == []


def test_many_models_without_salt_are_cut_short() -> None:
    models = {deployment.key: deployment for deployment in (model(f"m-{number}", "custom") for number in range(5))}
    warnings = shared_caches({"acme": Tenant("acme")}, models)
    assert len(warnings) == 4
    assert warnings[0].startswith("engines of chat/m-0 share")
    assert warnings[-1] == "and 2 more models with shared caches"
