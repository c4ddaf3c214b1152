"""Fairlead as its chart installs it on the cluster of the tests, and what tests do with the whole
of it.

Builds of Fairlead, published to a registry as a release is.

Settings of gateways for the tests that need other ones than the defaults, and the objects that
they name.
"""

import base64
import hmac
import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from e2e.kube.cluster_access.kubectl import Kubectl, Manifest, eventually
from e2e.kube.workloads.manifests import config_map, deployment, pod_spec, service
from fairlead_testing.http.certificates import CertificateAuthority
from scripts.release.artefacts import LAYOUT, REPOSITORY, image_digests
from scripts.release.images.layers import machine_architecture
from scripts.release.oci import OciLayout

CHART = Path(__file__).parents[3] / "charts" / "fairlead"
NAME = "fairlead"
NAMESPACE = "fairlead"
GATEWAY = "fairlead-gateway"
OPERATOR = "fairlead-operator"
KINDS = ("modeldeployments", "acceleratorclasses", "modeltenants", "modelroutes", "modeladapters")
TEAM_LABEL: Final = {"fairlead-e2e/team": "acme"}
"""The label of namespaces from which a team reaches the management ports."""
VALUES: dict[str, Any] = {
    # A node of two processors has everything on it: what is asked for is what is used there.
    "gateway": {"resources": {"requests": {"cpu": "100m", "memory": "128Mi"}}},
    "indexer": {"resources": {"requests": {"cpu": "50m", "memory": "96Mi"}}},
    # No other node will come: a lack of room is reported at once.
    "operator": {"capacityGrace": "1s"},
}
HELM_SECONDS = 120

AUDIENCE = "fairlead-e2e"
"""The audience of tokens of service accounts that gateways accept."""
MANAGEMENT_TOKEN = "token of the team"
"""A management token that reads the audit records of the tenant ``acme``."""
_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
_API = """
import json, ssl
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        allowed = self.headers["authorization"] == "Bearer of-the-provider" and self.path == "/openai/v1/chat/completions"
        names = ",".join(sorted(name.lower() for name in self.headers))
        answer = {"model": body["model"], "choices": [{"index": 0, "message": {"content": names}}],
                  "usage": {"prompt_tokens": 5, "completion_tokens": 2}}
        text = json.dumps(answer if allowed else {"error": {"message": "no"}}).encode()
        self.send_response(200 if allowed else 401)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("/etc/fairlead/tls.crt", "/etc/fairlead/tls.key")
server = ThreadingHTTPServer(("0.0.0.0", 8000), Handler)
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"""


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
        if not self.is_installed:
            self.install()

    @property
    def is_installed(self) -> bool:
        listed = json.loads(self._helm("list", "--output=json", named=False))
        return any(one["name"] == NAME for one in listed)

    def install(self, **values: Any) -> None:
        """``helm install``, and wait until everything is ready."""
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}}
        self.cluster.apply(space)
        self._helm("install", *self.chart, "--wait", f"--timeout={HELM_SECONDS}s", values=values)

    def upgrade(self, **values: Any) -> None:
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
        self._helm("rollback", "--wait", f"--timeout={HELM_SECONDS}s")

    def test(self) -> str:
        return self._helm("test", "--logs", f"--timeout={HELM_SECONDS}s")

    def uninstall(self) -> None:
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
        return base64.b64decode(self.here.get("secret", "fairlead-keys")["data"]["first-key"]).decode()

    def pods(self, component: str) -> dict[str, Manifest]:
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


@dataclass(frozen=True, slots=True)
class PublishedRelease:
    """A build in a registry.

    prefix: registry and path of its artefacts.
    chart_digest: of the chart's manifest.
    images: component → digest.
    """

    version: str
    prefix: str
    chart_digest: str
    images: dict[str, str]

    @property
    def chart(self) -> str:
        return f"oci://{self.prefix}/{REPOSITORY}@{self.chart_digest}"

    @property
    def helm_words(self) -> tuple[str, ...]:
        return (self.chart, "--plain-http")


def publish_build(root: Path, folder: Path, prefix: str, *, compiled: bool = True) -> PublishedRelease:
    """Makes images of this machine's architecture and the chart from the sources in ``root``, and
    publishes them, by the commands of maintainers.

    compiled: whether the images have the compiled data plane, which takes minutes to make.
    """
    words = f"images chart --architecture {machine_architecture()} --out {folder}"
    command = ["make", "-s", "-C", str(root), "release", "publish", f"ARGS={words}"]
    environ = {**os.environ, "REGISTRY": prefix} | ({} if compiled else {"FAIRLEAD_COMPILED": "0"})
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout[-2_000:]}{done.stderr[-2_000:]}"
    entries = OciLayout(folder / LAYOUT).entries()
    version = next(name.partition(":")[2] for name in entries if name.startswith(f"{REPOSITORY}:"))
    return PublishedRelease(
        version, prefix, entries[f"{REPOSITORY}:{version}"]["digest"], image_digests(entries, version)
    )


def external_engines(here: Kubectl, release: HelmRelease, folder: Path) -> Manifest:
    """Runs an API outside of Fairlead, and makes the Secret that gateways have for it. Returns
    their settings."""
    authority = CertificateAuthority(folder)
    made = authority.issue("api", names=f"DNS:api.{here.namespace}.svc")
    files = {"api__py": _API, "tls__crt": made.certificate.read_text(), "tls__key": made.key.read_text()}
    spec = pod_spec("gateway", command=("python3", "/etc/fairlead/api.py"), files="api")
    here.apply(config_map("api", **files), deployment("api", spec), service("api"))
    data = {"token": "of-the-provider", "ca.crt": authority.ca_file.read_text()}
    metadata = {"name": "provider"}
    release.here.apply({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": data})
    return {"namespaces": [here.namespace], "secrets": {here.namespace: ["provider"]}}


def management_tokens(release: HelmRelease) -> Manifest:
    """Makes a Secret with the management token of a team. Returns the settings that name it."""
    pepper = base64.b64decode(release.here.get("secret", "fairlead-keys")["data"]["pepper"])
    digest = hmac.digest(pepper, MANAGEMENT_TOKEN.encode(), "sha256").hex()
    text = f"tokens: [{{name: acme-team, digest: '{digest}', tenants: [acme], may: [Audit]}}]\n"
    metadata = {"name": "manage-tokens"}
    release.here.apply(
        {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": {"tokens.yaml": text}}
    )
    return {"manageTokens": "manage-tokens"}


def token_issuers(kubectl: Kubectl) -> Manifest:
    """Returns settings that accept tokens of the cluster's service accounts."""
    entry = {
        "issuer": service_account_issuer(kubectl),
        "audiences": [AUDIENCE],
        "jwksUrl": "https://kubernetes.default.svc/openid/v1/jwks",
        "caFile": f"{_ACCOUNT}/ca.crt",
        "tokenFile": f"{_ACCOUNT}/token",
    }
    return {"tokenIssuers": [entry]}


def service_account_issuer(kubectl: Kubectl) -> str:
    """Returns who issues the tokens of the cluster's service accounts."""
    issuer: str = json.loads(kubectl.run("get", "--raw", "/.well-known/openid-configuration"))["issuer"]
    return issuer
