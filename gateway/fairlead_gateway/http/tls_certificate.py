"""The TLS certificate of the public port, reloaded when its files change.

A new certificate is used from the next handshake on; open connections keep theirs. The listening
context stays the same object and gives every handshake the newest context.

Why: a context keeps one certificate per kind of key. Loading into it again would keep the old
certificate of another kind.
"""

import asyncio
import ssl
from pathlib import Path

from fairlead.engines.credentials import ALPN_PROTOCOLS
from fairlead.errors import Unavailable


class TlsCertificate:
    """A certificate and its key, from files. `context` is for listening, set by the
    first `load`.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self.files = (certificate, key)
        self._current: ssl.SSLContext | None = None
        self.context: ssl.SSLContext | None = None

    async def load(self) -> None:
        """Reads both files. Raises Unavailable and changes nothing if they are not usable."""
        self._current = await asyncio.to_thread(self._read)
        if self.context is None:
            self.context = self._current
            self.context.sni_callback = self._install_current

    def _install_current(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        """Gives a handshake the newest context.

        OpenSSL calls it in every handshake, also for clients that send no server name.
        """
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
    """Raises; without this callback, an encrypted key would prompt on the terminal."""
    raise ValueError("the key is encrypted; a key without a passphrase is needed")
