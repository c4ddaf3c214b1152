"""TLS on the public port: a certificate and its key from files, read again when they change.

A new certificate is shown from the next handshake on; connections that stand keep theirs and nobody is cut. The context that listens
stays the same object: it hands every handshake the newest one, so that nothing of an old certificate is left (a context keeps one
certificate for each kind of key, and loading into it again would leave the other kind).
"""

import asyncio
import ssl
from pathlib import Path

from fairlead.engines.credentials import ALPN_PROTOCOLS
from fairlead.errors import Unavailable


class TlsCertificate:
    """``context`` is what listens, once ``load`` has been called."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self.files = (certificate, key)
        self._current: ssl.SSLContext | None = None
        self.context: ssl.SSLContext | None = None

    async def load(self) -> None:
        """Read both files. Raises Unavailable and keeps what it had when they do not fit each other."""
        self._current = await asyncio.to_thread(self._read)
        if self.context is None:
            self.context = self._current
            self.context.sni_callback = self._install_current

    def _install_current(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        """Called in every handshake, also of clients that name no server."""
        if self._current is not None:
            connection.context = self._current

    def _read(self) -> ssl.SSLContext:
        certificate, key = self.files
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(ALPN_PROTOCOLS)
        try:
            context.load_cert_chain(certificate, key, password=_reject_password_prompt)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise Unavailable(f"cannot use {certificate} with {key}: {reason}") from error
        return context


def _reject_password_prompt() -> str:
    """Nobody is there to type one: without this, an encrypted key would ask the terminal."""
    raise ValueError("the key is encrypted; a key without a passphrase is needed")
