"""The command-line options `--fleet` and `--kube`, which are the same for all components."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # imported early in the start-up of a gateway
    from fairlead.errors import FairleadError
    from fairlead.fleet.model import FleetSource
    from fairlead.limits import Limits
    from fairlead.runtime.clock import Pacing


def add_fleet_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `--fleet` and `--kube` to a parser; exactly one of them is required."""
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
    pacing: "Pacing",
    *,
    agent: str,
    limits: "Limits",
    report: "Callable[[FairleadError], None] | None" = None,
) -> "FleetSource":
    """Returns the fleet source that the options select.

    Raises BadInput for `--kube` if no cluster is configured or a namespace is invalid.

    Only the modules for this kind of source are imported.

    agent: user agent that the API server sees.
    report: called with the reason if an edited fleet file is rejected.
    """
    if options.kube is None:
        from fairlead.fleet.file_source import FileFleetSource

        return FileFleetSource(Path(options.fleet), pacing.clock, limits=limits, report=report)
    from fairlead.fleet.kubernetes.options import open_kube_source

    return open_kube_source(options.kube, environ, pacing, agent=agent, limits=limits)
