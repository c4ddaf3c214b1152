"""Bridge from our own HTTP connections to an ASGI app.

It passes one whole request and one whole answer: no streams, no lifespan, no upgrades.
"""

import asyncio

from fairlead_gateway.http.listener import HttpRequest, ResponseWriter
from fairlead_gateway.http.request_parser import RequestHead
from fairlead_gateway.supervisor.management.access.access_guard import REQUEST_ID_KEY, App, Message, Scope

_UNKNOWN_ADDRESS = "0.0.0.0"
"""Replaces an unreadable address, which must not count as this machine's."""
_FRAMING_HEADERS = (b"content-type", b"content-length")


async def serve_request(app: App, request: HttpRequest, response: ResponseWriter, server: tuple[str, int]) -> None:
    """Calls `app` and sends its answer once that is complete.

    server: address and port of the listening socket.
    """
    unread = [request.body]
    status = 500
    fields: list[tuple[bytes, bytes]] = []
    body = bytearray()

    async def receive() -> Message:
        if unread:
            return {"type": "http.request", "body": unread.pop(), "more_body": False}
        await asyncio.get_running_loop().create_future()  # a disconnect cancels the task
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
            fields.extend(message.get("headers", ()))
        else:
            body.extend(message.get("body", b""))

    scope = request_scope(request.head, response.client_address(), server)
    scope[REQUEST_ID_KEY] = response.request_id
    await app(scope, receive, send)
    kind = next((value for name, value in fields if name == b"content-type"), b"application/octet-stream")
    lines = b"".join(b"%b: %b\r\n" % (name, value) for name, value in fields if name not in _FRAMING_HEADERS)
    response.send(status, lines.decode("latin-1"), bytes(body), content_type=kind.decode("latin-1"))


def request_scope(head: RequestHead, client_address: str | None, server: tuple[str, int]) -> Scope:
    """Returns the ASGI scope of a request."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1" if head.version == 11 else "1.0",
        "method": head.method,
        "scheme": "http",
        "path": head.path,
        "query_string": head.query,
        "root_path": "",
        "headers": head.fields,
        "client": (client_address or _UNKNOWN_ADDRESS, 0),
        "server": server,
    }
