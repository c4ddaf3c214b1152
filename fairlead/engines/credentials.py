"""What it takes to reach an engine besides its URL: whom its certificate must come from, and the bearer token it wants to see.

Both lie outside the fleet file, which only names where: a CA file, an environment variable or a file with the token. Files are looked
at again once a second at most when they are used, so that a rotated token or CA needs no restart.
"""

import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from fairlead.fleet.model import EngineAuth, Fleet
from fairlead.runtime.file_watcher import Signature, file_signature

_RECHECK_SECONDS: Final = 1.0
_NO_AUTH: Final = EngineAuth()


class EngineCredentials:
    """The access to every engine of the present fleet, by URL. ``environ`` holds the tokens that are named by variable."""

    def __init__(self, environ: Mapping[str, str], now: Callable[[], float]) -> None:
        self._environ = environ
        self._now = now
        self._auth_by_url: dict[str, EngineAuth] = {}
        self._contexts: dict[str | None, tuple[Signature, ssl.SSLContext]] = {}
        self._tokens: dict[str, tuple[float, bytes]] = {}

    def update_fleet(self, fleet: Fleet) -> None:
        """Take over a snapshot."""
        ones = [one for group in fleet.instances.values() for one in group]
        self._auth_by_url = {one.url: one.access for one in ones if one.access != _NO_AUTH}

    def warnings(self) -> list[str]:
        """What the fleet names and is not there, in words that hold no secret."""
        found: dict[str, None] = {}
        for access in self._auth_by_url.values():
            if access.ca_file is not None and not Path(access.ca_file).is_file():
                found[f"engines cannot be verified: there is no CA file {access.ca_file}"] = None
            if access.has_token and not self.authorization_header(access):
                found[
                    f"engines get no token: {access.token_env or access.token_file} is missing, empty or no token"
                ] = None
        return list(found)

    def auth_for(self, url: str) -> EngineAuth:
        """The access of the engine at ``url``."""
        return self._auth_by_url.get(url, _NO_AUTH)

    def authorization_for(self, url: str) -> bytes:
        """The header line with the token for the engine at ``url``; empty when it wants none."""
        access = self._auth_by_url.get(url)
        return self.authorization_header(access) if access is not None else b""

    def tls_context(self, access: EngineAuth) -> ssl.SSLContext:
        """Verifies an engine by name or address, against its CA or the system's. Raises SSLError when the CA cannot be read."""
        named = access.ca_file
        seen = file_signature([Path(named)]) if named is not None else ()
        known = self._contexts.get(named)
        if known is not None and known[0] == seen:
            return known[1]
        try:
            context = ssl.create_default_context(cafile=named)
        except (OSError, ValueError) as error:
            raise ssl.SSLError(f"the CA file {named} cannot be used") from error
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(ALPN_PROTOCOLS)
        self._contexts[named] = seen, context
        return context

    def authorization_header(self, access: EngineAuth) -> bytes:
        """The header line with the token; empty when there is none."""
        if access.token_env is not None:
            return _authorization_line(self._environ.get(access.token_env, ""))
        if access.token_file is None:
            return b""
        known = self._tokens.get(access.token_file)
        now = self._now()
        if known is None or now - known[0] >= _RECHECK_SECONDS:
            known = self._tokens[access.token_file] = now, _authorization_line(_read_text(access.token_file))
        return known[1]


def _authorization_line(token: str) -> bytes:
    """Anything that is not one word of visible ASCII is no token: a header could be torn by it."""
    word = token.strip()
    plain = bool(word) and all("!" <= char <= "~" for char in word)
    return f"authorization: Bearer {word}\r\n".encode("ascii") if plain else b""


def _read_text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


ALPN_PROTOCOLS = ("http/1.1",)
