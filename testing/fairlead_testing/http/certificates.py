"""Creates certificates with the `openssl` command: an authority, and servers that it signs."""

import shutil
import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

import certifi

LOOPBACK_NAMES = "IP:127.0.0.1,IP:::1,DNS:localhost"
_CONFIG = """
[req]
distinguished_name = name
prompt = no
[name]
CN = {name}
[authority]
basicConstraints = critical,CA:TRUE
keyUsage = critical,keyCertSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical,CA:FALSE
subjectAltName = {names}
"""


def has_openssl() -> bool:
    """Returns True if there is an `openssl` command."""
    return shutil.which("openssl") is not None


def first_public_certificate(path: Path) -> Path:
    """Writes one certificate of the public authorities to a file, and returns it.

    As `SSL_CERT_FILE` it spares each HTTP client of a test the loading of all, some 20 ms.
    """
    end = "-----END CERTIFICATE-----\n"
    before, _, _ = Path(certifi.where()).read_text(encoding="utf-8").partition(end)
    path.write_text(before + end, encoding="utf-8")
    return path


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate and its key, as PEM files."""

    certificate: Path
    key: Path

    def server_context(self) -> ssl.SSLContext:
        """Returns a TLS context for a server with this certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        return context


class CertificateAuthority:
    """A certificate authority for one test, with its files in `folder`."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self._folder = folder
        self.own = self._make(name, "authority", LOOPBACK_NAMES, "ec", None)

    @property
    def ca_file(self) -> Path:
        return self.own.certificate

    def issue(self, name: str, *, names: str = LOOPBACK_NAMES, kind: str = "ec") -> Certificate:
        return self._make(name, "server", names, kind, self.own)

    def client_context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.ca_file))

    def _make(self, name: str, section: str, names: str, kind: str, signer: Certificate | None) -> Certificate:
        made = Certificate(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        config = self._folder / f"{name}.cnf"
        config.write_text(_CONFIG.format(name=name, names=names))
        curve = ["-pkeyopt", "ec_paramgen_curve:prime256v1"] if kind == "ec" else []
        signed = ["-CA", str(signer.certificate), "-CAkey", str(signer.key)] if signer is not None else []
        command = ["openssl", "req", "-x509", "-config", str(config), "-extensions", section, "-nodes", "-days", "2"]
        files = ["-keyout", str(made.key), "-out", str(made.certificate)]
        subprocess.run([*command, "-newkey", kind, *curve, *signed, *files], check=True, capture_output=True)
        return made
