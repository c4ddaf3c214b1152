"""The checked configuration of a stack."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fairlead_cli.addresses import Address
from fairlead_cli.local.stack.engine_plan import EnginePlan

LOCAL_PEPPER: Final = "local"
"""The pepper of API keys in local mode without FAIRLEAD_KEY_PEPPER, so that examples have keys."""


@dataclass(frozen=True, slots=True)
class StackConfig:
    """The processes and addresses of a stack.

    tenant_files: with the tenants that may call; without one, the gateway asks for no API key.
    key_pepper: under which these files hold digests of API keys.
    engine_token: the API key of real engines; empty if all are simulated.
    """

    plan: EnginePlan
    listen: Address
    manage: Address
    secret: str
    token: str | None = None
    insecure: bool = False
    redis: bool = True
    workers: int = 1
    speed: float = 1.0
    logs: Path | None = None
    program: str = "fairlead"
    tenant_files: tuple[Path, ...] = ()
    key_pepper: str = LOCAL_PEPPER
    engine_token: str = ""
