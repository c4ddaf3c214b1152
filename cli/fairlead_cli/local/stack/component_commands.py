"""Command lines of gateway, indexer and autoscaler. Secrets go by the environment, which other
users cannot read.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fairlead.runtime.compiled_build import worker_environment
from fairlead.units import format_duration
from fairlead_cli.addresses import Address
from fairlead_cli.local.processes.child_process import ProcessCommand
from fairlead_cli.local.processes.embedded_redis import RedisServer
from fairlead_cli.local.stack.engine_plan import ENGINE_TOKEN_VARIABLE, EnginePlan

LOCAL_PEPPER: Final = "local"
"""The pepper of API keys in local mode without FAIRLEAD_KEY_PEPPER, so that examples have keys."""

SECRET_VARIABLE = "FAIRLEAD_HASH_SECRET"

REDIS_VARIABLE = "FAIRLEAD_REDIS_URL"

AUTOSCALER_VARIABLE = "FAIRLEAD_AUTOSCALER_URL"

DRAIN_VARIABLE = "FAIRLEAD_DRAIN_TIMEOUT"

PEPPER_VARIABLE = "FAIRLEAD_KEY_PEPPER"

USAGE_VARIABLE = "FAIRLEAD_USAGE_DIR"

GATEWAY_DRAIN_SECONDS = 5.0
"""Time for requests in flight when the stack is stopped."""


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


def gateway_command(
    fleet_file: Path, config: StackConfig, redis: RedisServer | None, autoscaler: Address | None = None
) -> ProcessCommand:
    """Returns the command of the gateway."""
    argv = [sys.executable, "-m", "fairlead_gateway", "--fleet", str(fleet_file)]
    argv += ["--listen", str(config.listen), "--manage", str(config.manage)]
    argv += ["--workers", str(config.workers)]
    if config.insecure:
        argv.append("--insecure")
    for file in config.tenant_files:
        argv += ["--tenants", str(file)]
    environment = _compiled_copy() | {
        SECRET_VARIABLE: config.secret,
        DRAIN_VARIABLE: format_duration(GATEWAY_DRAIN_SECONDS),
    }
    if config.tenant_files:
        environment[PEPPER_VARIABLE] = config.key_pepper
    environment[USAGE_VARIABLE] = os.environ.get(USAGE_VARIABLE) or str(fleet_file.parent / "usage")
    environment |= _engine_token(config)
    if redis is not None:
        environment[REDIS_VARIABLE] = redis.url
    if autoscaler is not None:
        environment[AUTOSCALER_VARIABLE] = autoscaler.url
    return ProcessCommand(tuple(argv), environment)


def autoscaler_command(directory: Path, config: StackConfig, listen: Address | None) -> ProcessCommand | None:
    """Returns the command of the autoscaler; None when nothing is scaled.

    directory: of the manifests and the state of the stack.
    """
    if listen is None:
        return None
    argv = [sys.executable, "-m", "fairlead_autoscaler", "--local", str(directory), "--listen", str(listen)]
    argv += ["--gateway", config.manage.url, "--speed", f"{config.speed:g}"]
    if config.logs is not None:
        argv += ["--record", str(config.logs / "scaling")]
    return ProcessCommand(tuple(argv))


def indexer_command(fleet_file: Path, config: StackConfig, redis: RedisServer | None) -> ProcessCommand | None:
    """Returns the command of the indexer; None without Redis: the gateway indexes then."""
    if redis is None:
        return None
    argv = (sys.executable, "-m", "fairlead_kvstore", "--fleet", str(fleet_file))
    environment = {SECRET_VARIABLE: config.secret, REDIS_VARIABLE: redis.url}
    return ProcessCommand(argv, environment | _engine_token(config))


def _compiled_copy() -> dict[str, str]:
    """The variables by which the supervisor, which reads KV events, runs compiled like its workers.

    Why here: the supervisor would have to replace itself after its imports.
    """
    return dict(worker_environment(os.environ).items() - os.environ.items())


def _engine_token(config: StackConfig) -> dict[str, str]:
    return {ENGINE_TOKEN_VARIABLE: config.engine_token} if config.engine_token else {}
