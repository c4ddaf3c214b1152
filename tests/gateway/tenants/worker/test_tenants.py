"""Tenants at a worker: whose key it is, until when, and what its requests may name."""

from dataclasses import replace

import pytest

from fairlead.fleet.model import Fleet, Model
from fairlead.limits import Limits
from fairlead.runtime.clock import ManualClock
from fairlead.tenants.model import ApiKey, Limit, LimitUnit, Tenant, Window
from fairlead_gateway.errors import ApiKeysUnavailable, InvalidApiKey, NotPermitted
from fairlead_gateway.http.request_parser import RequestHead, parse_head
from fairlead_gateway.tenants.worker.api_keys import ApiKeys, key_digest
from fairlead_testing.engines.scripted import scripted_engine, well_behaved
from fairlead_testing.gateway.running_gateway import fleet_of, gateway_of, running_gateway
from fairlead_testing.gateway.tenant_keys import authorization, keys_of, measure_key_table
from fairlead_testing.http.raw_client import get_request, request, send

pytestmark = pytest.mark.simulated

PEPPER = b"pepper"


def head(key: str) -> RequestHead:
    return parse_head(f"GET / HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}".encode(), Limits())


def digest(key: str) -> bytes:
    return key_digest(key.encode(), PEPPER)


def tenant(name: str, *keys: str, expires_at: float | None = None) -> Tenant:
    return Tenant(name, keys=tuple(ApiKey(f"{key}-name", digest(key), expires_at) for key in keys))


def accepted(keys: ApiKeys, *shown: str) -> list[str]:
    return [key for key in shown if keys.is_known(head(key))]


def test_keys_of_a_tenant_share_it() -> None:
    keys = ApiKeys(PEPPER, {})
    keys.update_tenants([tenant("acme", "one", "two")])
    first, second = keys.caller(head("one")), keys.caller(head("two"))
    assert (first.name, first.key, second.key) == ("acme", "one-name", "two-name")
    assert first.tenant is second.tenant


def test_key_of_the_file_belongs_to_the_tenant_of_its_name() -> None:
    keys = ApiKeys(PEPPER, {digest("file"): "acme", digest("other"): "other"})
    before = keys.caller(head("file")).tenant
    keys.update_tenants([replace(tenant("acme", "one"), weight=7)])
    caller = keys.caller(head("file"))
    assert (before.weight, caller.tenant.weight, caller.key) == (1, 7, "acme")
    assert keys.caller(head("other")).tenant.weight == 1
    keys.update_tenants([], ["acme"])
    assert keys.caller(head("file")).tenant.weight == 1


def test_key_of_the_file_is_refused_while_the_tenant_of_its_name_may_be_unread() -> None:
    keys = ApiKeys(PEPPER, {digest("file"): "acme"}, is_loaded=False)
    with pytest.raises(ApiKeysUnavailable):
        keys.caller(head("file"))
    keys.update_tenants([replace(tenant("acme", "one"), weight=7)])
    assert keys.caller(head("file")).tenant.weight == 7


def test_details_of_the_gateway_are_for_keys_that_no_tenant_owns() -> None:
    keys = ApiKeys(PEPPER, {digest("operator"): "operator", digest("file"): "acme"})
    keys.update_tenants([tenant("acme", "one")])
    assert [keys.shows_details(head(key)) for key in ("operator", "one", "file", "unknown")] == [
        True,
        False,
        False,
        False,
    ]


def test_changes_replace_exactly_the_keys_of_their_tenants() -> None:
    keys = ApiKeys(PEPPER, {})
    keys.update_tenants([tenant("acme", "one", "two"), tenant("zeta", "three")])
    keys.update_tenants([tenant("acme", "two", "four")])
    assert accepted(keys, "one", "two", "three", "four") == ["two", "three", "four"]
    keys.update_tenants([tenant("beta", "five")], ["acme"])
    assert accepted(keys, "one", "two", "three", "four", "five") == ["three", "five"]
    keys.update_tenants([tenant("zeta"), tenant("beta", "three")])
    assert keys.caller(head("three")).name == "beta"


