"""From the command line's words to a run: everything is checked before the first process starts."""

import os
import secrets
import shutil
import sys
from pathlib import Path

import fairlead
from fairlead.errors import BadInput
from fairlead.limits import Limits
from fairlead.manifests.loader import load_manifests
from fairlead.runtime.clock import SystemClock
from fairlead.settings import CliSettings, read_settings
from fairlead_cli.addresses import Address, claim_port, parse_address
from fairlead_cli.console import program_name
from fairlead_cli.errors import PortInUse
from fairlead_cli.local.run_directory import running_stacks
from fairlead_cli.local.stack.engine_plan import PlanOptions, plan_engines
from fairlead_cli.local.stack.options import StackConfig, UpOptions
from fairlead_cli.local.stack.stack_run import run
from fairlead_cli.local.view.screen import choose_screen


def launch(options: UpOptions) -> int:
    """Check, start, serve; the exit code. Raises BadInput when an argument or a manifest is wrong."""
    clock = SystemClock()
    try:
        setup = build_config(options)
        return run(setup, choose_screen(sys.stdout, plain=options.plain), clock)
    except KeyboardInterrupt:
        return 130  # before anything was started


def build_config(up_options: UpOptions) -> StackConfig:
    """What is to be run; touches nothing but the two ports, to see that they are free."""
    listen, manage = claim_addresses(up_options.listen, up_options.manage, insecure=up_options.insecure)
    options = PlanOptions(
        up_options.speed, up_options.seed or 0, up_options.preset, up_options.engines_per_process, up_options.real
    )
    wanted = plan_engines(load_manifests(up_options.files or (bundled_example(),)), options, find_program=shutil.which)
    if up_options.logs is not None:
        up_options.logs.mkdir(parents=True, exist_ok=True)
    settings = read_settings(CliSettings, os.environ)
    secret = settings.hash_secret or default_hash_secret(up_options.seed)
    return StackConfig(
        wanted,
        listen,
        manage,
        secret,
        token=settings.manage_token,
        insecure=up_options.insecure,
        redis=up_options.redis,
        workers=check_workers(up_options.workers),
        speed=up_options.speed,
        logs=up_options.logs,
        program=program_name(),
    )


def check_workers(number: int) -> int:
    """The gateway's workers. Raises BadInput."""
    most = Limits().workers
    if not 1 <= number <= most:
        raise BadInput(
            f"--workers: {number} is not a number from 1 to {most}", field="--workers", hint="one for each processor"
        )
    return number


def default_hash_secret(seed: int | None) -> str:
    """A key of the routing hashes: derived from a seed that was asked for, else random.

    It is made here, so that a gateway that is started again computes the same homes as the one before.
    """
    return secrets.token_hex(32) if seed is None else f"seed {seed}"


def claim_addresses(listen: str, manage: str, *, insecure: bool = False) -> tuple[Address, Address]:
    """Both addresses, free and different. Raises PortBusy or BadInput naming the flag."""
    asked, wanted = parse_address(listen, flag="--listen"), parse_address(manage, flag="--manage")
    for address, flag in ((asked, "--listen"), (wanted, "--manage")):
        if not (insecure or address.is_loopback):
            raise BadInput(
                f"{flag}: {address} is not a loopback address, and nobody would be asked for a key",
                field=flag,
                hint="give --insecure to listen there nevertheless",
            )
    first = _claim(asked, flag="--listen")
    for _ in range(100):
        second = _claim(wanted, flag="--manage")
        if second.port != first.port:
            return first, second
        if wanted.port:
            break
    raise PortInUse(f"--manage: {wanted} is the port of --listen", field="--manage", hint="the two need a port each")


def _claim(address: Address, *, flag: str) -> Address:
    """``claim``, which says so when it is another stack of ours that has the port."""
    try:
        return claim_port(address, flag=flag)
    except PortInUse:
        other = next((one for one in running_stacks() if address.url in (one.url, one.manage)), None)
        if other is None:
            raise
        hint = f"end it with Ctrl-C or `kill {other.pid}`, or run a second one with --listen :0 --manage :0"
        message = f"{flag}: {address} is in use already, by the fairlead up with pid {other.pid}"
        raise PortInUse(message, field=flag, hint=hint) from None


def bundled_example() -> Path:
    """The bundled example."""
    return Path(fairlead.__file__).with_name("examples") / "eight-engines.yaml"
