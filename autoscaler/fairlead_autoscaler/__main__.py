"""`python -m fairlead_autoscaler --gateway URL`, with `--local DIR` or `--kube`.

Clock, random numbers and signals of the process come from here.
"""

import argparse
import asyncio
import logging
import os
import random
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fairlead.audit import AuditLog
from fairlead.audit.log import parse_audit_options
from fairlead.errors import FairleadError, SettingsError
from fairlead.limits import Limits
from fairlead.runtime.cli_options import configure_stderr_logging, parse_address
from fairlead.runtime.clock import AcceleratedClock, Clock, SystemClock
from fairlead.runtime.event_loop import loop_factory
from fairlead.settings import AutoscalerSettings, read_settings, unknown_variables
from fairlead_autoscaler.control_loop import AUTOSCALER_MIN_TICK_SECONDS
from fairlead_autoscaler.local.state_files import DESIRED_FILE, STATE_FILE
from fairlead_autoscaler.local.target import FileScaler, LocalTarget
from fairlead_autoscaler.service import AutoscalerService, ServiceConfig
from fairlead_autoscaler.target import ReplicaScaler, ScaleTarget

if TYPE_CHECKING:
    from fairlead_autoscaler.kubernetes.manager import Manager

_LOG = logging.getLogger("fairlead.autoscaler")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs until SIGTERM or SIGINT, and returns 0; 2 if it cannot start."""
    options = _parse_arguments(arguments)
    try:
        settings = read_settings(AutoscalerSettings, os.environ)
        configure_stderr_logging(_LOG, settings.log_level, unknown_variables(os.environ))
        limits, clock = Limits(), SystemClock()
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(_run(options, settings, clock, limits))
    except (FairleadError, OSError) as error:
        print(f"fairlead-autoscaler: {error}", file=sys.stderr)
        return 2
    return 0


async def _run(options: argparse.Namespace, settings: AutoscalerSettings, clock: Clock, limits: Limits) -> None:
    process = _create_process(options, settings, clock, limits)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, process.stop)
    await process.run()


def _create_process(
    options: argparse.Namespace, settings: AutoscalerSettings, clock: Clock, limits: Limits
) -> "AutoscalerService | Manager":
    """Returns the service of a local stack, or with `--kube` the manager of a cluster.

    Both belong to the current event loop. Raises BadInput for a bad address or setting.
    """
    host, port = parse_address(options.listen, "--listen", "127.0.0.1:9092")
    audit_options = parse_audit_options(settings.audit_log, settings.audit_dir)
    audit = AuditLog("autoscaler", f"{socket.gethostname()}-{os.getpid()}", clock, audit_options)

    def config(target: ScaleTarget, scaler: ReplicaScaler) -> ServiceConfig:
        return ServiceConfig(
            target=target,
            scaler=scaler,
            gateways=options.gateway,
            host=host,
            port=port,
            token=settings.manage_token,
            hosts=options.manage_host,
            record=options.record,
            is_frozen=_parse_flag(settings.scaling_freeze),
            speed=options.speed,
            audit=audit,
        )

    if options.kube is None:
        state_file, desired_file = options.local / STATE_FILE, options.local / DESIRED_FILE
        speed = options.speed
        fast = clock if speed == 1.0 else AcceleratedClock(clock, speed)
        # Two ticks are never closer than the limit says, however fast the clock runs.
        interval = max(limits.autoscaler_tick_seconds, AUTOSCALER_MIN_TICK_SECONDS * speed)
        return AutoscalerService(
            config(LocalTarget(state_file, fast, interval, speed), FileScaler(desired_file)),
            fast,
            announce=_print_line,
            limits=limits,
        )
    # Local mode does not load the client of an API server.
    from fairlead.fleet.kubernetes.options import parse_namespaces
    from fairlead.fleet.labels import parse_installation
    from fairlead.kube.leader_election import candidate_identity
    from fairlead.kube.transport.kubeconfig import load_config
    from fairlead_autoscaler.kubernetes.manager import KubernetesConfig, Manager

    random_number = random.SystemRandom().random
    access = load_config(os.environ, Path(os.environ.get("HOME", "/")))
    namespaces, installation = parse_namespaces(options.kube), parse_installation(settings.installation or "")
    identity = candidate_identity(os.environ, random_number)
    cluster = KubernetesConfig(access, identity, namespaces, options.lease_namespace, installation)
    return Manager(cluster, config, clock, random_number, announce=_print_line, limits=limits)


def _print_line(line: str) -> None:
    print(line, flush=True)


def _parse_flag(text: str | None) -> bool:
    if text in (None, "0", "1"):
        return text == "1"
    raise SettingsError(
        "FAIRLEAD_SCALING_FREEZE is neither 1 nor 0", field="FAIRLEAD_SCALING_FREEZE", hint="write 1 or 0"
    )


def _speed(text: str) -> float:
    """Parses how many times faster than real time the clock runs."""
    speed = float(text)
    if not 0.001 <= speed <= 1000:
        raise ValueError(text)
    return speed


def _parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="fairlead-autoscaler", description="Sizes pools so that their latency targets hold at the lowest cost."
    )
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--local", type=Path, metavar="DIR", help="the run directory of a stack of `fairlead up`")
    target.add_argument(
        "--kube",
        nargs="?",
        const="",
        metavar="NAMESPACE,...",
        help="the models of a cluster, of all its namespaces or of these; by KUBECONFIG, or the pod's service account",
    )
    parser.add_argument(
        "--lease-namespace",
        default=None,
        metavar="NAME",
        help="with --kube: the namespace of the leader election; the pod's own by default",
    )
    parser.add_argument(
        "--gateway",
        required=True,
        action="append",
        metavar="URL",
        help="a gateway's management port; a name stands for all its addresses. Can be given again",
    )
    parser.add_argument(
        "--speed",
        type=_speed,
        default=1.0,
        metavar="X",
        help="with --local: the clock runs this many times as fast, like that of the engines",
    )
    parser.add_argument(
        "--listen",
        default="127.0.0.1:0",
        metavar="HOST:PORT",
        help="the address of probes, metrics and decisions (default: a free loopback port)",
    )
    parser.add_argument(
        "--manage-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a DNS name that this port may be reached under; can be given again",
    )
    parser.add_argument(
        "--record",
        type=Path,
        metavar="DIR",
        help="a directory for a recording of all observations and decisions, as JSON lines",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
