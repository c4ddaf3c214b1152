"""Fairlead as its chart installs it on the cluster of the tests, and what tests do with the whole
of it."""

import base64
import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from e2e.kube.cluster_access.kubectl import Kubectl, Manifest, eventually

CHART = Path(__file__).parents[3] / "charts" / "fairlead"
NAME = "fairlead"
NAMESPACE = "fairlead"
GATEWAY = "fairlead-gateway"
OPERATOR = "fairlead-operator"
KINDS = ("modeldeployments", "acceleratorclasses", "modeltenants", "modelroutes", "modeladapters")
VALUES: dict[str, Any] = {
    # A node of two processors has everything on it: what is asked for is what is used there.
    "gateway": {"resources": {"requests": {"cpu": "100m", "memory": "128Mi"}}},
    "indexer": {"resources": {"requests": {"cpu": "50m", "memory": "96Mi"}}},
    # No other node will come: a lack of room is reported at once.
    "operator": {"capacityGrace": "1s"},
}
HELM_SECONDS = 120


class HelmRelease:
    """One release, in a namespace of its own that holds pods to the strictest standard."""

    def __init__(
        self, kubectl: Kubectl, chart: tuple[str, ...] = (str(CHART),), defaults: Mapping[str, Any] = VALUES
    ) -> None:
        """Makes a handle; nothing is installed.

        chart: how helm gets it, with options.
        defaults: values of each installation and upgrade.
        """
        self.cluster = kubectl
        self.here = kubectl.in_namespace(NAMESPACE)
        self.chart = chart
        self._defaults = dict(defaults)

    def ensure(self) -> None:
        """Installed, where it is not."""
        if not self.is_installed:
            self.install()

    @property
    def is_installed(self) -> bool:
        """Returns whether the chart is installed."""
        listed = json.loads(self._helm("list", "--output=json", named=False))
        return any(one["name"] == NAME for one in listed)

    def install(self, **values: Any) -> None:
        """``helm install``, and wait until everything is ready."""
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}}
        self.cluster.apply(space)
        self._helm("install", *self.chart, "--wait", f"--timeout={HELM_SECONDS}s", values=values)

    def upgrade(self, **values: Any) -> None:
        """Runs ``helm upgrade`` with these and the tests' values, and waits until all is ready."""
        self._helm("upgrade", *self.chart, "--wait", f"--timeout={HELM_SECONDS}s", values=values)

    @contextmanager
    def settings(self, **values: Any) -> Iterator[None]:
        """Has settings of gateways during the block. No gateway with others is left in it, nor
        after it."""
        self._replace_gateways(**values)
        try:
            yield
        finally:
            self._replace_gateways()

    def _replace_gateways(self, **values: Any) -> None:
        before = set(self.pods("gateway"))
        self.upgrade(**values)
        self.wait_until_replaced("gateway", before)

    def rollback(self) -> None:
        """Runs ``helm rollback`` to the revision before, and waits until all is ready."""
        self._helm("rollback", "--wait", f"--timeout={HELM_SECONDS}s")

    def test(self) -> str:
        """``helm test``; what it says."""
        return self._helm("test", "--logs", f"--timeout={HELM_SECONDS}s")

    def uninstall(self) -> None:
        """``helm uninstall``, and wait until its pods are gone."""
        self._helm("uninstall", "--wait", f"--timeout={HELM_SECONDS}s")
        self.here.wait("delete", "pods", "--all", seconds=HELM_SECONDS)

    def remove(self) -> None:
        """Nothing of it is left: models, kinds, the release, its namespace."""
        if self.is_installed:
            self.uninstall()
        for name in KINDS:
            self.cluster.run("delete", "crd", f"{name}.serving.fairlead.io", "--ignore-not-found", "--timeout=60s")
        self.cluster.run("delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=120s")

    def key(self) -> str:
        """The first API key, as the notes of the chart say to read it."""
        return base64.b64decode(self.here.get("secret", "fairlead-keys")["data"]["first-key"]).decode()

    def pods(self, component: str) -> dict[str, Manifest]:
        """The pods of a component by uid, those that go included."""
        labels = f"app.kubernetes.io/instance={NAME},app.kubernetes.io/component={component}"
        return {pod["metadata"]["uid"]: pod for pod in self.here.get("pods", "-l", labels)["items"]}

    def wait_until_replaced(self, component: str, before: set[str], seconds: float = 120.0) -> None:
        """Wait until none of these pods is there any more, not even to drain."""
        eventually(
            f"the {component}'s former pods end", lambda: not before & self.pods(component).keys(), seconds=seconds
        )

    def _helm(self, verb: str, *words: str, named: bool = True, values: dict[str, Any] | None = None) -> str:
        given = None if values is None else json.dumps(_merge(self._defaults, values))
        command = ["helm", verb, *([NAME] if named else []), *words, f"--namespace={NAMESPACE}"]
        command += [] if given is None else ["--values=-"]
        environ = dict(self.cluster.environ)
        done = subprocess.run(command, env=environ, input=given, capture_output=True, text=True, check=False)
        if done.returncode:
            raise AssertionError(f"{' '.join(command)}: {done.stdout.strip()[-2_000:]}{done.stderr.strip()[-2_000:]}")
        return done.stdout


def _merge(base: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Returns ``base`` with ``more`` merged over it, as helm merges values."""
    found = dict(base)
    for name, value in more.items():
        before = found.get(name)
        found[name] = _merge(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return found
