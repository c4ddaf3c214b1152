"""The target of a command: the stack on this machine, or a cluster."""

import os
import sys
from pathlib import Path

from fairlead.errors import BadInput
from fairlead_cli.cluster.access.connection import ClusterOptions, kubeconfig_paths
from fairlead_cli.local.run_directory import running_stacks


def is_cluster_target(options: ClusterOptions, manage: str | None) -> bool:
    """Whether a command means a cluster: by its options, else by the name of the program, else by
    what exists.

    Raises BadInput when options of both are given.
    """
    if manage is not None and options.is_explicit:
        raise BadInput(
            "--manage names a gateway, the other options a cluster", field="--manage", hint="give one of the two"
        )
    if options.is_explicit or manage is not None:
        return options.is_explicit
    if Path(sys.argv[0]).name == "kubectl-fairlead":
        return True
    if running_stacks():
        return False
    inside = "KUBERNETES_SERVICE_HOST" in os.environ
    return inside or bool(kubeconfig_paths(options, os.environ, Path.home()))
