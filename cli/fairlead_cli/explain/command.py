"""``fairlead explain``: a request, or where a prompt would go; from the options to the exit code."""

import asyncio
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from fairlead.errors import BadInput
from fairlead.settings import CliSettings, read_settings
from fairlead_cli.addresses import service_url
from fairlead_cli.exit_codes import USAGE, run_query
from fairlead_cli.explain.decision_text import render_decision, render_preview
from fairlead_cli.local.run_directory import newest_stack
from fairlead_cli.management import api_types
from fairlead_cli.management.client import ManagementClient

T = TypeVar("T")
_REQUEST_PATHS: Final[Mapping[str, str]] = {
    "messages": "/v1/chat/completions",
    "prompt": "/v1/completions",
    "input": "/v1/embeddings",
}
"""Field of a request's body → the path of its endpoint."""


def run_request(request_id: str | None, manage: str | None, as_json: bool) -> int:
    """Queries one request, prints it and returns the exit code."""

    def ask() -> bytes:
        return asyncio.run(_ask(_address(manage), _token(), request_id))

    def show(content: bytes) -> str:
        return _shown(content, as_json, api_types.Decision, render_decision)

    return run_query("explain", ask, show)


def _address(manage: str | None) -> str:
    return service_url(manage, flag="--manage") if manage else newest_stack("--manage").manage


def _token() -> str | None:
    return read_settings(CliSettings, os.environ).manage_token


def _shown(content: bytes, as_json: bool, kind: type[T], render: Callable[[T], Sequence[str]]) -> str:
    """Returns the gateway's answer as JSON or as text."""
    if as_json:
        return msgspec.json.format(content, indent=2).decode()
    return "\n".join(render(msgspec.json.decode(content, type=kind)))


@dataclass(frozen=True, slots=True)
class RouteQuery:
    """Query of ``explain route``: model, file of the prompt (``-`` is standard input) and session."""

    model: str | None
    file: str
    session: str | None


def run_route(query: RouteQuery, manage: str | None, as_json: bool) -> int:
    """Queries where a prompt would go, prints it and returns the exit code."""

    def ask() -> bytes:
        path, body = build_request(query)
        return asyncio.run(_where(_address(manage), _token(), path, body, query))

    def show(content: bytes) -> str:
        return _shown(content, as_json, api_types.RoutePreview, render_preview)

    return run_query("explain route", ask, show, misuse=(BadInput,))


def print_usage() -> int:
    """Prints the usage of ``explain route`` and ``explain scale``."""
    print("fairlead explain: a prompt is asked about with: fairlead explain route -m MODEL -f FILE", file=sys.stderr)
    print("fairlead explain: a model's size with: fairlead explain scale MODEL [--at WHEN]", file=sys.stderr)
    return USAGE


def build_request(query: RouteQuery) -> tuple[str, bytes]:
    """Returns path and body of the request to ask about. Raises BadInput.

    A file that holds a JSON request is taken unchanged; other text becomes one user message.
    """
    try:
        data = sys.stdin.buffer.read() if query.file == "-" else Path(query.file).read_bytes()
        text = data.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{query.file} cannot be read as text: {error}", field="--file") from None
    try:  # values stay as they are written: where a prompt goes is decided by its very bytes
        body = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    except ValueError:
        body = {}
    path = next((path for name, path in _REQUEST_PATHS.items() if name in body), None)
    if path is None:
        path = _REQUEST_PATHS["messages"]
        body = {"messages": msgspec.Raw(msgspec.json.encode([{"role": "user", "content": text}]))}
    if query.model is not None:
        body["model"] = msgspec.Raw(msgspec.json.encode(query.model))
    if "model" not in body:
        raise BadInput("of which model is not said", field="--model", hint="-m MODEL")
    return path, msgspec.json.encode(body)


async def _where(address: str, token: str | None, path: str, body: bytes, route: RouteQuery) -> bytes:
    async with ManagementClient(address, token) as management:
        return await management.preview_route(path, body, route.session)


async def _ask(address: str, token: str | None, request_id: str | None) -> bytes:
    """Returns the gateway's answer. Raises StackUnreachable, and LookupError with a message for the
    user.
    """
    async with ManagementClient(address, token) as management:
        if request_id is None:
            decisions = (await management.decisions(1)).decisions
            if not decisions:
                raise LookupError(f"{address} has routed no request yet")
            request_id = decisions[0].request_id
        try:
            return await management.decision_json(request_id)
        except LookupError:
            raise LookupError(
                f"{address} does not know request {request_id!r}: it was answered by another gateway, never reached an engine, "
                "or has left the log, which keeps the last few thousand (the id is in the header x-fairlead-decision)"
            ) from None
