"""Credentials and rules for connecting to engines: trusted CAs, bearer tokens, allowed addresses.

The fleet file names only their locations: a CA file, an environment variable or a token file. While
in use, token files are read again after a second, and CA files when they change. A rotated token or
CA needs no restart.
"""

import ssl
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from fairlead.fleet.endpoint_address import Resolver
from fairlead.fleet.endpoint_resolver import EndpointResolver
from fairlead.fleet.model import EngineAuth, Fleet, Instance
from fairlead.runtime.file_watcher import Signature, file_signature
from fairlead.runtime.http_client import ConnectionRules

ALPN_PROTOCOLS: Final = ("http/1.1",)
_RECHECK_SECONDS: Final = 1.0
_NO_AUTH: Final = EngineAuth()


class EngineCredentials:
    """The credentials of every engine of the current fleet, by `Instance.address`.

    environ: environment with the tokens that are named by variable.
    """

    def __init__(self, environ: Mapping[str, str], now: Callable[[], float]) -> None:
        self._environ = environ
        self._now = now
        self._auth_by_address: dict[str, EngineAuth] = {}
        self.has_any = False
        self._endpoints = EndpointResolver()
        self._contexts: dict[str | None, tuple[Signature, ssl.SSLContext]] = {}
        self._tokens: dict[str, tuple[float, str]] = {}

    def update_fleet(self, fleet: Fleet) -> None:
        """Uses the credentials of a new fleet snapshot from now on."""
        instances = [instance for group in fleet.instances.values() for instance in group]
        self._auth_by_address = {
            instance.address: instance.access for instance in instances if instance.access != _NO_AUTH
        }
        self.has_any = bool(self._auth_by_address)
        self._endpoints.update_fleet(fleet)

    def warnings(self) -> list[str]:
        """Returns a warning for each missing CA file or token. Warnings contain no secrets."""
        messages: dict[str, None] = {}
        for access in self._auth_by_address.values():
            if access.ca_file is not None and not Path(access.ca_file).is_file():
                messages[f"engines cannot be verified: there is no CA file {access.ca_file}"] = None
            if access.has_token and not self.token(access):
                messages[
                    f"engines get no token: {access.token_env or access.token_file} is missing, empty or not a token"
                ] = None
        return list(messages)

    def resolver(self, host: str) -> Resolver | None:
        """Returns how to resolve a host whose addresses are checked; None for any other host."""
        return self._endpoints.resolve if self._endpoints.checks(host) else None

    def connection_rules(self, instance: Instance) -> ConnectionRules:
        return ConnectionRules(partial(self.tls_context, instance.access), self.resolver(_host(instance.url)))

    def auth_for(self, address: str) -> EngineAuth:
        return self._auth_by_address.get(address, _NO_AUTH)

    def authorization_for(self, address: str) -> bytes:
        """Returns the Authorization header line for the engine; empty without a token."""
        access = self._auth_by_address.get(address)
        token = self.token(access) if access is not None else ""
        return f"authorization: Bearer {token}\r\n".encode("ascii") if token else b""

    def headers(self, access: EngineAuth) -> dict[str, str]:
        """Returns the Authorization header; empty without a token."""
        token = self.token(access)
        return {"authorization": f"Bearer {token}"} if token else {}

    def tls_context(self, access: EngineAuth) -> ssl.SSLContext:
        """Returns a context that verifies an engine against its CA, or against the system's CAs.

        Raises SSLError if the CA file is unusable.
        """
        ca_file = access.ca_file
        current = file_signature([Path(ca_file)]) if ca_file is not None else ()
        cached = self._contexts.get(ca_file)
        if cached is not None and cached[0] == current:
            return cached[1]
        try:
            context = ssl.create_default_context(cafile=ca_file)
        except (OSError, ValueError) as error:
            raise ssl.SSLError(f"the CA file {ca_file} cannot be used") from error
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(ALPN_PROTOCOLS)
        self._contexts[ca_file] = current, context
        return context

    def token(self, access: EngineAuth) -> str:
        """Returns the bearer token; empty if there is none, or if it is not a valid token."""
        if access.token_env is not None:
            return _checked_token(self._environ.get(access.token_env, ""))
        if access.token_file is None:
            return ""
        cached = self._tokens.get(access.token_file)
        now = self._now()
        if cached is None or now - cached[0] >= _RECHECK_SECONDS:
            cached = self._tokens[access.token_file] = now, _checked_token(_read_text(access.token_file))
        return cached[1]


def _host(url: str) -> str:
    return urlsplit(url).hostname or ""


def _checked_token(text: str) -> str:
    """Returns the token; empty if it is not one word of visible ASCII.

    Why: other characters could inject headers.
    """
    word = text.strip()
    return word if all("!" <= char <= "~" for char in word) else ""


def _read_text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
