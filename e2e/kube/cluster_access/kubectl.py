"""A ``kubectl`` for tests: one namespace, errors that name the command, and a dump of everything
after a failed test.

Reader of the API server over one connection. Why: tests read a few objects several times a
second, and each ``kubectl get`` takes 70 ms of a processor that the pods need too. All but plain
reads of known kinds go through kubectl.

The command line with the cluster's kubeconfig, as an operator runs it.

Processor use of pods and their node, as the kubelet counts it: the cost of a rate, and its
cause.

Watches of ``kubectl`` during a test: the changes of objects line by line, none missed.
"""

import http.client
import json
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from heapq import nlargest
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote, urlsplit

from fairlead.kube.resources import RESOURCES_BY_KIND, Resource
from fairlead.kube.transport.credentials import ClusterCredentials
from fairlead.kube.transport.kubeconfig import load_config
from fairlead.runtime.clock import SystemClock

RESOURCE_PATHS: Mapping[str, Resource] = {
    word: one for one in RESOURCES_BY_KIND.values() if one.namespaced for word in (one.plural, one.kind.lower())
}
"""Kinds by their names for ``kubectl``."""
TIMEOUT_SECONDS = 30.0
REREAD_SECONDS = 60.0

Manifest = dict[str, Any]


def path_of(namespace: str, words: tuple[str, ...]) -> str | None:
    """Returns the API path that answers ``kubectl get`` with these words; None for what only
    kubectl understands."""
    match words:
        case (kind,) if kind in RESOURCE_PATHS:
            return RESOURCE_PATHS[kind].path(namespace)
        case (kind, name) if kind in RESOURCE_PATHS and not name.startswith("-"):
            return RESOURCE_PATHS[kind].path(namespace, name)
        case (kind, "-l", labels) if kind in RESOURCE_PATHS:
            return f"{RESOURCE_PATHS[kind].path(namespace)}?labelSelector={quote(labels)}"
    return None


class ApiReader:
    """Reads as whom the environment's KUBECONFIG names."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        access = load_config(environ, Path.home())
        self._credentials = ClusterCredentials(access, SystemClock(), REREAD_SECONDS)
        self._server = urlsplit(access.server)
        self._one = threading.Lock()
        self._connection: http.client.HTTPConnection | None = None

    def read(self, path: str) -> dict[str, Any]:
        """The object or the list there. Raises AssertionError with what the API server says, or why
        it says nothing."""
        with self._one:
            for first in (True, False):
                kept = self._connection is not None
                try:
                    status, body = self._get(path)
                    break
                except (OSError, http.client.HTTPException) as error:
                    self.close()
                    if not (first and kept):  # one that was kept may have been closed meanwhile
                        raise AssertionError(f"{path}: {error!r}") from error
        assert status == 200, f"{path}: {status} {body[:500]!r}"
        found: dict[str, Any] = json.loads(body)
        return found

    def _get(self, path: str) -> tuple[int, bytes]:
        if self._connection is None:
            self._connection = self._opened()
        self._connection.request(
            "GET", path, headers={"Accept": "application/json", **dict(self._credentials.headers())}
        )
        answer = self._connection.getresponse()
        return answer.status, answer.read()

    def _opened(self) -> http.client.HTTPConnection:
        host, port, tls = self._server.hostname or "", self._server.port, self._credentials.tls_context()
        if isinstance(tls, ssl.SSLContext):
            return http.client.HTTPSConnection(host, port, timeout=TIMEOUT_SECONDS, context=tls)
        return http.client.HTTPConnection(host, port, timeout=TIMEOUT_SECONDS)

    def close(self) -> None:
        """End the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


