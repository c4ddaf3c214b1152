"""Access rules of the management port: read-only, and closed to web pages of other sites.

Why: a page of another site can make a browser send requests here. By DNS rebinding (its own name
resolves to our address) it can even read the answers. Therefore:

- The Host is an address, a name without a dot, a name that no public DNS serves, or a listed name.
- A foreign Origin is refused, and there are no CORS headers.
- Only GET is answered. The one exception, the route preview, has a body and changes nothing.
- Readiness, the status page (without data) and metrics are open. Metrics of tenants need a token
  that may read the data of all tenants.
- Everything else needs a management token whose scope allows the path. Without any token, only
  this machine is answered.

The rules need the head alone. So the server applies them before it reads a body, and the wrapper
applies them to every request.
"""

import ipaddress
import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Final, NamedTuple

from fairlead import http_access
from fairlead_gateway.supervisor.management.access.access_scope import (
    ROUTE_PREVIEW_PATH,
    SCOPE_KEY,
    AccessScope,
    route_of,
    scope_refusal,
)
from fairlead_gateway.supervisor.management.access.manage_tokens import LOCAL_NAME, ManageTokens

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
REQUEST_ID_KEY: Final = "fairlead.request_id"
"""The key of a request's id in an ASGI scope."""

App = Callable[[Scope, Receive, Send], Awaitable[None]]

METRICS_PATH: Final = "/metrics"
_OPEN_PATHS: Final = frozenset({"/", "/readyz", METRICS_PATH})
_SECURITY_HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"x-frame-options", b"DENY"),
)

_UNKNOWN: Final = AccessScope("without a known token", frozenset(), frozenset())
_BROWSER_HEADERS: Final = frozenset({b"origin", b"sec-fetch-site", b"sec-fetch-mode"})


class AnsweredRequest(NamedTuple):
    """A request to the management API that was answered or refused.

    route: path, with placeholders for names.
    reason: of a refusal; else empty.
    request_id: the `x-request-id` of the answer; None if the request was refused by its head.
    """

    method: str
    route: str
    status: int
    reason: str
    request_id: str | None


OnAccess = Callable[[AccessScope, AnsweredRequest], None]
"""Called with the scope of a request's token after the request."""


class AccessGuard:
    """An ASGI wrapper that enforces the access rules.

    tokens: None: only this machine is answered.
    hosts: further names under which clients reach this port.
    on_access: called after each request to a path that is not open.
    """

    def __init__(
        self,
        app: App,
        *,
        tokens: ManageTokens | None = None,
        hosts: Iterable[str] = (),
        on_access: OnAccess | None = None,
    ) -> None:
        self._app = app
        self._hosts = http_access.normalize_host_names(hosts)
        self._tokens = tokens or ManageTokens(None)
        self._on_access = on_access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, or refuses it with a reason."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self.refusal(scope)
        if refusal is not None:
            await _send_refusal(_with_security_headers(send), *refusal)
            return
        respond = _with_security_headers(send)
        if scope["path"] not in _OPEN_PATHS:
            respond = self._with_report(scope, respond)
        await self._app(scope, receive, respond)

    def _with_report(self, scope: Scope, send: Send) -> Send:
        """Returns `send`, which reports the status of the response as well."""

        async def reporting(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._report(scope[SCOPE_KEY], scope, message["status"], "")
            await send(message)

        return reporting

    def _report(self, access: AccessScope, scope: Scope, status: int, reason: str) -> None:
        if self._on_access is not None:
            route, request_id = route_of(scope["path"]), scope.get(REQUEST_ID_KEY)
            self._on_access(access, AnsweredRequest(scope["method"], route, status, reason, request_id))

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
        authorization = dict(headers).get(b"authorization", b"")
        if scope["path"] == METRICS_PATH:
            access = self._scope_of(scope, authorization)
            if access is not None:
                scope[SCOPE_KEY] = access
        if scope["path"] in _OPEN_PATHS:
            return None
        return self._token_refusal(scope, authorization)

    def _scope_of(self, scope: Scope, authorization: bytes) -> AccessScope | None:
        """Returns the rights of a request; None without a known token, or from another machine."""
        if self._tokens.are_required:
            return self._tokens.scope_of(authorization)
        return AccessScope(LOCAL_NAME) if _is_local(scope) else None

    def _token_refusal(self, scope: Scope, authorization: bytes) -> tuple[int, str, str] | None:
        access = self._scope_of(scope, authorization)
        if access is None and not self._tokens.are_required:
            return 403, "only local clients are answered", "set a management token"
        if access is None:
            self._report(_UNKNOWN, scope, 401, "the token is missing or wrong")
            return 401, "the management token is missing or wrong", "send it as Authorization: Bearer"
        reason = scope_refusal(access, scope["path"])
        if reason is not None:
            self._report(access, scope, 403, reason)
            return 403, reason, "ask an administrator for a token with more permissions"
        scope[SCOPE_KEY] = access
        return None


def refusal_headers(status: int, hint: str) -> tuple[tuple[str, str], ...]:
    """Returns the header fields that belong to a refusal with this status."""
    if status == 405:
        return (("allow", hint),)
    return (("www-authenticate", "Bearer"),) if status == 401 else ()


def _is_local(scope: Scope) -> bool:
    client = scope.get("client")
    return not client or ipaddress.ip_address(client[0].partition("%")[0]).is_loopback


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
