"""A ``kubectl`` for tests: one namespace, errors that name the command, and a dump of everything
after a failed test."""

import json
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from e2e.kube.cluster_access.api_reader import ApiReader, path_of

Manifest = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Kubectl:
    """Commands at the cluster that ``environ`` names by KUBECONFIG, in one namespace; plain
    questions go to ``reader``."""

    environ: Mapping[str, str]
    reader: ApiReader
    namespace: str = "default"

    def in_namespace(self, namespace: str) -> "Kubectl":
        """The same in another namespace."""
        return replace(self, namespace=namespace)

    def run(self, *words: str, given: str | None = None) -> str:
        """Runs a command and returns its output. Raises AssertionError with its error output."""
        done = self._done(*words, given=given)
        if done.returncode:
            raise AssertionError(f"kubectl {' '.join(words)}: {done.stderr.strip()[-4_000:]}")
        return done.stdout

    def apply(self, *manifests: Manifest) -> None:
        """Apply them, server-side."""
        document = json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests})
        self.run("apply", "--server-side", "-f", "-", given=document)

    def get(self, *words: str) -> Manifest:
        """An object, or a list of them."""
        if (path := path_of(self.namespace, words)) is not None:
            return self.reader.read(path)
        found: Manifest = json.loads(self.run("get", *words, "-o", "json"))
        return found

    def patch(self, name: str, patch: Manifest) -> None:
        """Merge this into an object."""
        self.run("patch", name, "--type=merge", "-p", json.dumps(patch))

    def wait_for_rollout(self, *names: str, seconds: int = 60) -> None:
        """Wait until these are (``deployment/web``)."""
        for name in names:
            self.run("rollout", "status", name, f"--timeout={seconds}s")

    def wait(self, condition: str, *names: str, seconds: int = 60) -> None:
        """Wait until they are: ``condition=Ready``, ``delete``, ``jsonpath=…``."""
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
        """Begin to delete the models of the namespace, where the cluster knows such."""
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
    told: Callable[[], str] = lambda: "",
) -> None:
    """Ask again and again until it holds; a failure only after ``seconds``, with what ``told`` then
    says.

    A look by ``kubectl`` takes tens of milliseconds of a processor that pods need too, hence
    ``every``, seconds.
    """
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"not within {seconds:g} s: {what} {told()}"
        time.sleep(every)
