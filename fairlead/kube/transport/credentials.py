"""Credentials of requests: the TLS context and the token, reloaded when their files change.

A service account token is valid for an hour or less, and the cluster replaces its file. It is read
again every few seconds, and at once after a 401. Certificates are reloaded after a 401, and when
the API server's certificate is not trusted.
"""

import os
import ssl
import tempfile
from pathlib import Path

from fairlead.kube.transport.kubeconfig import ClusterConfig, ClusterConfigError
from fairlead.runtime.clock import Clock


class ClusterCredentials:
    """The current headers and TLS context of a ClusterConfig."""

    def __init__(self, config: ClusterConfig, clock: Clock, reread_seconds: float) -> None:
        self._config = config
        self._clock = clock
        self._reread_seconds = reread_seconds
        self._token = config.token
        self._read_at: float | None = None
        self._tls: ssl.SSLContext | None = None

    def headers(self) -> list[tuple[str, str]]:
        """Returns the authentication headers.

        Raises ClusterConfigError if the token file cannot be read and never could.
        """
        self._refresh_token()
        headers = [("Authorization", f"Bearer {self._token}")] if self._token else []
        if self._config.impersonate_user:
            headers.append(("Impersonate-User", self._config.impersonate_user))
        headers += [("Impersonate-Group", group) for group in self._config.impersonate_groups]
        return headers

    def tls_context(self) -> ssl.SSLContext | bool:
        """Returns the TLS context; True if the connection has no TLS.

        Raises ClusterConfigError for unusable certificates.
        """
        if not self._config.server.startswith("https://"):
            return True
        if self._tls is None:
            try:
                self._tls = _make_tls_context(self._config)
            except (OSError, ssl.SSLError) as error:
                raise ClusterConfigError(f"{self._config.source}: its certificates cannot be used: {error}") from error
        return self._tls

    def invalidate(self) -> bool:
        """Makes the next request reload token and certificates, after a rejection.

        Returns True if any of them comes from a file.
        """
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
            if not self._token:  # the last token may still be valid
                raise ClusterConfigError(f"cannot read the token {file}: {error.strerror or error}") from error
        self._read_at = now


def _make_tls_context(access: ClusterConfig) -> ssl.SSLContext:
    context = ssl.create_default_context(
        cafile=str(access.ca_file) if access.ca_file else None,
        cadata=access.ca_data.decode("ascii", "replace") if access.ca_data else None,
    )
    # The CAs of common clusters fail the strict checks of Python 3.13 (no key identifier).
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if not access.verify_tls:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if access.certificate is None and access.certificate_file is None:
        return context
    with tempfile.TemporaryDirectory(prefix="fairlead-") as folder:  # ssl accepts only files; folder mode 0700
        certificate = access.certificate_file or _write_private(Path(folder), "certificate", access.certificate)
        key = access.key_file or _write_private(Path(folder), "key", access.key)
        context.load_cert_chain(certificate, key)
    return context


def _write_private(folder: Path, name: str, content: bytes | None) -> Path:
    path = folder / name
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content or b"")
    return path
