"""The TLS certificate of the public port, reloaded when its files change.

A new certificate is used from the next handshake on; open connections keep theirs. The listening
context stays the same object and gives every handshake the newest context.

Why: a context keeps one certificate per kind of key. Loading into it again would keep the old
certificate of another kind.
"""

import asyncio
import re
import ssl
from pathlib import Path

from fairlead.engines.credentials import ALPN_PROTOCOLS
from fairlead.errors import Unavailable

_FIRST_CERTIFICATE = re.compile("-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


class TlsCertificate:
    """A certificate and its key, from files. `context` is for listening, set by the
    first `load`.

    peer_context: for connections to gateways that show this certificate, or the one before it.

    Why no name or authority is checked there: gateways connect to addresses, which certificates do
    not name. Only a holder of the key can show the certificate.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self.files = (certificate, key)
        self._current: ssl.SSLContext | None = None
        self.context: ssl.SSLContext | None = None
        self.peer_context: ssl.SSLContext | None = None
        self._own_leaves: list[str] = []

    async def load(self) -> None:
        """Reads both files. Raises Unavailable and changes nothing if they are not usable."""
        current, leaf = await asyncio.to_thread(self._read)
        self._current = current
        if leaf not in self._own_leaves:
            self._own_leaves = [*self._own_leaves[-1:], leaf]
            self.peer_context = _pinning_context(self._own_leaves)
        if self.context is None:
            self.context = current
            self.context.sni_callback = self._install_current

    def _install_current(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        """Gives a handshake the newest context.

        OpenSSL calls it in every handshake, also for clients that send no server name.
        """
        if self._current is not None:
            connection.context = self._current

    def _read(self) -> tuple[ssl.SSLContext, str]:
        """Returns a context for listening, and the certificate itself without its chain."""
        certificate, key = self.files
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(ALPN_PROTOCOLS)
        try:
            context.load_cert_chain(certificate, key, password=_reject_password_prompt)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise Unavailable(f"cannot use {certificate} with {key}: {reason}") from error
        leaf = _FIRST_CERTIFICATE.search(certificate.read_text(encoding="latin-1"))
        return context, leaf[0] if leaf is not None else ""


def _pinning_context(leaves: list[str]) -> ssl.SSLContext:
    """Returns a context for connections to servers that show one of these certificates."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # these are trusted, and their signers are not
    context.load_verify_locations(cadata="\n".join(leaves))
    context.set_alpn_protocols(ALPN_PROTOCOLS)
    return context


def _reject_password_prompt() -> str:
    raise ValueError("the key is encrypted; a key without a passphrase is needed")
