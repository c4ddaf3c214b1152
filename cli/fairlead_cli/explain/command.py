"""``fairlead explain request``, ``route`` and ``shadow``: routing of requests and of copies."""

import contextlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Final, TypeVar

import msgspec
from cyclopts import Parameter

from fairlead import management_api as api
from fairlead.errors import BadInput
from fairlead.units import format_duration
from fairlead_cli import formatting
from fairlead_cli.exit_codes import run_query
from fairlead_cli.explain.wait_parts import wait_parts
from fairlead_cli.formatting import UNKNOWN, align_columns, format_count, format_seconds, short_instance_name
from fairlead_cli.management.client import (
    GatewaySource,
    GatewaysSource,
    ManagementClient,
    ManagementEndpoint,
    open_endpoints,
)
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
_SHOWN_SHARE: Final = 0.01
_RESPONSES_FIELDS: Final = ("max_output_tokens", "instructions", "tools", "stream", "previous_response_id", "store")

_COLUMN_HEADINGS: Final[Mapping[str, str]] = {
    "cost_seconds": "cost",
    "predicted_ttft_seconds": "first token",
    "backlog_seconds": "backlog",
    "matched_tokens": "cached (about)",
    "inflight": "in flight",
    "home": "home",
}
"""Name of an input → heading, in the order of the columns; other inputs follow under their own
names.
"""
_WIDE_INPUTS: Final = frozenset(
    {"indexed_tokens", "inflight_tokens", "recompute_seconds", "non_home_price", "unforeseen_share"}
)
"""Inputs that only the wide output shows."""

_COMPARED = ("answered", "failed")
Comparisons = Mapping[str, Sequence[api.ShadowOut]]
"""By the model that gets the copies."""


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
            help="Its id: from the header x-fairlead-decision, or x-request-id if it was refused, or the answer's "
            "own id. Default: the last request.",
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
            decision = msgspec.json.decode(content, type=api.DecisionOut)
            missed = decision.outcome is not None and decision.outcome.within_objective is False
            objectives = _objectives(endpoint, decision.model) if missed else None
            return _Explained(_name_pods(content, endpoint), objectives)

    def show(explained: _Explained) -> str:
        def render(decision: api.DecisionOut) -> Sequence[str]:
            return render_decision(decision, wide=output == "wide", objectives=explained.objectives)

        return _shown(explained.content, output, api.DecisionOut, render)

    return run_query(fetch, show)


@dataclass(frozen=True, slots=True)
class _Explained:
    """A decision as JSON, and the SLO of its model if the request missed it."""

    content: bytes
    objectives: api.ObjectivesOut | None = None


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
                return endpoint.query(partial(ManagementClient.decision_json, request_id=name)), endpoint
    names = ", ".join(endpoint.name for endpoint in endpoints)
    raise LookupError(
        f"no decision for request {request_id!r} at {names}: another gateway answered it, it never reached an engine, "
        "or the log (a few thousand decisions) has dropped it. Take the id from the answer's header "
        "x-fairlead-decision, or x-request-id if it was refused, leave it out for the last request, or look into the access log"
    )


def _names_of(request_id: str) -> Sequence[str]:
    """Returns the ids under which to look: the given one, and the gateway's own in it.

    Why: engines put the gateway's id into that of their answer, as `chatcmpl-req-…`.
    """
    own = _OWN_ID.search(request_id)
    return [request_id] if own is None or own[0] == request_id else [request_id, own[0]]


def _objectives(endpoint: ManagementEndpoint, model: str) -> api.ObjectivesOut | None:
    models = endpoint.query(ManagementClient.fleet).models
    return next((known.objectives for known in models if known.key == model), None)


