"""The checked configuration of a stack."""

from dataclasses import dataclass
from pathlib import Path

from fairlead_cli.addresses import Address
from fairlead_cli.local.stack.engine_plan import EnginePlan


@dataclass(frozen=True, slots=True)
class StackConfig:
    """The processes and addresses of a stack."""

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
