"""One process under test, as the kernel sees it; and what the API server says was asked of it."""

import os
import re
import ssl
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from fairlead.kube.transport.credentials import ClusterCredentials
from fairlead.runtime.clock import SystemClock
from fairlead_testing.kube.api_server import ApiServer
from fairlead_testing.ports import unused_port

FAIRLEAD, BASELINE = "Fairlead", "kopf's handlers"
COMMANDS: Mapping[str, tuple[str, ...]] = {
    FAIRLEAD: ("-m", "fairlead_operator", "--host", "127.0.0.1", "--port", "{port}"),
    BASELINE: (
        "-m",
        "fairlead_bench.operator.kopf_baseline",
    ),
}
CHILDREN = (
    "deployments",
    "services",
    "serviceaccounts",
    "poddisruptionbudgets",
    "controllerrevisions",
    "networkpolicies",
)
_WRITES = ("APPLY", "PATCH", "POST", "PUT", "DELETE")
_LINE = re.compile(r"^apiserver_request_total\{(.*)\} (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')
RequestCounts = Counter[tuple[str, str, str]]
"""Requests by verb, resource and subresource."""


class SubjectProcess:
    """CPU in seconds, memory in MB, as the kernel counts them."""

    def __init__(self, name: str, kubeconfig: Path, log: Path) -> None:
        self.name = name
        environment = {
            **os.environ,
            "KUBECONFIG": str(kubeconfig),
            "FAIRLEAD_ENGINE_IMAGES": "sim=fairlead.io/sim:1",
            "FAIRLEAD_LEASE": "60s",
        }
        command = [part.format(port=unused_port()) for part in COMMANDS[name]]
        with log.open("ab") as opened:
            self._process = subprocess.Popen([sys.executable, *command], env=environment, stdout=opened, stderr=opened)

    def cpu_seconds(self) -> float:
        """Returns user and system time of all threads since the start."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self, name: str = "VmRSS") -> float:
        """Returns the resident memory; ``VmHWM`` is its peak."""
        lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024 / 1e6

    def stop(self) -> None:
        """Sends SIGTERM, and SIGKILL after a while."""
        self._process.terminate()
        try:
            self._process.wait(60.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def api_requests(server: ApiServer) -> RequestCounts:
    """Returns the requests that the API server has answered so far."""
    access = server.config()
    context = ClusterCredentials(access, SystemClock(), 0.0).tls_context()
    assert isinstance(context, ssl.SSLContext)
    with urllib.request.urlopen(f"{access.server}/metrics", context=context, timeout=60.0) as answer:
        text = answer.read().decode()
    found: RequestCounts = Counter()
    for labels, value in _LINE.findall(text):
        named = dict(_LABEL.findall(labels))
        found[named["verb"], named["resource"], named["subresource"]] += int(float(value))
    return found


def writes(requests: RequestCounts) -> int:
    """Returns the number of the operator's writes: to children, and to models except those of the
    benchmark, which are applied without a subresource."""
    return sum(
        count
        for (verb, resource, subresource), count in requests.items()
        if verb in _WRITES
        and (resource in CHILDREN or (resource == "modeldeployments" and (subresource or verb != "APPLY")))
    )


def reads(requests: RequestCounts) -> int:
    """Returns the reads of single objects."""
    return sum(
        count
        for (verb, resource, _), count in requests.items()
        if verb == "GET" and resource in (*CHILDREN, "modeldeployments")
    )