def _last_request(endpoints: Sequence[ManagementEndpoint]) -> tuple[str, Sequence[ManagementEndpoint]]:
    last = [(endpoint.query(lambda client: client.decisions(1)), endpoint) for endpoint in endpoints]
    decisions = [(found, endpoint) for answer, endpoint in last for found in answer.decisions]
    if not decisions:
        raise LookupError(f"no request was routed yet at {', '.join(endpoint.name for endpoint in endpoints)}")
    decision, endpoint = max(decisions, key=lambda entry: entry[0].wall)
    return decision.request_id, [endpoint]


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
    request with several messages or tools, give its whole JSON body. Its fields say what it is:
    chat, completion, embedding, message or response. Tokens are estimates from bytes. Of a route,
    it shows the target that this request would get, and the fallbacks.

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
            content = endpoints[0].query(
                lambda client: client.preview_route(path, body, sender.session, sender.tenant, sender.header)
            )
            return content if is_document(output) else _name_pods(content, endpoints[0])

    def show(content: bytes) -> str:
        wide = output == "wide"
        return _shown(content, output, api.RoutePreviewOut, lambda preview: render_preview(preview, wide=wide))

    return run_query(fetch, show)


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
    path = _request_path(body)
    if path is None:
        path = _REQUEST_PATHS["messages"]
        body = {"messages": msgspec.Raw(msgspec.json.encode([{"role": "user", "content": text}]))}
    if model is None and "model" not in body:
        raise BadInput("the request names no model", field="--model", hint="--model MODEL")
    content = msgspec.json.encode(body)
    return path, content if model is None else _name_model(content, model)


def _request_path(body: Mapping[str, msgspec.Raw]) -> str | None:
    """Returns the path of the endpoint whose requests have these fields; None if there is none.

    Only Anthropic's messages have the system prompt, or the schema of a tool, in fields of their
    own. Responses have fields, or turns, that embeddings do not have.
    """
    if "messages" in body and ("system" in body or b'"input_schema"' in bytes(body.get("tools", b""))):
        return "/v1/messages"
    if "input" in body and (any(field in body for field in _RESPONSES_FIELDS) or b'"role"' in bytes(body["input"])):
        return "/v1/responses"
    return next((path for name, path in _REQUEST_PATHS.items() if name in body), None)


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
    namespace = msgspec.json.decode(source, type=api.DecisionOut).model.partition("/")[0]
    for uid, name in endpoint.installation.pod_names(namespace).items():
        content = content.replace(uid.encode(), name.encode())
    return content


def render_preview(preview: api.RoutePreviewOut, *, wide: bool = False) -> list[str]:
    """Returns lines that say where a request would go, with the inputs of the decision.

    wide: all inputs, and whole ids of instances.
    """
    decision = preview.decision
    lines = [f"a request to {decision.model} · about {decision.prompt_tokens:,.0f} prompt tokens · nothing was sent"]
    lines += [*_route(decision), *map(_fallback, preview.fallbacks)]
    for choice in decision.choices:
        lines += [
            "",
            f"→ {short_instance_name(choice.instance) if choice.instance else 'nowhere'} by the rule {choice.rule}",
        ]
        lines += [f"     {choice.reason}", *_table(choice.candidates, choice.inputs, wide)]
    if preview.workers > 1:
        lines += ["", f"{preview.agreeing} of {preview.workers} workers would choose this instance"]
    return lines


def render_decision(
    decision: api.DecisionOut, *, wide: bool = False, objectives: api.ObjectivesOut | None = None
) -> list[str]:
    """Returns one request as lines: KV transfer, attempts with candidates, and outcome.

    wide: all inputs, and whole ids of instances.
    objectives: the model's SLO, to name a missed target.
    """
    head = [decision.request_id, f"to {decision.model}", f"about {decision.prompt_tokens:,.0f} prompt tokens"]
    if decision.caller is not None:
        head.append(f"tenant {decision.caller}")
    if decision.wall:
        head.append(datetime.fromtimestamp(decision.wall, UTC).strftime("%Y-%m-%d %H:%M:%S UTC"))
    lines = ["request " + " · ".join(head), *_route(decision)]
    if decision.handoff is not None:
        lines += _handoff(decision.handoff, wide)
    lines += _attempts(decision, wide)
    lines += ["", *_outcome(decision, objectives)]
    return lines


def _route(decision: api.DecisionOut) -> list[str]:
    lines = [] if decision.route is None else [f"route: {decision.route.reason}"]
    if decision.kept_back:
        lines.append(f"not sent to the engine: {', '.join(decision.kept_back)}")
    return lines


