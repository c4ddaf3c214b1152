"""The commands of a stack's processes."""

from dataclasses import replace
from pathlib import Path

import pytest

from fairlead.api.v1alpha1 import API_VERSION, ModelTenant
from fairlead.errors import BadInput
from fairlead.limits import Limits
from fairlead.manifests.loader import Manifests
from fairlead.settings import GatewaySettings, read_settings
from fairlead_cli.addresses import Address
from fairlead_cli.local.processes.embedded_redis import RedisServer
from fairlead_cli.local.stack.component_commands import (
    DRAIN_VARIABLE,
    PEPPER_VARIABLE,
    autoscaler_command,
    gateway_command,
    indexer_command,
)
from fairlead_cli.local.stack.engine_plan import EnginePlan
from fairlead_cli.local.stack.launch import LOCAL_PEPPER, StackConfig, find_tenant_files
from fairlead_cli.local.stack.supervisor import GATEWAY_STOP_SECONDS


def test_stack_kills_no_gateway_that_still_drains(tmp_path: Path) -> None:
    config = StackConfig(EnginePlan(()), Address("127.0.0.1", 8080), Address("127.0.0.1", 8081), "secret")
    environment = gateway_command(tmp_path, config, None).environment
    settings = read_settings(GatewaySettings, {DRAIN_VARIABLE: str(environment[DRAIN_VARIABLE])})
    assert 0 < settings.drain_seconds() < GATEWAY_STOP_SECONDS < Limits().drain_seconds


def test_only_gateway_and_indexer_get_the_key_of_real_engines(tmp_path: Path) -> None:
    config = StackConfig(EnginePlan(()), Address("127.0.0.1", 8080), Address("127.0.0.1", 8081), "secret")
    redis = RedisServer((), "redis://127.0.0.1:1/0", port=1)
    for token, expected in (("", None), ("k" * 64, "k" * 64)):
        config = replace(config, engine_token=token)
        indexer = indexer_command(tmp_path, config, redis)
        autoscaler = autoscaler_command(tmp_path, config, Address("127.0.0.1", 8082))
        assert indexer is not None
        assert autoscaler is not None
        assert gateway_command(tmp_path, config, redis).environment.get("ENGINE_TOKEN") == expected
        assert indexer.environment.get("ENGINE_TOKEN") == expected
        assert "ENGINE_TOKEN" not in autoscaler.environment


def test_gateway_follows_the_files_with_tenants(tmp_path: Path) -> None:
    config = StackConfig(EnginePlan(()), Address("127.0.0.1", 8080), Address("127.0.0.1", 8081), "secret")
    command = gateway_command(tmp_path, config, None)
    assert "--tenants" not in command.argv
    assert PEPPER_VARIABLE not in command.environment
    files = (tmp_path / "a.yaml", tmp_path / "b.yaml")
    command = gateway_command(tmp_path, replace(config, tenant_files=files), None)
    assert command.argv[-4:] == ("--tenants", str(files[0]), "--tenants", str(files[1]))
    assert command.environment[PEPPER_VARIABLE] == LOCAL_PEPPER


def test_tenants_come_from_files_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tenant = ModelTenant.model_validate(
        {"apiVersion": API_VERSION, "kind": "ModelTenant", "metadata": {"name": "acme"}, "spec": {}}
    )
    found = Manifests((), {}, (tenant,), ("tenants.yaml",))
    assert find_tenant_files(found) == (tmp_path / "tenants.yaml",)
    with pytest.raises(BadInput, match="cannot come from standard input"):
        find_tenant_files(replace(found, tenant_files=("-",)))
