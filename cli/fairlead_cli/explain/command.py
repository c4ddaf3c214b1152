"""``fairlead explain request`` and ``route``: routing of a request or a prompt."""

import asyncio
import contextlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, TypeVar

import msgspec
from cyclopts import Parameter

from fairlead.errors import BadInput
from fairlead_cli.exit_codes import run_query
from fairlead_cli.explain.decision_text import render_decision, render_preview
from fairlead_cli.management import api_types
from fairlead_cli.management.client import ManagementClient
from fairlead_cli.management.endpoints import GatewaySource, GatewaysSource, ManagementEndpoint, open_endpoints
from fairlead_cli.output import OutputFlag, OutputFormat, format_document, is_document
from fairlead_cli.target import ModelFlag, qualified_name

T = TypeVar("T")
_HEADER: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\x00-\x1f\x7f]*")
_OWN_ID: Final = re.compile(r"req-[0-9a-f]{8}-[0-9a-f]{16}")
_REQUEST_PATHS: Final[Mapping[str, str]] = {
    "messages": "/v1/chat/completions",
    "prompt": "/v1/completions",
    "input": "/v1/embeddings",
}
"""Field of a request's body → the path of its endpoint."""


@dataclass(frozen=True, slots=True)
class SenderFlags:
    """Flags that say who would send a request, and with which headers."""

    session: Annotated[str | None, Parameter(help="The conversation, as in the header x-session-id.")] = None
    tenant: Annotated[
        str | None,
        Parameter(help="The tenant that would send it: with its models and its cached prompts. Default: no tenant."),
    ] = None
    header: Annotated[
        tuple[str, ...],
        Parameter(help='A further header, like "x-canary: yes", by which a route may choose. Repeatable.', negative=()),
    ] = ()


_GATEWAY, _GATEWAYS, _SENDER = GatewaySource(), GatewaysSource(), SenderFlags()


def explain_request(
    request_id: Annotated[
        str | None,
        Parameter(
            name="ID",
            help="Its id: from the header x-fairlead-decision, the answer's own id, or the x-request-id that the "
            "client sent. Default: the last request.",
        ),
    ] = None,
    /,
    *,
    source: Annotated[GatewaysSource, Parameter(name="*")] = _GATEWAYS,
    output: OutputFlag = "table",
) -> int:
    """Explain why a request went to its instance.

    Shows every attempt with all candidates, their inputs and ages, the rule, and why other
    candidates were not chosen. Also shows the KV transfer from prefill to decode, and the outcome.
    In a cluster, all gateways are asked. Tokens of prompts are estimates from bytes. JSON and YAML
    are the management API's own answer.

    Exits 0 with an answer, 1 when the request is not in the log, 2 on wrong usage, 3 when no
    gateway can be reached.
    """

    def fetch() -> _Explained:
        with open_endpoints(source.manage, source.installation.cluster) as endpoints:
            content, endpoint = _find_request(endpoints, request_id)
            if is_document(output):
                return _Explained(content)
            decision = msgspec.json.decode(content, type=api_types.Decision)
            missed = decision.outcome is not None and decision.outcome.within_objective is False
            objectives = asyncio.run(_objectives(endpoint, decision.model)) if missed else None
            return _Explained(_name_pods(content, endpoint), objectives)

    def show(explained: _Explained) -> str:
        def render(decision: api_types.Decision) -> Sequence[str]:
            return render_decision(decision, wide=output == "wide", objectives=explained.objectives)

        return _shown(explained.content, output, api_types.Decision, render)

    return run_query("explain request", fetch, show)


@dataclass(frozen=True, slots=True)
class _Explained:
    """A decision as JSON, and the SLO of its model if the request missed it."""

    content: bytes
    objectives: api_types.Objectives | None = None


def _shown(content: bytes, output: OutputFormat, kind: type[T], render: Callable[[T], Sequence[str]]) -> str:
    """Returns the gateway's answer as a document or as text."""
    if is_document(output):
        return format_document(content, output)
    return "\n".join(render(msgspec.json.decode(content, type=kind)))


def _find_request(endpoints: Sequence[ManagementEndpoint], request_id: str | None) -> tuple[bytes, ManagementEndpoint]:
    """Returns the decision of the gateway that routed the request, as JSON, and the gateway.

    request_id: None for the last request of all gateways.

    Raises StackUnreachable, and LookupError with a message for the user if no gateway has it.
    """
    if request_id is None:
        request_id, endpoints = _last_request(endpoints)
    for name in _names_of(request_id):
        for endpoint in endpoints:
            with contextlib.suppress(LookupError):
                return asyncio.run(_decision(endpoint, name)), endpoint
    names = ", ".join(endpoint.name for endpoint in endpoints)
    raise LookupError(
        f"no decision for request {request_id!r} at {names}: another gateway answered it, it never reached an engine, "
        "or the log (a few thousand decisions) has dropped it. Take the id from the answer's header "
        "x-fairlead-decision, leave it out for the last request, or look into the access log"
    )


def _names_of(request_id: str) -> Sequence[str]:
    """Returns the ids under which to look: the given one, and the gateway's own in it.

    Why: engines put the gateway's id into that of their answer, as `chatcmpl-req-…`.
    """
    own = _OWN_ID.search(request_id)
    return [request_id] if own is None or own[0] == request_id else [request_id, own[0]]


