"""Requests to the management app of a gateway, without a port."""

import asyncio
import hmac
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import httpx

from fairlead_gateway.supervisor.management import GatewayView, create_management_app
from fairlead_gateway.supervisor.management.access.access_scope import AccessScope
from fairlead_gateway.supervisor.management.access.manage_tokens import ManageTokens


def management_answer(
    view: GatewayView,
    url: str,
    *,
    app: Mapping[str, Any] = MappingProxyType({}),
    token: str | None = None,
    peer: str = "127.0.0.1",
    **request: Any,
) -> httpx.Response:
    """Returns the answer of the app over `view` to one request of `peer`; by default, a GET.

    app: arguments of `create_management_app`.
    request: arguments of httpx' `request`.
    """
    sent = dict(request.pop("headers", {})) | ({} if token is None else {"authorization": f"Bearer {token}"})

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app=create_management_app(view, **app), client=(peer, 40_000))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.request(request.pop("method", "GET"), url, headers=sent, **request)

    return asyncio.run(send())


def scoped_tokens(full: str, scopes: Mapping[str, AccessScope]) -> ManageTokens:
    """Returns management tokens: one that sees everything, and scoped ones."""
    tokens = ManageTokens(full, b"pepper")
    tokens.replace({hmac.digest(b"pepper", name.encode(), "sha256"): scope for name, scope in scopes.items()})
    return tokens
