"""A query to another engine over its side channel. It has no timeout: a frozen peer blocks it."""

import asyncio
from typing import Any

import msgspec

from fairlead.errors import FairleadError


class PeerUnreachable(FairleadError):
    """Raised if the peer does not listen or breaks the connection."""


class PeerRejected(FairleadError):
    """Raised if the peer rejects the query."""


async def query_peer(address: str, path: str, query: object) -> dict[str, Any]:
    """Posts a query to ``HOST:PORT`` and returns the reply. Raises PeerUnreachable or
    PeerRejected.
    """
    host, _, port = address.rpartition(":")
    body = msgspec.json.encode(query)
    head = f"POST {path} HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\nconnection: close\r\n"
    writer: asyncio.StreamWriter | None = None
    try:
        reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        reply = await reader.read()
    except (OSError, ValueError) as error:
        raise PeerUnreachable(f"the engine at {address} is unreachable") from error
    finally:
        if writer is not None:
            writer.transport.abort()
    status, _, rest = reply.partition(b"\r\n\r\n")
    if not rest:
        raise PeerUnreachable(f"the engine at {address} closed the connection without a reply")
    if not status.startswith(b"HTTP/1.1 200"):
        raise PeerRejected(f"the engine at {address} rejected the query")
    document: dict[str, Any] = msgspec.json.decode(rest)
    return document
