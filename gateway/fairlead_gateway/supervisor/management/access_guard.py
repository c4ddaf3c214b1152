"""Access rules of the management port: read-only, and closed to web pages of other sites.

Why: a page of another site can make a browser send requests here. By DNS rebinding (its own name
resolves to our address) it can even read the answers. Therefore:

- The Host is an address, a name without a dot, a name that no public DNS serves, or a listed name.
- A foreign Origin is refused, and there are no CORS headers.
- Only GET is answered. The one exception, the route preview, has a body and changes nothing.
- Readiness, metrics and the status page (without data) are open.
- Everything else needs the management token. Without a token, only this machine is answered.

The rules need the head alone. So the server applies them before it reads a body, and the wrapper
applies them to every request.
"""

import ipaddress
import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Final

from fairlead import http_access

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

ROUTE_PREVIEW_PATH: Final = "/api/route"
"""Path of the route preview, the only one with POST."""
_OPEN_PATHS: Final = frozenset({"/", "/readyz", "/metrics"})
_SECURITY_HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"x-frame-options", b"DENY"),
)


class AccessGuard:
    """An ASGI wrapper that enforces the access rules.

    hosts: further names under which clients reach this port.
    """

    def __init__(self, app: App, *, hosts: Iterable[str] = (), token: str | None = None) -> None:
        self._app = app
        self._hosts = http_access.normalize_host_names(hosts)
        self._token = token.encode() if token else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, or refuses it with a reason."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self.refusal(scope)
        if refusal is None:
            await self._app(scope, receive, _with_security_headers(send))
        else:
            await _send_refusal(_with_security_headers(send), *refusal)

    def refusal(self, scope: Scope) -> tuple[int, str, str] | None:
        """Returns status, message and hint of a request that is refused by its head; else None."""
        headers = scope["headers"]
        hosts = [value.decode("latin-1") for name, value in headers if name == b"host"]
        if len(hosts) != 1 or not http_access.is_trusted_host(hosts[0], self._hosts):
            return (
                403,
                "this host name is not served here",
                "use the address, or start the gateway with --manage-host NAME",
            )
        method = "POST" if scope["path"] == ROUTE_PREVIEW_PATH else "GET"
        if scope["method"] != method:
            return 405, f"the management port does not answer {scope['method']} on this path", method
        sent = {name: value.decode("latin-1") for name, value in headers if name in _BROWSER_HEADERS}
        if http_access.is_foreign_origin(sent.get(b"origin"), hosts[0]):
            return 403, "requests from other origins are refused", "open the status page itself"
        if http_access.is_foreign_fetch(sent.get(b"sec-fetch-site"), sent.get(b"sec-fetch-mode")):
            return 403, "requests from other sites are refused", "open the status page itself"
        if scope["path"] in _OPEN_PATHS:
            return None
        return self._token_refusal(scope, dict(headers).get(b"authorization", b""))

    def _token_refusal(self, scope: Scope, authorization: bytes) -> tuple[int, str, str] | None:
        if self._token is None:
            return None if _is_local(scope) else (403, "only local clients are answered", "set a management token")
        if http_access.is_authorized(authorization, self._token):
            return None
        return 401, "the management token is missing or wrong", "send it as Authorization: Bearer"


def refusal_headers(status: int, hint: str) -> tuple[tuple[str, str], ...]:
    """Returns the header fields that belong to a refusal with this status."""
    if status == 405:
        return (("allow", hint),)
    return (("www-authenticate", "Bearer"),) if status == 401 else ()


def _is_local(scope: Scope) -> bool:
    """Returns whether the client is on this machine. Without an address, it counts as local."""
    client = scope.get("client")
    return not client or ipaddress.ip_address(client[0].partition("%")[0]).is_loopback


_BROWSER_HEADERS: Final = frozenset({b"origin", b"sec-fetch-site", b"sec-fetch-mode"})


def _with_security_headers(send: Send) -> Send:
    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            present = {name for name, _ in message.get("headers", ())}
            message["headers"] = [
                *message.get("headers", ()),
                *(item for item in _SECURITY_HEADERS if item[0] not in present),
            ]
        await send(message)

    return wrapped


async def _send_refusal(send: Send, status: int, message: str, hint: str) -> None:
    body = json.dumps({"error": {"message": message, "type": "invalid_request_error", "hint": hint}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.encode(), value.encode()) for name, value in refusal_headers(status, hint)]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
