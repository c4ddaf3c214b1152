"""``fairlead explain``, from its arguments to its exit code, and a whole decision as text."""

import asyncio
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from fairlead.errors import BadInput
from fairlead.settings import CliSettings, read_settings
from fairlead.units import format_duration
from fairlead_cli import formatting
from fairlead_cli.addresses import service_url
from fairlead_cli.exit_codes import USAGE, run_query
from fairlead_cli.local.run_directory import newest_stack
from fairlead_cli.management import api_types
from fairlead_cli.management.client import ManagementClient

T = TypeVar("T")
_REQUEST_PATHS: Final[Mapping[str, str]] = {
    "messages": "/v1/chat/completions",
    "prompt": "/v1/completions",
    "input": "/v1/embeddings",
}
"""What a request's body has → where it is sent."""
_COLUMN_HEADINGS: Final[Mapping[str, str]] = {
    "cost_seconds": "cost",
    "predicted_ttft_seconds": "first token",
    "backlog_seconds": "backlog",
    "matched_tokens": "cached",
    "inflight": "in flight",
    "home": "home",
}
"""Names of inputs → heads of columns, in the order of the columns; others follow under their own names."""


def run_request(request_id: str | None, manage: str | None, as_json: bool) -> int:
    """Ask and print; the exit code."""

    def ask() -> bytes:
        return asyncio.run(_ask(_address(manage), _token(), request_id))

    def show(content: bytes) -> str:
        return _shown(content, as_json, api_types.Decision, render_decision)

    return run_query("explain", ask, show)


def _address(manage: str | None) -> str:
    return service_url(manage, flag="--manage") if manage else newest_stack("--manage").manage


def _token() -> str | None:
    return read_settings(CliSettings, os.environ).manage_token


def _shown(content: bytes, as_json: bool, kind: type[T], told: Callable[[T], Sequence[str]]) -> str:
    """What a gateway answered, as it came or in words."""
    if as_json:
        return msgspec.json.format(content, indent=2).decode()
    return "\n".join(told(msgspec.json.decode(content, type=kind)))


@dataclass(frozen=True, slots=True)
class RouteQuery:
    """What ``explain route`` was asked: of which model, the prompt's file (``-`` is standard input), and of which session."""

    model: str | None
    file: str
    session: str | None


def run_route(query: RouteQuery, manage: str | None, as_json: bool) -> int:
    """Ask where a prompt would go and print it; the exit code."""

    def ask() -> bytes:
        path, body = build_request(query)
        return asyncio.run(_where(_address(manage), _token(), path, body, query))

    def show(content: bytes) -> str:
        return _shown(content, as_json, api_types.RoutePreview, render_preview)

    return run_query("explain route", ask, show, misuse=(BadInput,))


def print_usage() -> int:
    """Say how ``explain route`` and ``explain scale`` are asked."""
    print("fairlead explain: a prompt is asked about with: fairlead explain route -m MODEL -f FILE", file=sys.stderr)
    print("fairlead explain: a model's size with: fairlead explain scale MODEL [--at WHEN]", file=sys.stderr)
    return USAGE


def build_request(query: RouteQuery) -> tuple[str, bytes]:
    """The path and body of the request that is asked about: a file that holds a request is taken as it is, any other text is one
    message of a user. Raises BadInput."""
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


def render_preview(preview: api_types.RoutePreview) -> list[str]:
    """Where a request would go, with everything it was found from."""
    decision = preview.decision
    lines = [f"a request to {decision.model} · about {decision.prompt_tokens:,.0f} prompt tokens · nothing was sent"]
    for choice in decision.choices:
        lines += [
            "",
            f"→ {api_types.short_instance_name(choice.instance) if choice.instance else 'nowhere'} by the rule {choice.rule}",
        ]
        lines += [f"     {choice.reason}", *_table(choice.candidates, choice.inputs)]
    if preview.workers > 1:
        lines += ["", f"{preview.agreeing} of {preview.workers} workers would choose this instance"]
    return lines


async def _ask(address: str, token: str | None, request_id: str | None) -> bytes:
    """The answer as it came. Raises NoStack, and LookupError with words for the user."""
    async with ManagementClient(address, token) as management:
        if request_id is None:
            last = (await management.decisions(1)).decisions
            if not last:
                raise LookupError(f"{address} has routed no request yet")
            request_id = last[0].request_id
        try:
            return await management.decision_json(request_id)
        except LookupError:
            raise LookupError(
                f"{address} does not know request {request_id!r}: it was answered by another gateway, never reached an engine, "
                "or has left the log, which keeps the last few thousand (the id is in the header x-fairlead-decision)"
            ) from None


def render_decision(decision: api_types.Decision) -> list[str]:
    """Everything about one request."""
    head = [decision.request_id, f"to {decision.model}", f"about {decision.prompt_tokens:,.0f} prompt tokens"]
    if decision.caller is not None:
        head.append(f"key {decision.caller}")
    if decision.wall:
        head.append(datetime.fromtimestamp(decision.wall, UTC).strftime("%Y-%m-%d %H:%M:%S UTC"))
    lines = ["request " + " · ".join(head)]
    if decision.handoff is not None:
        lines += _handoff(decision.handoff)
    lines += _attempts(decision)
    lines += ["", *_outcome(decision)]
    return lines