def _fallback(fallback: api.DeclaredFallbackOut) -> str:
    failed = "" if fallback.after is None else f" of {fallback.after}"
    return f"fallback: {fallback.model} after {' or '.join(fallback.when)}{failed}"


def _handoff(handoff: api.HandoffOut, wide: bool) -> Iterator[str]:
    why = "" if handoff.reason in ("", "none") else f" ({handoff.reason})"
    waited = f", {format_duration(handoff.waited_seconds)} before a decode engine was chosen" if handoff.legs else ""
    yield ""
    yield f"prefill → decode: {handoff.outcome}{why}{waited}"
    if handoff.words and not handoff.legs:
        yield f"  {handoff.words}"
    where = handoff.where
    if where is not None:
        computes = (
            "no engine to prefill it"
            if where.instance is None
            else f"computed on {short_instance_name(where.instance)}"
        )
        yield f"  {computes} by the rule {where.rule}"
        if where.reason not in handoff.words:
            yield f"     {where.reason}"
        yield from _table(where.candidates, where.inputs, wide)
    for leg in handoff.legs:
        took = "" if leg.seconds is None else f" after {format_duration(leg.seconds)}"
        yield f"  prefill on {short_instance_name(leg.instance)} by the rule {leg.rule}: {leg.result}{took}"
        yield f"     {leg.reason}"
        yield from _table(leg.candidates, leg.inputs, wide)


def _attempts(decision: api.DecisionOut, wide: bool) -> Iterator[str]:
    """Yields the attempts in order, each failed one with its reason."""
    failures = decision.outcome.failures if decision.outcome is not None else []
    last = {choice.attempt: position for position, choice in enumerate(decision.choices)}
    for position, choice in enumerate(decision.choices):
        where = f"→ {short_instance_name(choice.instance)}" if choice.instance else "→ nowhere"
        prefix = f"{decision.handoff.words}; " if decision.handoff is not None else ""
        yield ""
        yield f"attempt {choice.attempt} {where} by the rule {choice.rule}"
        yield f"     {choice.reason.removeprefix(prefix)}"
        yield from _table(choice.candidates, choice.inputs, wide)
        if position < last[choice.attempt]:
            yield "     ended before its first byte: the KV transfer failed, which does not count as an attempt"
        elif 0 < choice.attempt <= len(failures):
            yield f"     ended before its first byte: {failures[choice.attempt - 1].why}"


