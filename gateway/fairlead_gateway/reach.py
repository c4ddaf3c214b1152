"""What it takes to reach an engine besides its URL: whom its certificate must come from, and the bearer token it wants to see.

Both lie outside the fleet file, which only names where: a CA file, an environment variable or a file with the token. Files are looked
at again once a second at most when they are used, so that a rotated token or CA needs no restart.
"""

import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from fairlead.fleet import Access, Fleet
from fairlead_gateway.tls import ALPN
from fairlead_gateway.watch import Signature, signature

_LOOK_SECONDS: Final = 1.0
_OPEN: Final = Access()


class Reach:
    """The access to every engine of the present fleet, by URL. ``environ`` holds the tokens that are named by variable."""

    def __init__(self, environ: Mapping[str, str], now: Callable[[], float]) -> None:
        self._environ = environ
        self._now = now
        self._access: dict[str, Access] = {}
        self._contexts: dict[str | None, tuple[Signature, ssl.SSLContext]] = {}
        self._tokens: dict[str, tuple[float, bytes]] = {}

    def apply(self, fleet: Fleet) -> None:
        """Take over a snapshot."""
        ones = [one for group in fleet.instances.values() for one in group]
        self._access = {one.url: one.access for one in ones if one.access != _OPEN}

    def problems(self) -> list[str]:
        """What the fleet names and is not there, in words that hold no secret."""
        found: dict[str, None] = {}
        for access in self._access.values():
            if access.ca_file is not None and not Path(access.ca_file).is_file():
                found[f"engines cannot be verified: there is no CA file {access.ca_file}"] = None
            if access.shows_token and not self.authorization(access):
                found[
                    f"engines get no token: {access.token_env or access.token_file} is missing, empty or no token"
                ] = None
        return list(found)

    def of(self, url: str) -> Access:
        """The access of the engine at ``url``."""
        return self._access.get(url, _OPEN)

    def shown(self, url: str) -> bytes:
        """The header line with the token for the engine at ``url``; empty when it wants none."""
        access = self._access.get(url)
        return self.authorization(access) if access is not None else b""

    def context(self, access: Access) -> ssl.SSLContext:
        """Verifies an engine by name or address, against its CA or the system's. Raises SSLError when the CA cannot be read."""
        named = access.ca_file
        seen = signature([Path(named)]) if named is not None else ()
        known = self._contexts.get(named)
        if known is not None and known[0] == seen:
            return known[1]
        try:
            context = ssl.create_default_context(cafile=named)
        except (OSError, ValueError) as error:
            raise ssl.SSLError(f"the CA file {named} cannot be used") from error
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(ALPN)
        self._contexts[named] = seen, context
        return context

    def authorization(self, access: Access) -> bytes:
        """The header line with the token; empty when there is none."""
        if access.token_env is not None:
            return _line(self._environ.get(access.token_env, ""))
        if access.token_file is None:
            return b""
        known = self._tokens.get(access.token_file)
        now = self._now()
        if known is None or now - known[0] >= _LOOK_SECONDS:
            known = self._tokens[access.token_file] = now, _line(_content(access.token_file))
        return known[1]


def _line(token: str) -> bytes:
    """Anything that is not one word of visible ASCII is no token: a header could be torn by it."""
    word = token.strip()
    plain = bool(word) and all("!" <= char <= "~" for char in word)
    return f"authorization: Bearer {word}\r\n".encode("ascii") if plain else b""


def _content(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