def test_revoked_key_is_unknown_whatever_lists_it() -> None:
    keys = ApiKeys(PEPPER, {digest("file"): "file"})
    keys.update_tenants([tenant("acme", "one")])
    connection = head("one")
    keys.caller(connection)
    keys.revoke([digest("one"), digest("file")])
    for shown in (connection, head("one"), head("file")):
        with pytest.raises(InvalidApiKey, match="this API key is unknown"):
            keys.caller(shown)
    keys.revoke([])
    assert accepted(keys, "one", "file") == ["one", "file"]


def test_key_expires_while_its_connection_is_open() -> None:
    clock = ManualClock(wall=1_000.0)
    keys = ApiKeys(PEPPER, {}, wall=clock.wall)
    keys.update_tenants([tenant("acme", "one", expires_at=1_010.0)])
    connection = head("one")
    clock.advance(9.9)
    keys.caller(connection)
    clock.advance(0.1)
    for shown in (connection, head("one")):
        with pytest.raises(InvalidApiKey, match="this API key has expired"):
            keys.caller(shown)


def test_suspended_tenant_is_refused_also_on_open_connections() -> None:
    keys = ApiKeys(PEPPER, {})
    keys.update_tenants([tenant("acme", "one")])
    connection = head("one")
    keys.caller(connection)
    keys.update_tenants([replace(tenant("acme", "one"), is_suspended=True)])
    for shown in (connection, head("one")):
        with pytest.raises(NotPermitted, match="this tenant is suspended"):
            keys.caller(shown)
    assert not keys.is_known(head("one"))


def test_unknown_key_may_be_good_until_all_sources_are_loaded() -> None:
    keys = ApiKeys(PEPPER, {digest("file"): "file"}, is_loaded=False)
    with pytest.raises(ApiKeysUnavailable):
        keys.caller(head("one"))
    keys.is_loaded = True
    assert keys.caller(head("file")).name == "file"
    with pytest.raises(InvalidApiKey):
        keys.caller(head("one"))


def test_ten_thousand_tenants_fit_into_twenty_megabytes() -> None:
    keys, used = measure_key_table(PEPPER, _own_limits)
    assert len(keys._callers) >= 50_000
    assert used <= 20_000_000


def _own_limits(number: int) -> tuple[Limit, ...]:
    return (
        Limit(LimitUnit.REQUESTS, 600, Window.MINUTE),
        Limit(LimitUnit.TOKENS, 400_000 + number, Window.MINUTE),
        Limit(LimitUnit.COST, 500_000_000_000, Window.MONTH),
    )


CHAT = {"messages": [{"role": "user", "content": "hi"}]}


def fleet_of_models(url: str) -> Fleet:
    base = fleet_of([url])
    (instances,) = base.instances.values()
    models, placed = {}, {}
    for key in ("chat/llama", "chat/qwen", "secret/llama", "secret/falcon-9b"):
        namespace, name = key.split("/")
        models[key] = Model(namespace, name)
        placed[key] = tuple(replace(instance, namespace=namespace, model=name, id=f"{key}-0") for instance in instances)
    return replace(base, models=models, instances=placed)


async def test_models_of_others_are_unknown_in_every_respect() -> None:
    own = Tenant("acme", models=frozenset({"chat/*"}))
    every = Tenant("zeta")
    async with (
        scripted_engine() as engine,
        running_gateway(fleet_of_models(engine.url), api_keys=keys_of(own, every)) as running,
    ):
        more = authorization("acme")
        listed = (await send(running.url, get_request("/v1/models", more=more)))[0].json
        assert [model["id"] for model in listed["data"]] == ["llama", "qwen"]
        everything = (await send(running.url, get_request("/v1/models", more=authorization("zeta"))))[0].json
        assert {model["id"] for model in everything["data"]} == {"chat/llama", "secret/llama", "qwen", "falcon-9b"}

        assert (await request(running.url, {"model": "llama", **CHAT}, more=more)).status == 200
        refused = await request(running.url, {"model": "llama", **CHAT}, more=authorization("zeta"))
        assert refused.status == 404, "two models have the name"

        texts = []
        for path in ("/v1/chat/completions", "/v1/embeddings", "/v1/rerank", "/v1/audio/speech"):
            for name in ("secret/llama", "secret/falcon-9b", "falcon-9b", "secret/none", "falcon-9"):
                body = {"model": name, "input": "hi", "query": "a", "documents": ["b"], **CHAT}
                answer = await request(running.url, body, path=path, more=more)
                assert (answer.status, answer.error["code"]) == (404, "model_not_found"), (path, name)
                texts.append(answer.body.decode())
        large = {"model": "falcon-9b", "messages": [{"role": "user", "content": "x" * 300_000}]}
        answer = await request(running.url, large, more=more)
        assert answer.status == 404
        retrieved = (await send(running.url, get_request("/v1/models/secret/llama", more=more)))[0]
        assert retrieved.status == 404
        texts += [answer.body.decode(), retrieved.body.decode()]
        assert not [text for text in texts if "falcon" in text or "secret" in text]

        known = await request(running.url, {"model": "falcon-9b", **CHAT}, more=authorization("zeta"))
        assert known.status == 200


