"""`python -m fairlead_operator`: creates clock, randomness, configuration and signal handlers.

A process leads or waits to lead. All replicas serve `/healthz`, `/readyz` and `/metrics`.
"""

import argparse
import asyncio
import gc
import logging
import os
import random
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fairlead.distribution import missing_package, missing_package_message
from fairlead.errors import FairleadError
from fairlead.kube.leader_election import candidate_identity
from fairlead.kube.transport.kubeconfig import ClusterConfig, load_config
from fairlead.runtime.clock import SystemClock
from fairlead.runtime.event_loop import loop_factory
from fairlead.settings import OperatorSettings, read_settings, unknown_variables
from fairlead_operator.settings import OperatorOptions, parse_options

if TYPE_CHECKING:
    from fairlead_operator.manager import Manager

_LOG = logging.getLogger("fairlead.operator")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs until SIGTERM or SIGINT (exit code 0) or loss of the lease (1); 2 if it cannot start."""
    flags = _flags(arguments)
    try:
        from fairlead_operator.manager import Manager
    except ModuleNotFoundError as error:
        if (package := missing_package(error)) is None:
            raise
        print(f"fairlead-operator: {missing_package_message(package)}", file=sys.stderr)
        return 2
    try:
        chosen = parse_options(read_settings(OperatorSettings, os.environ))
        access = load_config(os.environ, Path.home())
    except FairleadError as error:
        print(f"fairlead-operator: {error}", file=sys.stderr)
        return 2
    logging.basicConfig(
        level=chosen.log_level, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("kopf").setLevel(logging.WARNING)  # it logs each event
    logging.getLogger("kopf._core.reactor.running").setLevel(
        logging.ERROR
    )  # it warns that it does not handle signals, which is intended
    for line in unknown_variables(os.environ):
        _LOG.warning("%s", line)
    gc.freeze()  # imported objects stay: do not scan them again
    gc.set_threshold(10_000, 50, 100)  # many objects, hardly any reference cycles
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(_run(Manager, access, chosen, flags))


async def _run(
    manager: type["Manager"], access: ClusterConfig, chosen: OperatorOptions, flags: argparse.Namespace
) -> int:
    loop, chance, host, port = asyncio.get_running_loop(), random.SystemRandom().random, flags.host, flags.port
    me = candidate_identity(os.environ, chance)
    operation = manager(access, chosen, SystemClock(), chance, me, flags.lease_namespace)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, operation.stop)
    try:
        reason = await operation.run(host, port)
    except OSError as error:
        print(f"fairlead-operator: cannot listen on {host}:{port}: {error.strerror or error}", file=sys.stderr)
        return 2
    _LOG.info("ended: %s", reason)
    return 0 if operation.stopped else 1


def _flags(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="fairlead-operator", description="Turns ModelDeployments into running engines."
    )
    parser.add_argument("--host", default="", help="address of /healthz, /readyz and /metrics; all by default")
    parser.add_argument("--port", type=int, default=8080, help="port of /healthz, /readyz and /metrics")
    parser.add_argument(
        "--lease-namespace",
        default=None,
        metavar="NAME",
        help="namespace of the lease for the leader election; the pod's own by default",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