@dataclass(frozen=True, slots=True)
class Kubectl:
    """Commands at the cluster that ``environ`` names by KUBECONFIG, in one namespace; plain
    questions go to ``reader``."""

    environ: Mapping[str, str]
    reader: ApiReader
    namespace: str = "default"

    def in_namespace(self, namespace: str) -> "Kubectl":
        return replace(self, namespace=namespace)

    def run(self, *words: str, given: str | None = None) -> str:
        """Runs a command and returns its output. Raises AssertionError with its error output."""
        done = self._done(*words, given=given)
        if done.returncode:
            raise AssertionError(f"kubectl {' '.join(words)}: {done.stderr.strip()[-4_000:]}")
        return done.stdout

    def apply(self, *manifests: Manifest) -> None:
        document = json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests})
        self.run("apply", "--server-side", "-f", "-", given=document)

    def get(self, *words: str) -> Manifest:
        """An object, or a list of them."""
        if (path := path_of(self.namespace, words)) is not None:
            return self.reader.read(path)
        found: Manifest = json.loads(self.run("get", *words, "-o", "json"))
        return found

    def patch(self, name: str, patch: Manifest) -> None:
        self.run("patch", name, "--type=merge", "-p", json.dumps(patch))

    def wait_for_rollout(self, *names: str, seconds: int = 60) -> None:
        for name in names:
            self.run("rollout", "status", name, f"--timeout={seconds}s")

    def wait(self, condition: str, *names: str, seconds: int = 60) -> None:
        self.run("wait", f"--for={condition}", *names, f"--timeout={seconds}s")

    def evict(self, pod: str, *, seconds: float = 120.0) -> None:
        """Ask the Eviction API to take a pod away, again and again until its disruption budget lets
        it go."""
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": self.namespace}}
        path = f"/api/v1/namespaces/{self.namespace}/pods/{pod}/eviction"

        def gone() -> bool:
            done = self._done("create", "--raw", path, "-f", "-", given=json.dumps(body))
            assert not done.returncode or "disruption budget" in done.stderr, done.stderr
            return not done.returncode

        eventually(f"{pod} may be evicted", gone, seconds=seconds)

    def python(self, pod: str, code: str) -> str:
        """Runs a Python program in a pod and returns its output. It reaches anything inside any
        cluster."""
        return self.run("exec", pod, "--", "python3", "-c", code)

    def delete_models(self) -> None:
        self._done("delete", "modeldeployments", "--all", "--wait=false")

    def dump(self, folder: Path) -> None:
        """Returns objects, events and logs of the namespace, for failures. Never fails itself."""
        folder.mkdir(parents=True, exist_ok=True)
        asked = {
            "objects.yaml": ("get", "all,configmaps,endpointslices", "-o", "yaml"),
            "pods.txt": ("describe", "pods"),
            "events.txt": ("get", "events", "--sort-by=.lastTimestamp"),
            "models.yaml": ("get", "modeldeployments,modelroutes,modeladapters", "--all-namespaces", "-o", "yaml"),
        }
        for name, words in asked.items():
            (folder / name).write_text(self._done(*words).stdout)
        for pod in self._done("get", "pods", "-o", "name").stdout.split():
            for suffix, more in (("", ()), ("-before", ("--previous",))):
                told = self._done("logs", pod, "--all-containers", "--prefix", *more).stdout
                if told:
                    (folder / f"{pod.partition('/')[2]}{suffix}.log").write_text(told)

    def _done(self, *words: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
        command = ["kubectl", "-n", self.namespace, *words]
        return subprocess.run(command, env=dict(self.environ), input=given, capture_output=True, text=True, check=False)


@contextmanager
def temporary_namespace(kubectl: Kubectl) -> Iterator[Kubectl]:
    """Makes a namespace that enforces the strictest pod security; deletes it after the block."""
    manifest = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"generateName": "e2e-", "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
    }
    made = kubectl.run("create", "-f", "-", "-o", "jsonpath={.metadata.name}", given=json.dumps(manifest))
    inside = kubectl.in_namespace(made)
    try:
        yield inside
    finally:
        # Models first: of a namespace that is deleted the pods go first, and until they have gone
        # its models would keep their names.
        inside.delete_models()
        kubectl.run("delete", "namespace", made, "--wait=false")