def _table(candidates: Sequence[api.CandidateOut], inputs: Mapping[str, api.NumberOut], wide: bool) -> Iterator[str]:
    """Yields a row for each candidate: its inputs in columns, then why it was not chosen."""
    input_names = {name for candidate in candidates for name in candidate.inputs if wide or name not in _WIDE_INPUTS}
    names = [name for name in _COLUMN_HEADINGS if name in input_names] + sorted(input_names - _COLUMN_HEADINGS.keys())
    rows = [["", "", *(_COLUMN_HEADINGS.get(name, name) for name in names)]] if names else []
    for candidate in candidates:
        cells = [_cell(name, candidate.inputs.get(name)) for name in names]
        instance_name = candidate.id if wide else short_instance_name(candidate.id)
        rows.append(["√" if candidate.chosen else "·", instance_name, *cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    remarks = ([""] if names else []) + ["" if candidate.chosen else candidate.why for candidate in candidates]
    for row, remark in zip(rows, remarks, strict=True):
        left = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        yield ("     " + " ".join(left) + "".join(f"  {cell}" for cell in right) + f"  {remark}").rstrip()
    yield from _of_all(candidates, inputs, wide)


def _of_all(candidates: Sequence[api.CandidateOut], inputs: Mapping[str, api.NumberOut], wide: bool) -> Iterator[str]:
    """Yields at most one line: the inputs that belong to no candidate, and whether all inputs are
    current.
    """
    parts = []
    for name, number in sorted(inputs.items()):
        instance, _, input_name = name.rpartition("/")
        if input_name in _WIDE_INPUTS and not wide:
            continue
        parts.append(f"{instance} {_COLUMN_HEADINGS.get(input_name, input_name)} {_cell(input_name, number)}".strip())
    numbers = [*inputs.values(), *(number for candidate in candidates for number in candidate.inputs.values())]
    if numbers and all(number.age_seconds is None for number in numbers):
        parts.append("all numbers as of that moment")
    if parts:
        yield f"     {'; '.join(parts)}"


def _cell(name: str, number: api.NumberOut | None) -> str:
    if number is None or number.value is None:
        return formatting.UNKNOWN
    if name == "home":
        shown = "yes" if number.value else "no"
    elif name.endswith("_epoch"):
        shown = f"{number.value:.0f}"
    elif name.endswith("_seconds"):
        shown = formatting.format_seconds(number.value)
    elif name.endswith("_share"):
        shown = f"{100 * number.value:.1f} %"
    elif name.endswith("_price"):
        shown = f"{number.value:.1f}"
    else:
        shown = formatting.format_count(number.value)
    return shown if number.age_seconds is None else f"{shown} ({format_duration(number.age_seconds)} ago)"


def _outcome(decision: api.DecisionOut, objectives: api.ObjectivesOut | None) -> Iterable[str]:
    outcome = decision.outcome
    if outcome is None:
        return ["outcome: it is still running"]
    parts = [f"status {outcome.status}" + (f" ({outcome.error})" if outcome.error else "")]
    if outcome.client_gone:
        parts.append("the client left")
    if outcome.duration_seconds is not None:
        parts.append(f"after {format_duration(outcome.duration_seconds)}")
    if outcome.attempts > 1:
        parts.append(f"{outcome.attempts} attempts")
    if outcome.continued:
        parts.append("the rest of the stream came from another engine")
    if outcome.not_continued:
        parts.append(f"no engine could continue the stream ({outcome.not_continued})")
    lines = ["outcome: " + ", ".join(parts)]
    times = []
    if outcome.queued_seconds:
        times.append(f"{format_duration(outcome.queued_seconds)} in the gateway's queue for an engine")
    if outcome.ttft_seconds is not None:
        times.append(f"first token after {formatting.format_seconds(outcome.ttft_seconds)}")
    if outcome.itl_mean_seconds is not None:
        times.append(f"{format_duration(outcome.itl_mean_seconds)} between tokens")
    if outcome.break_seconds is not None:
        computed = f", {outcome.recomputed_tokens:,} tokens computed again" if outcome.recomputed_tokens else ""
        times.append(f"a pause of {format_duration(outcome.break_seconds)} at the break{computed}")
    if outcome.overhead_seconds is not None:
        times.append(f"the gateway itself took {format_duration(max(0.0, outcome.overhead_seconds))}")
    lines += ["     " + ", ".join(times)] if times else []
    shares = [f"{100 * part.share:.0f} % {part.text}" for part in wait_parts(decision) if part.share >= _SHOWN_SHARE]
    if len(shares) > 1:
        what = "the whole answer" if outcome.ttft_seconds is None else "the first token"
        lines.append(f"     of the wait for {what}: {', '.join(shares)}")
    tokens = _tokens(outcome)
    lines += ["     " + ", ".join(tokens)] if tokens else []
    if outcome.within_objective is not None:
        missed = "" if outcome.within_objective else _missed_targets(decision, outcome, objectives)
        lines.append(f"     SLO {'met' if outcome.within_objective else 'missed'}{missed}")
    return lines


def _missed_targets(decision: api.DecisionOut, outcome: api.OutcomeOut, objectives: api.ObjectivesOut | None) -> str:
    """Returns the targets that the request missed, as the model states them now."""
    if objectives is None:
        return ""
    parts = []
    limit = objectives.ttft_seconds
    if limit is not None:
        tokens = decision.prompt_tokens if outcome.prompt_tokens is None else outcome.prompt_tokens
        limit += objectives.ttft_per_kilo_token_seconds * tokens / 1000
        if outcome.ttft_seconds is None or outcome.ttft_seconds > limit:
            parts.append(f"TTFT {formatting.format_seconds(outcome.ttft_seconds)}, target {format_duration(limit)}")
    tpot, target = outcome.itl_mean_seconds, objectives.itl_seconds
    if tpot is not None and target is not None and tpot > target:
        parts.append(f"TPOT {formatting.format_seconds(tpot)}, target {format_duration(target)}")
    return f": {'; '.join(parts)} (spec.slo of the model)" if parts else ""


def _tokens(outcome: api.OutcomeOut) -> list[str]:
    parts = []
    if outcome.prompt_tokens is not None:
        cached = "" if outcome.cached_tokens is None else f", {outcome.cached_tokens:,} of them cached"
        expected = outcome.predicted_cached_tokens
        expectation = "" if expected is None or not cached else f" ({expected:,} expected)"
        parts.append(f"{formatting.pluralize(outcome.prompt_tokens, 'prompt token')}{cached}{expectation}")
    if outcome.output_tokens is not None:
        parts.append(f"{formatting.pluralize(outcome.output_tokens, 'token')} written")
    return parts


def explain_shadow(
    model: ModelFlag = None,
    *,
    source: Annotated[GatewaySource, Parameter(name="*")] = _GATEWAY,
    output: OutputFlag = "table",
) -> int:
    """Explain how a model answers copies of requests for another model.

    The model is the `shadow` of a route. Shows errors, TTFT, TPOT and the length of answers, of the
    same requests on both sides, since each gateway has started. Also shows why other requests were
    not copied. In a cluster, each gateway has a table of its own.

    Exits 0 with an answer, 1 when no request was copied, 2 on wrong usage, 3 when no gateway can be
    reached.
    """
    wanted = qualified_name(model, source.cluster.namespace)

    def fetch() -> Mapping[str, Comparisons]:
        with open_endpoints(source.manage, source.cluster) as endpoints:
            name = None if wanted is None else endpoints[0].qualify_model(wanted)
            found = {endpoint.name: _of_model(_shadows(endpoint), name) for endpoint in endpoints}
        if not any(found.values()):
            where = ", ".join(found)
            raise LookupError(f"no request was copied to {name or 'a model'} at {where}: see `shadow` of the routes")
        return found

    def show(found: Mapping[str, Comparisons]) -> str:
        if is_document(output):
            return format_document(found, output)
        return "\n\n".join(
            "\n".join(render_comparison(key, shadow, gateway if len(found) > 1 else None))
            for gateway, comparisons in found.items()
            for key, shadows in comparisons.items()
            for shadow in shadows
        )

    return run_query(fetch, show)


def render_comparison(key: str, shadow: api.ShadowOut, gateway: str | None) -> list[str]:
    """Returns the comparison of two models as lines.

    gateway: whose requests these are; None for the only one.
    """
    where = "" if gateway is None else f", at {gateway}"
    others = [f"{word} {count:,}" for word, count in shadow.outcomes.items() if word not in _COMPARED]
    missing = f"; without an answer: {', '.join(others)}" if others else ""
    copies, originals = shadow.copies, shadow.originals
    rows = [
        ("", "copy", "original", ""),
        (
            "errors",
            _share(copies.errors, shadow.compared),
            _share(originals.errors, shadow.compared),
            "",
        ),
        _row("TTFT", copies.ttft_mean_seconds, originals.ttft_mean_seconds, format_seconds),
        _row("TPOT", copies.tpot_mean_seconds, originals.tpot_mean_seconds, format_seconds),
        _row("answer tokens", copies.output_tokens_mean, originals.output_tokens_mean, format_count),
    ]
    return [
        f"{key} answers copies of requests for {shadow.original}{where}",
        f"{shadow.compared:,} of {sum(shadow.outcomes.values()):,} compared{missing}",
        *align_columns(rows).splitlines(),
    ]


def _row(
    name: str, copied: float | None, original: float | None, show: Callable[[float | None], str]
) -> tuple[str, str, str, str]:
    change = "" if copied is None or not original else f"{100 * (copied / original - 1):+.0f} %"
    return name, show(copied), show(original), change


def _share(errors: int, compared: int) -> str:
    return f"{100 * errors / compared:.1f} %" if compared else UNKNOWN


def _shadows(endpoint: ManagementEndpoint) -> Comparisons:
    models = endpoint.query(ManagementClient.stats).models
    return {key: stats.shadows for key, stats in models.items() if stats.shadows}


def _of_model(found: Comparisons, name: str | None) -> Comparisons:
    return {key: shadows for key, shadows in found.items() if name in (None, key, key.partition("/")[2])}