async def _objectives(endpoint: ManagementEndpoint, model: str) -> api_types.Objectives | None:
    """Returns the SLO of a model; None if the gateway no longer serves it."""
    async with ManagementClient(endpoint.url(), endpoint.token) as management:
        models = (await management.fleet()).models
    return next((known.objectives for known in models if known.key == model), None)


def _last_request(endpoints: Sequence[ManagementEndpoint]) -> tuple[str, Sequence[ManagementEndpoint]]:
    decisions = [(found, endpoint) for endpoint in endpoints for found in asyncio.run(_last_decision(endpoint))]
    if not decisions:
        raise LookupError(f"no request was routed yet at {', '.join(endpoint.name for endpoint in endpoints)}")
    decision, endpoint = max(decisions, key=lambda entry: entry[0].wall)
    return decision.request_id, [endpoint]


async def _last_decision(endpoint: ManagementEndpoint) -> Sequence[api_types.Decision]:
    async with ManagementClient(endpoint.url(), endpoint.token) as management:
        return (await management.decisions(1)).decisions


async def _decision(endpoint: ManagementEndpoint, request_id: str) -> bytes:
    async with ManagementClient(endpoint.url(), endpoint.token) as management:
        return await management.decision_json(request_id)


def explain_route(
    model: ModelFlag = None,
    *,
    file: Annotated[
        str,
        Parameter(
            name=["--file", "-f"],
            allow_leading_hyphen=True,
            help="A file with the prompt, or with a whole request in JSON; - is standard input.",
        ),
    ],
    sender: Annotated[SenderFlags, Parameter(name="*")] = _SENDER,
    source: Annotated[GatewaySource, Parameter(name="*")] = _GATEWAY,
    output: OutputFlag = "table",
) -> int:
    """Explain where a prompt would go now, and why. Nothing is sent to an engine or stored.

    Text becomes one user message. A prompt finds only what a request in the same form left: for a
    request with several messages or tools, give its whole JSON body. Tokens are estimates from
    bytes. Of a route, it shows the target that this request would get, and the fallbacks.

    Exits 0 with an answer, 1 when the request would be refused, 2 on wrong usage, 3 when no gateway
    can be reached.
    """
    name = qualified_name(model, source.cluster.namespace)

    def fetch() -> bytes:
        path, body = build_request(file, name)
        _check_headers(sender.header)
        with open_endpoints(source.manage, source.cluster) as endpoints:
            if name is not None:
                body = _name_model(body, endpoints[0].qualify_model(name))
            content = asyncio.run(_preview(endpoints[0], path, body, sender))
            return content if is_document(output) else _name_pods(content, endpoints[0])

    def show(content: bytes) -> str:
        wide = output == "wide"
        return _shown(content, output, api_types.RoutePreview, lambda preview: render_preview(preview, wide=wide))

    return run_query("explain route", fetch, show, misuse=(BadInput,))


def build_request(file: str, model: str | None) -> tuple[str, bytes]:
    """Returns path and body of the request to preview. Raises BadInput.

    A file with a JSON request gives the request, with the given model if there is one. Other
    text becomes one user message.
    """
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        text = data.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{file} cannot be read as text: {error}", field="--file") from None
    try:  # values stay as they are written: where a prompt goes is decided by its very bytes
        body = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    except ValueError:
        body = {}
    path = next((path for name, path in _REQUEST_PATHS.items() if name in body), None)
    if path is None:
        path = _REQUEST_PATHS["messages"]
        body = {"messages": msgspec.Raw(msgspec.json.encode([{"role": "user", "content": text}]))}
    if model is None and "model" not in body:
        raise BadInput("the request names no model", field="--model", hint="--model MODEL")
    content = msgspec.json.encode(body)
    return path, content if model is None else _name_model(content, model)


def _check_headers(headers: Sequence[str]) -> None:
    """Raises BadInput for a header that is not written as ``NAME: VALUE``."""
    for header in headers:
        if not _HEADER.fullmatch(header):
            raise BadInput(f"{header!r} is no header", field="--header", hint='write it like --header "x-canary: yes"')


def _name_model(body: bytes, name: str) -> bytes:
    """Returns a request with this model, all else as it was written."""
    fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    fields["model"] = msgspec.Raw(msgspec.json.encode(name))
    return msgspec.json.encode(fields)


def _name_pods(content: bytes, endpoint: ManagementEndpoint) -> bytes:
    """Returns a decision or preview in which pods have their names in place of their uids.

    Why in the encoded text: reasons mention instances, too.
    """
    if endpoint.installation is None:
        return content
    document = msgspec.json.decode(content, type=dict[str, msgspec.Raw])
    source = document.get("decision", content)
    namespace = msgspec.json.decode(source, type=api_types.Decision).model.partition("/")[0]
    for uid, name in endpoint.installation.pod_names(namespace).items():
        content = content.replace(uid.encode(), name.encode())
    return content


async def _preview(endpoint: ManagementEndpoint, path: str, body: bytes, sender: SenderFlags) -> bytes:
    async with ManagementClient(endpoint.url(), endpoint.token) as management:
        return await management.preview_route(path, body, sender.session, sender.tenant, sender.header)
