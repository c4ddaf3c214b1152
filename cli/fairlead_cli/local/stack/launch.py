"""``fairlead up``: checks everything, then starts all of Fairlead on this machine."""

import os
import secrets
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Final

from cyclopts import Parameter

import fairlead
from fairlead.errors import BadInput
from fairlead.limits import Limits
from fairlead.manifests.files import STDIN_PATH
from fairlead.manifests.loader import Manifests, load_manifests
from fairlead.runtime.clock import SystemClock
from fairlead.settings import CliSettings, read_settings
from fairlead_cli.addresses import Address, claim_port, parse_address
from fairlead_cli.console import program_name
from fairlead_cli.exit_codes import PortInUse
from fairlead_cli.local.run_directory import running_stacks
from fairlead_cli.local.stack.component_commands import LOCAL_PEPPER, StackConfig
from fairlead_cli.local.stack.engine_plan import PlanOptions, plan_engines
from fairlead_cli.local.stack.stack_run import run
from fairlead_cli.local.view.live_view import choose_screen
from fairlead_cli.manifest_lint import MoreFiles, collect_paths

_SWITCH: Final = Parameter(negative=(), show_default=False)


@dataclass(frozen=True, slots=True)
class UpOptions:
    """The options as given; ``files`` are all manifests."""

    files: Annotated[tuple[str, ...], Parameter(parse=False)] = ()
    listen: Annotated[str, Parameter(help="Where clients reach the gateway; port 0 takes a free one.")] = (
        "127.0.0.1:8000"
    )
    manage: Annotated[str, Parameter(help="Where status page and management API are.")] = "127.0.0.1:8001"
    speed: Annotated[float, Parameter(help="Simulated time runs this many times as fast.")] = 1.0
    seed: Annotated[int | None, Parameter(help="Make engines' texts and routing repeatable.")] = None
    preset: Annotated[
        str | None, Parameter(help="Route every model by this preset, such as dual-hash or round-robin.")
    ] = None
    engines_per_process: Annotated[int, Parameter(help="Simulated engines that share a process.")] = 1
    real: Annotated[
        bool, _SWITCH, Parameter(help="Run the engines that the manifests name (vllm must be on PATH).")
    ] = False
    insecure: Annotated[
        bool, _SWITCH, Parameter(help="Allow listening beyond loopback, without asking callers for a key.")
    ] = False
    redis: Annotated[bool, Parameter(help="Start an embedded Redis.")] = True
    workers: Annotated[int, Parameter(help="Processes of the gateway that carry requests, on one port.")] = 1
    logs: Annotated[Path | None, Parameter(help="Keep every process's output in this folder.")] = None
    plain: Annotated[bool, _SWITCH, Parameter(help="Plain lines instead of the live view.")] = False


_DEFAULTS = UpOptions()


def up(
    *files: Annotated[
        str,
        Parameter(
            allow_leading_hyphen=True,
            help="Manifests or folders of them; - is standard input. Without: an example of eight engines.",
        ),
    ],
    file: MoreFiles = None,
    options: Annotated[UpOptions, Parameter(name="*")] = _DEFAULTS,
) -> int:
    """Serve models on this machine: engines, gateway, Redis and a live view, until Ctrl-C.

    Engines are simulated unless --real is given. Nothing is left behind, however it ends.
    """
    options = replace(options, files=collect_paths(up, files, file))
    clock = SystemClock()
    try:
        config = build_config(options)
        return run(config, choose_screen(sys.stdout, plain=options.plain), clock)
    except KeyboardInterrupt:
        return 130  # before anything was started


def build_config(options: UpOptions) -> StackConfig:
    """Returns the configuration of a stack. Checks that the two ports are free, and creates the
    folder for logs.
    """
    listen, manage = claim_addresses(options.listen, options.manage, insecure=options.insecure)
    engine_token = secrets.token_hex(32) if options.real else ""
    plan_options = PlanOptions(
        options.speed, options.seed or 0, options.preset, options.engines_per_process, options.real, engine_token
    )
    manifests = load_manifests(options.files or (bundled_example(),))
    plan = plan_engines(manifests, plan_options, find_program=shutil.which)
    if options.logs is not None:
        options.logs.mkdir(parents=True, exist_ok=True)
    settings = read_settings(CliSettings, os.environ)
    secret = settings.hash_secret or default_hash_secret(options.seed)
    return StackConfig(
        plan,
        listen,
        manage,
        secret,
        token=settings.manage_token,
        insecure=options.insecure,
        redis=options.redis,
        workers=check_workers(options.workers),
        speed=options.speed,
        logs=options.logs,
        program=program_name(),
        tenant_files=find_tenant_files(manifests),
        key_pepper=settings.key_pepper or LOCAL_PEPPER,
        engine_token=engine_token,
    )


def find_tenant_files(manifests: Manifests) -> tuple[Path, ...]:
    """Returns the files with tenants, which the gateway follows itself. Raises BadInput for
    standard input.
    """
    if STDIN_PATH in manifests.tenant_files:
        raise BadInput(
            "a ModelTenant cannot come from standard input: the gateway follows its file",
            field="FILE",
            hint="write it to a file, and give that",
        )
    return tuple(Path(file).absolute() for file in manifests.tenant_files)


def check_workers(number: int) -> int:
    """Returns `number` if a gateway can have so many workers, else raises BadInput."""
    maximum = Limits().workers
    if not 1 <= number <= maximum:
        raise BadInput(
            f"--workers: {number} is not a number from 1 to {maximum}",
            field="--workers",
            hint="give one for each processor",
        )
    return number


def default_hash_secret(seed: int | None) -> str:
    """Returns the key of the routing hashes: derived from a given seed, else random.

    Why: it is made here, so that a restarted gateway computes the same homes.
    """
    return secrets.token_hex(32) if seed is None else f"seed {seed}"


def claim_addresses(listen: str, manage: str, *, insecure: bool = False) -> tuple[Address, Address]:
    """Returns both addresses, free and different. Raises PortInUse or BadInput with the flag."""
    listen_address, manage_address = parse_address(listen, flag="--listen"), parse_address(manage, flag="--manage")
    for address, flag in ((listen_address, "--listen"), (manage_address, "--manage")):
        if not (insecure or address.is_loopback):
            raise BadInput(
                f"{flag}: {address} is not a loopback address, and clients would need no API key",
                field=flag,
                hint="give --insecure to listen there nevertheless",
            )
    listen_claimed = _claim(listen_address, flag="--listen")
    for _ in range(100):
        manage_claimed = _claim(manage_address, flag="--manage")
        if manage_claimed.port != listen_claimed.port:
            return listen_claimed, manage_claimed
        if manage_address.port:
            break
    raise PortInUse(
        f"--manage: {manage_address} is the port of --listen", field="--manage", hint="use a different port for each"
    )


def _claim(address: Address, *, flag: str) -> Address:
    """Claims a port; the error names another stack of ours that has it."""
    try:
        return claim_port(address, flag=flag)
    except PortInUse:
        owner = next((stack for stack in running_stacks() if address.url in (stack.url, stack.manage)), None)
        if owner is None:
            raise
        hint = f"end it with Ctrl-C or `kill {owner.pid}`, or run a second one with --listen :0 --manage :0"
        message = f"{flag}: {address} is already in use, by the fairlead up with pid {owner.pid}"
        raise PortInUse(message, field=flag, hint=hint) from None


def bundled_example() -> Path:
    return Path(fairlead.__file__).with_name("examples") / "eight-engines.yaml"
