"""Keys, certificates and kubeconfigs of one cluster: one authority, which lives as long as the run
folder."""

import base64
import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

DAYS = "365"
SERVICE_NETWORK = "10.96.0.0/16"
SERVICE_ADDRESS = "10.96.0.1"
"""The first of the services' network: the API server, as pods see it."""

_CLIENTS = {
    "admin": ("system:masters", "admin"),
    "kcm": ("", "system:kube-controller-manager"),
    "scheduler": ("", "system:kube-scheduler"),
    "kube-proxy": ("", "system:kube-proxy"),
    "node": ("system:nodes", "system:node:local"),
    "front": ("", "front-proxy"),
    "apiserver-kubelet": ("system:masters", "apiserver-kubelet"),
}
"""Name → the group and user that the API server reads from the certificate."""
KUBECONFIGS = ("admin", "kcm", "scheduler", "kube-proxy", "node")

_CONFIG = """
[req]
distinguished_name = name
prompt = no
[name]
{name}
[authority]
basicConstraints = critical,CA:TRUE
keyUsage = critical,keyCertSign,cRLSign
subjectKeyIdentifier = hash
[leaf]
basicConstraints = critical,CA:FALSE
{extensions}
"""


class CertificateAuthority:
    """The files of one cluster's authority, in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def certificate(self, name: str) -> Path:
        """A certificate, PEM."""
        return self.folder / f"{name}.crt"

    def key(self, name: str) -> Path:
        """Its private key, PEM."""
        return self.folder / f"{name}.key"

    def make(self, address: str) -> None:
        """Everything; ``address`` is where the API server will listen."""
        self.folder.mkdir(mode=0o700)
        self._issue("ca", "CN = fairlead-e2e", "", signed=False)
        names = [
            "localhost",
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
        ]
        alt_names = [
            *(f"DNS:{name}" for name in names),
            *(f"IP:{ip}" for ip in dict.fromkeys(["127.0.0.1", SERVICE_ADDRESS, address])),
        ]
        with ThreadPoolExecutor(2) as pool:
            work = [
                pool.submit(self._issue, "apiserver", "CN = kube-apiserver", f"subjectAltName = {','.join(alt_names)}")
            ]
            for name, (group, user) in _CLIENTS.items():
                subject = f"O = {group}\nCN = {user}" if group else f"CN = {user}"
                work.append(pool.submit(self._issue, name, subject, "extendedKeyUsage = clientAuth"))
            for done in work:
                done.result()
        # Signs the tokens of service accounts.
        _openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-out", str(self.key("sa")))
        _openssl("pkey", "-in", str(self.key("sa")), "-pubout", "-out", str(self.folder / "sa.pub"))

    def kubeconfig(self, name: str, server: str, target: Path) -> None:
        """A client's file with everything inside, readable by its owner alone. YAML, as JSON is."""

        def inline(path: Path) -> str:
            return base64.b64encode(path.read_bytes()).decode()

        cluster = {"server": server, "certificate-authority-data": inline(self.certificate("ca"))}
        user = {"client-certificate-data": inline(self.certificate(name)), "client-key-data": inline(self.key(name))}
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "fairlead-e2e",
            "clusters": [{"name": "fairlead-e2e", "cluster": cluster}],
            "users": [{"name": name, "user": user}],
            "contexts": [{"name": "fairlead-e2e", "context": {"cluster": "fairlead-e2e", "user": name}}],
        }
        target.touch(mode=0o600)
        target.write_text(json.dumps(document, indent=1))

    def _issue(self, name: str, subject: str, extensions: str, *, signed: bool = True) -> None:
        config = self.folder / f"{name}.cnf"
        config.write_text(_CONFIG.format(name=subject, extensions=extensions))
        signer = ["-CA", str(self.certificate("ca")), "-CAkey", str(self.key("ca"))] if signed else []
        section = "leaf" if signed else "authority"
        files = ["-keyout", str(self.key(name)), "-out", str(self.certificate(name))]
        new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", DAYS]
        _openssl("req", "-x509", "-config", str(config), "-extensions", section, *new, *signer, *files)


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)
