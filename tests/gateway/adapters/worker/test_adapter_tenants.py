"""Tenants that may use some adapters, and limits that name adapters."""

from typing import Any

import pytest

from fairlead.tenants.model import Limit, LimitUnit, Tenant, Window
from fairlead_gateway.limits.worker.tenant_limits import TenantLimits
from fairlead_sim.runtime.settings import EngineSettings
from fairlead_testing.gateway.gateway_process import Setting, adapted
from fairlead_testing.gateway.tenant_keys import authorization, keys_of
from fairlead_testing.http.raw_client import RawResponse, get_request, request, send

pytestmark = pytest.mark.simulated

FAST = EngineSettings(model="tiny", served_names=("tiny",), speed=50.0, max_loaded_adapters=8)
LEGAL = Tenant("legal-team", models=frozenset({"default/legal", "default/acme/support"}))
TINY = Tenant("tiny-team", models=frozenset({"default/tiny"}))


async def send_chat(setting: Setting, tenant: Tenant, name: str) -> RawResponse:
    body: dict[str, Any] = {"model": name, "messages": [{"role": "user", "content": "Why?"}], "max_tokens": 2}
    return await request(setting.running.url, body, more=authorization(tenant.name))


@pytest.mark.parametrize("name", ["legal", "default/legal", "acme/support", "default/acme/support"])
async def test_tenant_uses_the_adapters_that_it_lists(name: str) -> None:
    async with adapted(["sql", "legal", "acme/support"], settings=FAST, api_keys=keys_of(LEGAL)) as setting:
        assert (await send_chat(setting, LEGAL, name)).status == 200


@pytest.mark.parametrize("name", ["tiny", "default/tiny", "sql", "default/sql", "tin"])
async def test_base_and_other_adapters_are_unknown_to_it(name: str) -> None:
    async with adapted(["sql", "legal"], settings=FAST, api_keys=keys_of(LEGAL)) as setting:
        reply = await send_chat(setting, LEGAL, name)
        assert (reply.status, reply.error["code"]) == (404, "model_not_found")
        assert "tiny" not in reply.error["message"].replace(name, "")
        (shown,) = await send(setting.running.url, get_request(f"/v1/models/{name}", more=authorization("legal-team")))
        assert shown.status == 404


async def test_its_list_of_models_has_the_adapters_without_their_base() -> None:
    async with adapted(["sql", "legal"], settings=FAST, api_keys=keys_of(LEGAL, TINY)) as setting:
        lists = {}
        for tenant in (LEGAL, TINY):
            (reply,) = await send(setting.running.url, get_request("/v1/models", more=authorization(tenant.name)))
            lists[tenant.name] = {model["id"]: model.get("parent") for model in reply.json["data"]}
        assert lists == {
            "legal-team": {"legal": None},
            "tiny-team": {"tiny": None, "sql": "tiny", "legal": "tiny"},
        }


def test_limits_that_name_an_adapter_or_its_base_count_its_requests() -> None:
    everything = Limit(LimitUnit.REQUESTS, 600, Window.MINUTE)
    of_base = Limit(LimitUnit.TOKENS, 1_000, Window.DAY, model="default/tiny")
    of_adapter = Limit(LimitUnit.REQUESTS, 60, Window.DAY, model="default/legal")
    of_other = Limit(LimitUnit.REQUESTS, 60, Window.DAY, model="default/sql")
    tenant = Tenant("acme", limits=(everything, of_base, of_adapter, of_other))
    assert tenant.limits_of("prod", "default/tiny", "default/legal") == (everything, of_base, of_adapter)
    assert tenant.limits_of("prod", "default/tiny") == (everything, of_base)


async def test_plan_of_an_adapter_is_not_that_of_its_base() -> None:
    async with adapted(["sql", "legal"], settings=FAST) as setting:
        (model,) = setting.running.gateway.stages.routers.fleet.models.values()
        sql, legal = model.adapters
        limit = Limit(LimitUnit.REQUESTS, 60, Window.DAY, model="default/legal")
        limits = TenantLimits(Tenant("acme", limits=(limit,)))
        for _ in range(2):
            assert [limit.limit for limit in limits.plan("prod", "default/tiny", legal).limits] == [limit]
            assert limits.plan("prod", "default/tiny").limits == []
            assert limits.plan("prod", "default/tiny", sql).limits == []
