"""Does a command mean the stack on this machine, or a cluster?"""

import os
import sys
from pathlib import Path

from fairlead.errors import BadInput
from fairlead_cli.cluster.way import Way, kubeconfigs
from fairlead_cli.local.rundir import running_stacks


def means_cluster(way: Way, manage: str | None) -> bool:
    """Options decide, then the name it was called by, then what is there. Raises BadInput for options of both."""
    if manage is not None and way.named:
        raise BadInput(
            "--manage names a gateway, the other options a cluster", field="--manage", hint="give one of the two"
        )
    if way.named or manage is not None:
        return way.named
    if Path(sys.argv[0]).name == "kubectl-fairlead":
        return True
    if running_stacks():
        return False
    inside = "KUBERNETES_SERVICE_HOST" in os.environ
    return inside or bool(kubeconfigs(way, os.environ, Path.home()))
