"""Rules of the client port for web pages: CORS, and the checks of a gateway without API keys.

A page that knows no key can do nothing at a gateway with keys, so pages of any origin may call one.
A gateway without keys answers everyone who reaches it, and that includes each page in a browser on
the machine. By DNS rebinding (its own name resolves to our address), a page also reads the answers.
Therefore, without keys:

- The Host is an address, a name that no public DNS serves, or a listed name. Another name is
  accepted where no browser can have sent it. A browser writes the port after the name, unless it is
  that of the scheme, and it always sends `accept-language`.
- An Origin is that of the Host, or a listed one.
- A body is JSON, which browsers send to another site only after a preflight. Forms with files are
  left to the paths that take them.

Readiness is not checked: it says nothing of models, and probes use names of their own. The rules
need the head alone. Heads that pass are not checked again on their connection.
"""

import re
from typing import Final

from fairlead import http_access
from fairlead.errors import SettingsError
from fairlead.settings import GatewaySettings
from fairlead_gateway.errors import ForeignPage, UnsupportedBodyType
from fairlead_gateway.http.listener import ResponseWriter
from fairlead_gateway.http.request_parser import RequestHead
from fairlead_gateway.proxy.local_routes import PROBE_PATHS, local_headers

ANY_ORIGIN: Final = "*"
NO_ORIGIN: Final = "none"
_ORIGIN: Final = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s,@?#]+")
_HEADER_NAMES: Final = re.compile(rb"[A-Za-z0-9_-]+(?:[ \t]*,[ \t]*[A-Za-z0-9_-]+)*")
_DEFAULT_HEADER_NAMES: Final = b"authorization, content-type"
_MAX_NAMES_BYTES: Final = 2_048
_BODY_TYPES: Final = (b"application/json", b"multipart/form-data")
_BROWSER_HEADERS: Final = (b"accept-language", b"origin", b"referer", b"sec-fetch-site", b"sec-fetch-mode")
_BROWSER_AGENT: Final = b"Mozilla/"
_HOST_HINT: Final = "use the address, or list the name in FAIRLEAD_CLIENT_HOSTS of the gateway"
_ORIGIN_HINT: Final = "list the origin of the page in FAIRLEAD_CORS_ORIGINS of the gateway, or use API keys"


class Cors:
    """The rules for web pages.

    has_api_keys: whether clients need a key.
    hosts: further names under which clients reach a gateway without keys.
    origins: of pages that may call; `ANY_ORIGIN` for all. None: all if a key is needed, else none.
    """

    def __init__(
        self, has_api_keys: bool, hosts: frozenset[str] = frozenset(), origins: frozenset[str] | None = None
    ) -> None:
        if origins is None:
            origins = frozenset({ANY_ORIGIN}) if has_api_keys else frozenset()
        self._has_api_keys = has_api_keys
        self._hosts = hosts
        self._origins = origins
        self._allows_any = ANY_ORIGIN in origins

    def check(self, head: RequestHead) -> None:
        """Sets the CORS headers of the answers to a head.

        Raises ForeignPage or UnsupportedBodyType if a gateway without keys refuses it.
        """
        origin = _text(head, b"origin")
        is_allowed = origin is not None and (self._allows_any or origin in self._origins)
        if origin is not None and is_allowed:
            head.response_fields = self._response_fields(origin)
        if not self._has_api_keys and head.path not in PROBE_PATHS:
            self._check_page(head, origin, is_allowed)
        head.is_checked = True

    def try_answer_preflight(self, head: RequestHead, response: ResponseWriter) -> bool:
        """Answers the question of a browser before a page's request; returns False for others.

        Raises ForeignPage as `check` does. No key is needed: a browser sends none with it.
        """
        if head.get(b"access-control-request-method") is None or head.get(b"origin") is None:
            return False
        self.check(head)
        if head.response_fields:
            names = head.get(b"access-control-request-headers") or b""
            if len(names) > _MAX_NAMES_BYTES or _HEADER_NAMES.fullmatch(names) is None:
                names = _DEFAULT_HEADER_NAMES
            head.response_fields += (
                f"access-control-allow-methods: GET, POST, OPTIONS\r\n"
                f"access-control-allow-headers: {names.decode('ascii')}\r\naccess-control-max-age: 600\r\n"
            )
        response.send(204, local_headers("options"), b"")
        return True

    def _response_fields(self, origin: str) -> str:
        if self._allows_any:
            return "access-control-allow-origin: *\r\naccess-control-expose-headers: *\r\n"
        return f"access-control-allow-origin: {origin}\r\naccess-control-expose-headers: *\r\nvary: origin\r\n"

    def _check_page(self, head: RequestHead, origin: str | None, is_allowed: bool) -> None:
        host = _text(head, b"host")
        if host is None:
            return  # HTTP/1.0, which no browser speaks
        if not http_access.is_trusted_host(host, self._hosts) and (":" in host or _has_browser_header(head)):
            raise ForeignPage("host", "this gateway asks for no key, and does not know this name", _HOST_HINT)
        if not is_allowed:
            if http_access.is_foreign_origin(origin, host):
                raise ForeignPage(
                    "origin", "this gateway asks for no key, and not every page may call it", _ORIGIN_HINT
                )
            site, mode = _text(head, b"sec-fetch-site"), _text(head, b"sec-fetch-mode")
            if http_access.is_foreign_fetch(site, mode):
                raise ForeignPage("sec-fetch-site", "this gateway answers no page of another site", _ORIGIN_HINT)
        content_type = head.get(b"content-type")
        if content_type is not None and head.length != 0:
            kind = content_type.partition(b";")[0].strip(b" \t").lower()
            if kind not in _BODY_TYPES and not kind.endswith(b"+json"):
                raise UnsupportedBodyType(
                    "a gateway without keys takes JSON bodies only",
                    param="content-type",
                    hint="send the header content-type: application/json",
                )


def parse_cors(settings: GatewaySettings, has_api_keys: bool) -> Cors:
    """Returns the rules that the settings make. Raises SettingsError."""
    hosts = http_access.normalize_host_names(_split(settings.client_hosts))
    given = _split(settings.cors_origins)
    for origin in given:
        if origin not in (ANY_ORIGIN, NO_ORIGIN) and not _ORIGIN.fullmatch(origin):
            raise SettingsError(
                f"FAIRLEAD_CORS_ORIGINS: {origin!r} is not an origin",
                field="FAIRLEAD_CORS_ORIGINS",
                hint="write scheme, host and port, like https://ui.example.com, or * for all, or none",
            )
    if len(given) > 1 and not {ANY_ORIGIN, NO_ORIGIN}.isdisjoint(given):
        raise SettingsError(
            "FAIRLEAD_CORS_ORIGINS: * and none stand alone", field="FAIRLEAD_CORS_ORIGINS", hint="remove the others"
        )
    return Cors(has_api_keys, hosts, frozenset(given) - {NO_ORIGIN} if given else None)


def _split(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def _has_browser_header(head: RequestHead) -> bool:
    agent = head.get(b"user-agent")
    if agent is not None and agent.startswith(_BROWSER_AGENT):
        return True
    return any(head.get(name) is not None for name in _BROWSER_HEADERS)


def _text(head: RequestHead, name: bytes) -> str | None:
    value = head.get(name)
    return None if value is None else value.strip(b" \t").decode("latin-1")