def _handoff(handoff: api_types.Handoff) -> Iterator[str]:
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
            else f"computed on {api_types.short_instance_name(where.instance)}"
        )
        yield f"  {computes} by the rule {where.rule}"
        if where.reason not in handoff.words:
            yield f"     {where.reason}"
        yield from _table(where.candidates, where.inputs)
    for leg in handoff.legs:
        took = "" if leg.seconds is None else f" after {format_duration(leg.seconds)}"
        yield f"  prefill on {api_types.short_instance_name(leg.instance)} by the rule {leg.rule}: {leg.result}{took}"
        yield f"     {leg.reason}"
        yield from _table(leg.candidates, leg.inputs)


def _attempts(decision: api_types.Decision) -> Iterator[str]:
    """The choices in order, each with how it ended where that was not the end of all."""
    failures = decision.outcome.failures if decision.outcome is not None else []
    last = {choice.attempt: position for position, choice in enumerate(decision.choices)}
    for position, choice in enumerate(decision.choices):
        where = f"→ {api_types.short_instance_name(choice.instance)}" if choice.instance else "→ nowhere"
        told_above = f"{decision.handoff.words}; " if decision.handoff is not None else ""
        yield ""
        yield f"attempt {choice.attempt} {where} by the rule {choice.rule}"
        yield f"     {choice.reason.removeprefix(told_above)}"
        yield from _table(choice.candidates, choice.inputs)
        if position < last[choice.attempt]:
            yield "     ended before its first byte: the hand-off failed, which counts as no attempt"
        elif 0 < choice.attempt <= len(failures):
            yield f"     ended before its first byte: {failures[choice.attempt - 1].why}"


def _table(candidates: Sequence[api_types.Candidate], inputs: Mapping[str, api_types.InputValue]) -> Iterator[str]:
    """Candidates in rows, their numbers in columns, and what is said of those that were not taken behind them."""
    seen = {name for candidate in candidates for name in candidate.inputs}
    names = [name for name in _COLUMN_HEADINGS if name in seen] + sorted(seen - _COLUMN_HEADINGS.keys())
    rows = [["", "", *(_COLUMN_HEADINGS.get(name, name) for name in names)]] if names else []
    for candidate in candidates:
        cells = [_cell(name, candidate.inputs.get(name)) for name in names]
        rows.append(["√" if candidate.chosen else "·", api_types.short_instance_name(candidate.id), *cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    remarks = ([""] if names else []) + ["" if one.chosen else one.why for one in candidates]
    for row, remark in zip(rows, remarks, strict=True):
        left = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        yield ("     " + " ".join(left) + "".join(f"  {cell}" for cell in right) + f"  {remark}").rstrip()
    yield from _of_all(candidates, inputs)


def _of_all(candidates: Sequence[api_types.Candidate], inputs: Mapping[str, api_types.InputValue]) -> Iterator[str]:
    """The numbers that belong to no single candidate, and how old all of them were."""
    told = []
    for name, number in sorted(inputs.items()):
        place, _, what = name.rpartition("/")
        told.append(f"{place} {_COLUMN_HEADINGS.get(what, what)} {_cell(what, number)}".strip())
    numbers = [*inputs.values(), *(number for one in candidates for number in one.inputs.values())]
    if numbers and all(number.age_seconds is None for number in numbers):
        told.append("all numbers as of that moment")
    if told:
        yield f"     {'; '.join(told)}"


def _cell(name: str, number: api_types.InputValue | None) -> str:
    if number is None or number.value is None:
        return formatting.UNKNOWN
    if name == "home":
        shown = "yes" if number.value else "no"
    elif name.endswith("_epoch"):
        shown = f"{number.value:.0f}"
    elif name.endswith("_seconds"):
        shown = formatting.format_seconds(number.value)
    else:
        shown = formatting.format_count(number.value)
    return shown if number.age_seconds is None else f"{shown} ({format_duration(number.age_seconds)} ago)"


def _outcome(decision: api_types.Decision) -> Iterable[str]:
    outcome = decision.outcome
    if outcome is None:
        return ["outcome: it is still running"]
    first = [f"status {outcome.status}" + (f" ({outcome.error})" if outcome.error else "")]
    if outcome.client_gone:
        first.append("the client left")
    if outcome.duration_seconds is not None:
        first.append(f"after {format_duration(outcome.duration_seconds)}")
    if outcome.attempts > 1:
        first.append(f"{outcome.attempts} attempts")
    if outcome.continued:
        first.append("the rest of the stream came from another engine")
    lines = ["outcome: " + ", ".join(first)]
    times = []
    if outcome.ttft_seconds is not None:
        times.append(f"first token after {formatting.format_seconds(outcome.ttft_seconds)}")
    if outcome.itl_mean_seconds is not None:
        times.append(f"{format_duration(outcome.itl_mean_seconds)} between tokens")
    if outcome.overhead_seconds is not None:
        times.append(f"the gateway itself took {format_duration(max(0.0, outcome.overhead_seconds))}")
    lines += ["     " + ", ".join(times)] if times else []
    tokens = _tokens(outcome)
    lines += ["     " + ", ".join(tokens)] if tokens else []
    if outcome.within_objective is not None:
        lines.append(f"     objectives {'met' if outcome.within_objective else 'missed'}")
    return lines


def _tokens(outcome: api_types.RequestOutcome) -> list[str]:
    said = []
    if outcome.prompt_tokens is not None:
        cached = "" if outcome.cached_tokens is None else f", {outcome.cached_tokens:,} of them cached"
        expected = outcome.predicted_cached_tokens
        guess = "" if expected is None or not cached else f" ({expected:,} expected)"
        said.append(f"{formatting.pluralize(outcome.prompt_tokens, 'prompt token')}{cached}{guess}")
    if outcome.output_tokens is not None:
        said.append(f"{formatting.pluralize(outcome.output_tokens, 'token')} written")
    return said
