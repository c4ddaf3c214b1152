"""The control plane: etcd and API server, and on level *full* controller-manager and scheduler, as
processes of this machine.

Level *api* has no service accounts, no garbage collection and no pods. Its API server is the real
one, with schemas, CEL, server-side apply, RBAC and watch cache. Durability is off, since there is
no data to keep.

Keys, certificates and kubeconfigs of one cluster: one authority, which lives as long as the run
folder.
"""

import base64
import json
import ssl
import subprocess
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from e2e.cluster.run_record import RunRecord, progress_step
from fairlead_testing.processes import unused_port

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

READY_SECONDS = 120.0
LOOPBACK = "127.0.0.1"


class CertificateAuthority:
    """The files of one cluster's authority, in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def certificate(self, name: str) -> Path:
        return self.folder / f"{name}.crt"

    def key(self, name: str) -> Path:
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
            work += [pool.submit(self.issue_client, name, *client) for name, client in _CLIENTS.items()]
            for done in work:
                done.result()
        # Signs the tokens of service accounts.
        _openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-out", str(self.key("sa")))
        _openssl("pkey", "-in", str(self.key("sa")), "-pubout", "-out", str(self.folder / "sa.pub"))

    def issue_client(self, name: str, group: str, user: str) -> None:
        subject = f"O = {group}\nCN = {user}" if group else f"CN = {user}"
        self._issue(name, subject, "extendedKeyUsage = clientAuth")

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


@dataclass(frozen=True, slots=True)
class ControlPlane:
    """A control plane with the programs of ``binaries``, listening on ``address``; ``whole`` adds
    the controllers."""

    record: RunRecord
    binaries: Path
    address: str
    port: int
    whole: bool

    @property
    def pki(self) -> CertificateAuthority:
        return CertificateAuthority(self.record.run / "pki")

    @property
    def url(self) -> str:
        return f"https://{self.address}:{self.port}"

    def kubeconfig(self, name: str = "admin") -> Path:
        return self.record.run / f"{name}.kubeconfig"

    def start(self) -> None:
        """Starts etcd, the API server until it is ready, and the other two."""
        with progress_step("keys and certificates"):
            self.pki.make(self.address)
            for name in KUBECONFIGS if self.whole else ("admin",):
                self.pki.kubeconfig(name, self.url, self.kubeconfig(name))
        with progress_step("etcd and API server ready"):
            self._start_storage_and_server()
            self.record.wait("API server", READY_SECONDS, self._ready)
        if self.whole:
            self._start_workers()

    def _start_storage_and_server(self) -> None:
        clients, peers = (f"http://{LOOPBACK}:{unused_port()}" for _ in range(2))
        flags = {
            "data-dir": self.record.run / "etcd",
            "unsafe-no-fsync": "true",
            "log-level": "warn",
            "listen-client-urls": clients,
            "advertise-client-urls": clients,
            "listen-peer-urls": peers,
            "initial-advertise-peer-urls": peers,
            "initial-cluster": f"default={peers}",
        }
        self.record.start("etcd", [self.binaries / "etcd", *(f"--{name}={value}" for name, value in flags.items())])
        self.record.start("apiserver", [self.binaries / "kube-apiserver", *self._server_flags(clients)])

    def _server_flags(self, etcd: str) -> list[str]:
        pki = self.pki
        flags = {
            "etcd-servers": etcd,
            "bind-address": self.address,
            "advertise-address": self.address,
            "secure-port": str(self.port),
            "tls-cert-file": pki.certificate("apiserver"),
            "tls-private-key-file": pki.key("apiserver"),
            "client-ca-file": pki.certificate("ca"),
            "service-account-issuer": "https://kubernetes.default.svc",
            "service-account-key-file": pki.folder / "sa.pub",
            "service-account-signing-key-file": pki.key("sa"),
            "service-cluster-ip-range": SERVICE_NETWORK,
            "authorization-mode": "Node,RBAC",
            "allow-privileged": "true",
            "enable-admission-plugins": "NodeRestriction",
            # Without names allowed, an authority that is also the clients' lets everybody pose as
            # the front proxy: refused.
            "requestheader-client-ca-file": pki.certificate("ca"),
            "requestheader-allowed-names": "front-proxy",
            "requestheader-username-headers": "X-Remote-User",
            "requestheader-group-headers": "X-Remote-Group",
            "requestheader-extra-headers-prefix": "X-Remote-Extra-",
            "proxy-client-cert-file": pki.certificate("front"),
            "proxy-client-key-file": pki.key("front"),
            "kubelet-client-certificate": pki.certificate("apiserver-kubelet"),
            "kubelet-client-key": pki.key("apiserver-kubelet"),
            "kubelet-preferred-address-types": "InternalIP",  # else logs and exec resolve the node's name
            "endpoint-reconciler-type": "lease" if self.whole else "none",
        }
        if not self.whole:  # this plugin needs service accounts, which do not exist
            flags["disable-admission-plugins"] = "ServiceAccount"
        return [f"--{name}={value}" for name, value in flags.items()]

    def _start_workers(self) -> None:
        """With the default rate of 20 requests a second the first service account takes 4.5 s."""
        common = ["--kube-api-qps=200", "--kube-api-burst=400", "--leader-elect=false", f"--bind-address={LOOPBACK}"]

        def identity(name: str) -> list[str]:
            kinds = ("kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig")
            return [*common, f"--secure-port={unused_port()}", *(f"--{kind}={self.kubeconfig(name)}" for kind in kinds)]

        signing = {
            "service-account-private-key-file": self.pki.key("sa"),
            "root-ca-file": self.pki.certificate("ca"),
            "cluster-signing-cert-file": self.pki.certificate("ca"),
            "cluster-signing-key-file": self.pki.key("ca"),
            "use-service-account-credentials": "true",
            "horizontal-pod-autoscaler-sync-period": "5s",  # a test need not wait for the usual 15
        }
        flags = [f"--{name}={value}" for name, value in signing.items()]
        self.record.start("kcm", [self.binaries / "kube-controller-manager", *identity("kcm"), *flags])
        self.record.start("scheduler", [self.binaries / "kube-scheduler", *identity("scheduler")])

    def get_text(self, path: str) -> bytes | None:
        """Returns the API server's answer to its administrator about ``path``; None where it
        refuses or does not answer."""
        context = ssl.create_default_context(cafile=self.pki.certificate("ca"))
        context.load_cert_chain(self.pki.certificate("admin"), self.pki.key("admin"))
        return fetch(f"{self.url}{path}", context)

    def _ready(self) -> bool:
        return self.get_text("/readyz") is not None


def stop(record: RunRecord) -> None:
    for name in ("scheduler", "kcm", "apiserver", "etcd"):
        record.stop(name)


def fetch(url: str, context: ssl.SSLContext | None = None) -> bytes | None:
    """The body of a good answer."""
    try:
        with urllib.request.urlopen(url, context=context, timeout=5.0) as answer:
            return bytes(answer.read())
    except OSError:
        return None
