"""Settings of gateways for the tests that need other ones than the defaults, and the objects that
they name."""

import base64
import hmac
import json
from pathlib import Path

from e2e.kube.cluster_access.kubectl import Kubectl, Manifest
from e2e.kube.workloads.helm_release import HelmRelease
from e2e.kube.workloads.manifests import config_map, deployment, pod_spec, service
from fairlead_testing.http.certificates import CertificateAuthority

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
