"""``--fleet`` and ``--kube``: where a component's fleet comes from, the same words for all of them."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # read before anything else of a gateway, whose workers start meanwhile
    from fairlead.errors import FairleadError
    from fairlead.fleet.model import FleetSource
    from fairlead.limits import Limits
    from fairlead.runtime.clock import Clock


def add_fleet_arguments(parser: argparse.ArgumentParser) -> None:
    """One of the two is to be given."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--fleet", metavar="FILE", help="the fleet file; edits apply without a restart")
    source.add_argument(
        "--kube",
        nargs="?",
        const="",
        metavar="NAMESPACE,...",
        help="the models of a cluster, of all its namespaces or of these; by KUBECONFIG, or the pod's service account",
    )


def open_fleet_source(
    options: argparse.Namespace,
    environ: Mapping[str, str],
    clock: "Clock",
    chance: Callable[[], float],
    *,
    agent: str,
    limits: "Limits",
    report: "Callable[[FairleadError], None] | None" = None,
) -> "FleetSource":
    """As they were given. ``agent`` is what the API server sees, ``report`` hears why an edited file is not taken. Only what reads
    this kind of fleet is loaded. Raises BadInput when there is no way to a cluster."""
    if options.kube is None:
        from fairlead.fleet.file import FileFleetSource

        return FileFleetSource(Path(options.fleet), clock, limits=limits, report=report)
    from fairlead.fleet.kubernetes.options import open_kube_source

    return open_kube_source(options.kube, environ, clock, chance, agent=agent, limits=limits)