def eventually(
    what: str,
    holds: Callable[[], bool],
    *,
    seconds: float = 60.0,
    every: float = 0.3,
    describe: Callable[[], str] = lambda: "",
) -> None:
    """Waits until it holds. Raises AssertionError after ``seconds``, with the text of ``describe``.

    A look by ``kubectl`` takes tens of milliseconds of a processor that pods need too, hence
    ``every``, seconds.
    """
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"not within {seconds:g} s: {what} {describe()}"
        time.sleep(every)


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


def cpu_seconds(kubectl: Kubectl) -> dict[str, tuple[float, float]]:
    """Name of a pod, or ``node`` for everything → (when, processor seconds until then). The kubelet
    looks every ten seconds or so."""
    found: dict[str, tuple[float, float]] = {}
    for node in kubectl.get("nodes")["items"]:
        path = f"/api/v1/nodes/{node['metadata']['name']}/proxy/stats/summary?only_cpu_and_memory=true"
        told = json.loads(kubectl.run("get", "--raw", path))
        for name, cpu in [("node", told["node"]["cpu"]), *((_name(pod), pod.get("cpu", {})) for pod in told["pods"])]:
            if "usageCoreNanoSeconds" in cpu:
                found[name] = ((datetime.fromisoformat((cpu["time"])).timestamp()), cpu["usageCoreNanoSeconds"] / 1e9)
    return found


def cores_used(before: dict[str, tuple[float, float]], after: dict[str, tuple[float, float]]) -> dict[str, float]:
    """Processors that were busy in between, on average: of the node, and of the pods of each
    Deployment together."""
    taken: dict[str, float] = {}
    for name in before.keys() & after.keys():
        elapsed = after[name][0] - before[name][0]
        if elapsed > 0:
            part = "-".join(name.split("-")[:2])
            taken[part] = taken.get(part, 0) + (after[name][1] - before[name][1]) / elapsed
    return {name: round(taken[name], 3) for name in nlargest(10, taken, key=taken.__getitem__)}


def _name(pod: dict[str, Any]) -> str:
    return str(pod["podRef"]["name"])


class KubectlWatch:
    """Each watch is (who takes a line, the words behind ``kubectl get``), for as long as the block
    lasts."""

    def __init__(self, here: Kubectl, *watches: tuple[Callable[[str], None], tuple[str, ...]]) -> None:
        self._here = here
        self._watches = watches

    def __enter__(self) -> Self:
        command = ("kubectl", "-n", self._here.namespace, "get")
        environ = dict(self._here.environ)
        self._processes = [
            subprocess.Popen([*command, *words, "--watch"], env=environ, stdout=subprocess.PIPE, text=True)
            for _, words in self._watches
        ]
        self._readers = [
            threading.Thread(target=self._read, args=(process, take))
            for process, (take, _) in zip(self._processes, self._watches, strict=True)
        ]
        for reader in self._readers:
            reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        for process, reader in zip(self._processes, self._readers, strict=True):
            process.terminate()
            reader.join()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()

    @staticmethod
    def _read(process: "subprocess.Popen[str]", take: Callable[[str], None]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            take(line.rstrip("\n"))


class ReplicaWatch(KubectlWatch):
    """The wanted replicas of each Deployment of a model: the first value and every change."""

    def __init__(self, here: Kubectl, model: str) -> None:
        shown = "jsonpath={.metadata.name} {.spec.replicas}{'\\n'}"
        super().__init__(here, (self._take, ("deployments", "-l", f"fairlead.io/model={model}", "-o", shown)))
        self.changes: list[tuple[str, int]] = []
        self.now: dict[str, int] = {}
        self.most_together = 0

    def _take(self, line: str) -> None:
        name, number = line.split(" ")
        if self.now.get(name) != int(number):
            self.now[name] = int(number)
            self.changes.append((name, int(number)))
            self.most_together = max(self.most_together, sum(self.now.values()))
