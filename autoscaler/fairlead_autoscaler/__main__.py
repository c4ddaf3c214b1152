"""``python -m fairlead_autoscaler --gateway URL``, with ``--local DIR`` or ``--kube``: clock, chance and signals come from here."""

import argparse
import asyncio
import logging
import os
import random
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fairlead.errors import FairleadError, SettingsError
from fairlead.limits import Limits
from fairlead.runtime.cli_options import configure_stderr_logging, parse_address
from fairlead.runtime.clock import AcceleratedClock, Clock, SystemClock
from fairlead.runtime.event_loop import loop_factory
from fairlead.settings import AutoscalerSettings, read_settings, unknown_variables
from fairlead_autoscaler.local.state_files import DESIRED_FILE, STATE_FILE
from fairlead_autoscaler.local.target import FileScaler, LocalTarget
from fairlead_autoscaler.service import AutoscalerService, ServiceConfig
from fairlead_autoscaler.target import ReplicaScaler, ScaleTarget

if TYPE_CHECKING:
    from fairlead_autoscaler.kubernetes.manager import Manager

_LOG = logging.getLogger("fairlead.autoscaler")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT (0); 2 when it cannot start."""
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
    """The whole process; to be made on its loop."""
    host, port = parse_address(options.listen, "--listen", "127.0.0.1:9092")

    def plan(world: ScaleTarget, scaler: ReplicaScaler) -> ServiceConfig:
        return ServiceConfig(
            world=world,
            scaler=scaler,
            gateways=options.gateway,
            host=host,
            port=port,
            token=settings.manage_token,
            record=options.record,
            frozen=_parse_flag(settings.scaling_freeze),
            speed=options.speed,
        )

    if options.kube is None:
        there, wishes = options.local / STATE_FILE, options.local / DESIRED_FILE
        speed = options.speed
        fast = clock if speed == 1.0 else AcceleratedClock(clock, speed)
        # Two ticks are never closer than the limit says, however fast time runs.
        interval = max(limits.autoscaler_tick_seconds, limits.autoscaler_min_tick_seconds * speed)
        return AutoscalerService(
            plan(LocalTarget(there, fast, interval, speed), FileScaler(wishes)),
            fast,
            announce=_print_line,
            limits=limits,
        )
    # What speaks with an API server is not loaded by local mode.
    from fairlead.fleet.kubernetes.options import parse_namespaces
    from fairlead.kube.leader_election import candidate_identity
    from fairlead.kube.transport.kubeconfig import load_config
    from fairlead_autoscaler.kubernetes.manager import KubernetesConfig, Manager

    chance = random.SystemRandom().random
    access = load_config(os.environ, Path(os.environ.get("HOME", "/")))
    cluster = KubernetesConfig(
        access, candidate_identity(os.environ, chance), parse_namespaces(options.kube), options.lease_namespace
    )
    return Manager(cluster, plan, clock, chance, announce=_print_line, limits=limits)


def _print_line(line: str) -> None:
    print(line, flush=True)


def _parse_flag(text: str | None) -> bool:
    if text in (None, "0", "1"):
        return text == "1"
    raise SettingsError(
        "FAIRLEAD_SCALING_FREEZE is neither 1 nor 0", field="FAIRLEAD_SCALING_FREEZE", hint="write 1 or 0"
    )


def _speed(text: str) -> float:
    speed = float(text)
    if not 0.001 <= speed <= 1000:
        raise ValueError(text)
    return speed


def _parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="fairlead-autoscaler", description="Sizes pools so that their objectives hold at the lowest cost."
    )
    there = parser.add_mutually_exclusive_group(required=True)
    there.add_argument("--local", type=Path, metavar="DIR", help="the run directory of a stack of `fairlead up`")
    there.add_argument(
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
        help="with --kube: where replicas agree who writes; the pod's own by default",
    )
    parser.add_argument(
        "--gateway",
        required=True,
        action="append",
        metavar="URL",
        help="a gateway's management port; a name is asked for all its addresses. Can be given again",
    )
    parser.add_argument(
        "--speed",
        type=_speed,
        default=1.0,
        metavar="X",
        help="with --local: time runs this many times as fast, as the engines do",
    )
    parser.add_argument(
        "--listen",
        default="127.0.0.1:0",
        metavar="HOST:PORT",
        help="where probes, metrics and what was decided are (a free loopback port)",
    )
    parser.add_argument(
        "--record", type=Path, metavar="DIR", help="a folder where everything seen and decided is kept as JSON lines"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
