"""The commands of a stack's processes."""

from pathlib import Path

from fairlead.limits import Limits
from fairlead.settings import GatewaySettings, read_settings
from fairlead_cli.addresses import Address
from fairlead_cli.local.stack.component_commands import DRAIN_VARIABLE, gateway_command
from fairlead_cli.local.stack.config import StackConfig
from fairlead_cli.local.stack.engine_plan import EnginePlan
from fairlead_cli.local.stack.supervisor import GATEWAY_STOP_SECONDS


def test_stack_kills_no_gateway_that_still_drains(tmp_path: Path) -> None:
    config = StackConfig(EnginePlan(()), Address("127.0.0.1", 8080), Address("127.0.0.1", 8081), "secret")
    environment = gateway_command(tmp_path, config, None).environment
    settings = read_settings(GatewaySettings, {DRAIN_VARIABLE: str(environment[DRAIN_VARIABLE])})
    assert 0 < settings.drain_seconds() < GATEWAY_STOP_SECONDS < Limits().drain_seconds
