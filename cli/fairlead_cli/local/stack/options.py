"""Options of ``fairlead up``, as given and as checked."""

from dataclasses import dataclass
from pathlib import Path

from fairlead_cli.addresses import Address
from fairlead_cli.local.stack.engine_plan import EnginePlan


@dataclass(frozen=True, slots=True)
class StackConfig:
    """The checked configuration of a stack."""

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


@dataclass(frozen=True, slots=True)
class UpOptions:
    """The arguments of ``fairlead up``."""

    files: tuple[str, ...]
    listen: str
    manage: str
    speed: float
    seed: int | None
    preset: str | None
    engines_per_process: int
    real: bool
    insecure: bool
    redis: bool
    workers: int
    logs: Path | None
    plain: bool
