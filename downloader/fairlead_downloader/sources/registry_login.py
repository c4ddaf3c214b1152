"""Credentials of OCI registries, and the tokens that registries issue for them.

Source: https://distribution.github.io/distribution/spec/auth/token
"""

import base64
import binascii
import re
from collections.abc import Collection, Mapping
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import aiohttp
import msgspec

from fairlead_downloader.errors import CredentialsRefused, SourceFailed
from fairlead_downloader.sources.http_source import check_status, get_response, parse_object, read_document

_DOCKER_HUB: Final = "docker.io"
_HUB_KEYS: Final = ("https://index.docker.io/v1/", "index.docker.io", _DOCKER_HUB)
_PARAMETER: Final = re.compile(r'(\w+)="([^"]*)"')


def registry_host(registry: str) -> str:
    """Returns the host that answers for a registry."""
    return "registry-1.docker.io" if registry == _DOCKER_HUB else registry


def read_docker_config(text: str) -> dict[str, str]:
    """Returns user and password as base64 by registry, from a Docker configuration.

    Raises CredentialsRefused for one that cannot be read.
    """
    try:
        document = msgspec.json.decode(text.encode(), type=dict[str, Any])
        found = {name: _basic(entry) for name, entry in (document.get("auths") or {}).items()}
    except (msgspec.DecodeError, AttributeError, binascii.Error, UnicodeDecodeError):
        raise CredentialsRefused("the Docker configuration in the credentials cannot be read") from None
    return {_registry_of(name): auth for name, auth in found.items() if auth}


def _basic(entry: Mapping[str, Any]) -> str:
    if entry.get("auth"):
        return base64.b64encode(base64.b64decode(entry["auth"], validate=True)).decode()
    user, password = entry.get("username"), entry.get("password")
    return base64.b64encode(f"{user}:{password}".encode()).decode() if user and password else ""


def _registry_of(name: str) -> str:
    if name in _HUB_KEYS:
        return _DOCKER_HUB
    return name.partition("://")[2].partition("/")[0] if "://" in name else name.partition("/")[0]


class RegistryLogin:
    """The Authorization headers of one registry.

    basic: user and password as base64; None without any.
    plain_hosts: hosts that are reached without TLS.
    """

    def __init__(
        self, session: aiohttp.ClientSession, registry: str, basic: str | None, plain_hosts: Collection[str]
    ) -> None:
        self._session = session
        self._registry = registry
        self._basic = basic
        self._plain_hosts = plain_hosts
        self.headers: dict[str, str] = {}

    async def answer(self, challenge: str) -> None:
        """Sets the headers that a challenge asks for. Raises DownloadError."""
        scheme, _, rest = challenge.partition(" ")
        basic = {"authorization": f"Basic {self._basic}"} if self._basic else {}
        if scheme.lower() == "basic" and basic:
            self.headers = basic
            return
        if scheme.lower() != "bearer":
            raise CredentialsRefused(f"{self._registry} wants credentials, and there are none for it")
        parameters = dict(_PARAMETER.findall(rest))
        realm = parameters.pop("realm", "")
        parts = urlsplit(realm)
        if parts.scheme != "https" and parts.netloc not in self._plain_hosts:
            raise SourceFailed(f"{self._registry} issues tokens without TLS")
        query = urlencode({name: parameters[name] for name in ("service", "scope") if name in parameters})
        what = f"the token of {self._registry}"
        async with get_response(self._session, f"{realm}?{query}", what, basic) as response:
            check_status(response, what)
            document = parse_object(await read_document(response, what), what)
        token = document.get("token") or document.get("access_token")
        if not isinstance(token, str) or not token.isprintable():
            raise SourceFailed(f"{what} cannot be read")
        self.headers = {"authorization": f"Bearer {token}"}
