"""What goes with each request: TLS and a token, both read again when the cluster renews their files.

A service account's token is good for an hour or less and is replaced in its file. It is read again every few seconds, and at once
when the API server does not accept it. Certificates are loaded again then, too, and when the API server's is not trusted.
"""

import os
import ssl
import tempfile
from pathlib import Path

from fairlead.kube.transport.kubeconfig import ClusterConfig, ClusterConfigError
from fairlead.runtime.clock import Clock


class ClusterCredentials:
    """The present headers and TLS context of an ``Access``."""

    def __init__(self, config: ClusterConfig, clock: Clock, reread_seconds: float) -> None:
        self._config = config
        self._clock = clock
        self._reread_seconds = reread_seconds
        self._token = config.token
        self._read_at: float | None = None
        self._tls: ssl.SSLContext | None = None

    def headers(self) -> list[tuple[str, str]]:
        """Who we are. Raises AccessError when a token's file cannot be read and never could."""
        self._refresh_token()
        found = [("Authorization", f"Bearer {self._token}")] if self._token else []
        if self._config.impersonate_user:
            found.append(("Impersonate-User", self._config.impersonate_user))
        found += [("Impersonate-Group", group) for group in self._config.impersonate_groups]
        return found

    def tls_context(self) -> ssl.SSLContext | bool:
        """The context for connections; True where there is no TLS. Raises AccessError for unusable certificates."""
        if not self._config.server.startswith("https://"):
            return True
        if self._tls is None:
            try:
                self._tls = _make_tls_context(self._config)
            except (OSError, ssl.SSLError) as error:
                raise ClusterConfigError(f"{self._config.source}: its certificates cannot be used: {error}") from error
        return self._tls

    def invalidate(self) -> bool:
        """Read everything anew, since it was not accepted. Was there anything that files could have changed?"""
        access = self._config
        self._read_at = self._tls = None
        return any((access.token_file, access.ca_file, access.certificate_file))

    def _refresh_token(self) -> None:
        file, now = self._config.token_file, self._clock.now()
        if file is None or (self._read_at is not None and now - self._read_at < self._reread_seconds):
            return
        try:
            self._token = file.read_text().strip()
        except OSError as error:
            if not self._token:  # else the last one may be good for a while: the API server decides
                raise ClusterConfigError(f"cannot read the token {file}: {error.strerror or error}") from error
        self._read_at = now


def _make_tls_context(access: ClusterConfig) -> ssl.SSLContext:
    context = ssl.create_default_context(
        cafile=str(access.ca_file) if access.ca_file else None,
        cadata=access.ca_data.decode("ascii", "replace") if access.ca_data else None,
    )
    # Python 3.13 turned on checks of form that the authorities of common clusters do not pass (no key identifier).
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if not access.verify_tls:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if access.certificate is None and access.certificate_file is None:
        return context
    with tempfile.TemporaryDirectory(
        prefix="fairlead-"
    ) as folder:  # the ssl module takes files only; 0700, gone at once
        certificate = access.certificate_file or _write_private(Path(folder), "certificate", access.certificate)
        key = access.key_file or _write_private(Path(folder), "key", access.key)
        context.load_cert_chain(certificate, key)
    return context


def _write_private(folder: Path, name: str, content: bytes | None) -> Path:
    path = folder / name
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content or b"")
    return path