async def test_unknown_model_and_one_of_another_tenant_get_the_same_answer() -> None:
    own = Tenant("acme", models=frozenset({"chat/qwen"}))
    async with (
        scripted_engine() as engine,
        running_gateway(fleet_of_models(engine.url), api_keys=keys_of(own)) as running,
    ):
        answers = [
            (await request(running.url, {"model": name, **CHAT}, more=authorization("acme"))).error
            for name in ("chat/llama", "chat/lluma")
        ]
        for answer in answers:
            answer.pop("request_id", None)
        assert answers[0] == answers[1]


async def test_a_bare_name_is_a_tenants_own_though_an_older_model_of_others_has_it() -> None:
    tenants = [Tenant("acme", models=frozenset({"chat/*"})), Tenant("both", models=frozenset({"chat/*", "secret/*"}))]
    async with gateway_of(well_behaved, api_keys=keys_of(*tenants)) as (running, engine):
        fleet = fleet_of_models(engine.url)
        younger = replace(fleet.models["chat/llama"], shadowed=True)
        running.gateway.update_fleet(replace(fleet, version=2, models={**fleet.models, "chat/llama": younger}))
        views = {}
        for name in ("acme", "both"):
            more = authorization(name)
            listed = (await send(running.url, get_request("/v1/models", more=more)))[0].json
            answer = await request(running.url, {"model": "llama", **CHAT}, more=more)
            (logged,) = running.gateway.decisions.find(answer.fields["x-fairlead-decision"])
            views[name] = ([model["id"] for model in listed["data"]], logged.latest.model_key)
        assert views["acme"] == (["llama", "qwen"], "chat/llama")
        assert views["both"] == (["chat/llama", "qwen", "falcon-9b", "llama"], "secret/llama")


async def test_visible_models_follow_fleet_and_tenant() -> None:
    own = Tenant("acme", models=frozenset({"chat/qwen"}))
    keys = keys_of(own)
    (key,) = [ApiKey(caller.key, hashed) for hashed, caller in keys._callers.items()]
    async with (
        scripted_engine() as engine,
        running_gateway(fleet_of_models(engine.url), api_keys=keys) as running,
    ):

        async def listed() -> list[str]:
            listing = (await send(running.url, get_request("/v1/models", more=authorization("acme"))))[0].json
            return [model["id"] for model in listing["data"]]

        assert await listed() == ["qwen"]
        keys.update_tenants([replace(own, models=frozenset({"chat/*"}), keys=(key,))])
        assert await listed() == ["llama", "qwen"]
        fleet = fleet_of_models(engine.url)
        models = {name: model for name, model in fleet.models.items() if name != "chat/qwen"}
        running.gateway.update_fleet(replace(fleet, version=2, models=models))
        assert await listed() == ["llama"]


@pytest.mark.parametrize(
    ("path", "status"),
    [("/v1/chat/completions", 200), ("/v1/rerank", 200), ("/v1/audio/speech", 403), ("/tokenize", 200), ("/v1", 404)],
)
async def test_paths_without_usage_are_closed_where_it_is_limited(path: str, status: int) -> None:
    confined = Tenant("acme", may_use_other_paths=False)
    async with gateway_of(well_behaved, api_keys=keys_of(confined)) as (running, *_):
        answer = await request(running.url, {"model": "tiny", **CHAT}, path=path, more=authorization("acme"))
        assert answer.status == status
        if status == 403:
            assert answer.error["code"] == "path_not_permitted"
