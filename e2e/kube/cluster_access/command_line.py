"""The command line with the cluster's kubeconfig, as an operator runs it."""

import subprocess
import sys
import tempfile

from e2e.kube.cluster_access.kubectl import Kubectl, eventually


def run_fairlead(here: Kubectl, *words: str, codes: tuple[int, ...] = (0,)) -> tuple[int, str]:
    """Returns the exit code, one of `codes`, and the output of ``fairlead …`` with the kubeconfig.

    Stacks on this machine, which other tests run, are out of its sight: without options a command
    means them before a cluster.
    """
    command = [sys.executable, "-m", "fairlead_cli", *words]
    with tempfile.TemporaryDirectory(prefix="fairlead-runtime-") as runtime:
        environment = {**here.environ, "XDG_RUNTIME_DIR": runtime}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode in codes, (words, done.returncode, done.stdout, done.stderr)
    return done.returncode, done.stdout


def explain_request(here: Kubectl, request_id: str) -> str:
    """Returns what ``fairlead explain request`` says of a request that was just answered.

    A gateway may know its decision only a moment after the answer.
    """
    shown = ""

    def is_known() -> bool:
        nonlocal shown
        code, shown = run_fairlead(here, "explain", "request", request_id, codes=(0, 1))
        return code == 0

    eventually(f"request {request_id} is explained", is_known)
    return shown
