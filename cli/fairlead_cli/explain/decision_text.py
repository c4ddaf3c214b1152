"""A whole decision as text: attempts with their candidates, KV transfer and outcome. Pure."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from fairlead.units import format_duration
from fairlead_cli import formatting
from fairlead_cli.management import api_types

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
    {"indexed_tokens", "inflight_tokens", "recompute_seconds", "non_home_price", "unforeseen_share", "table_epoch"}
)
"""Inputs that only the wide output shows."""


def render_preview(preview: api_types.RoutePreview, *, wide: bool = False) -> list[str]:
    """Returns lines that say where a request would go, with the inputs of the decision.

    wide: all inputs, and whole ids of instances.
    """
    decision = preview.decision
    lines = [f"a request to {decision.model} · about {decision.prompt_tokens:,.0f} prompt tokens · nothing was sent"]
    lines += [*_route(decision), *map(_fallback, preview.fallbacks)]
    for choice in decision.choices:
        lines += [
            "",
            f"→ {api_types.short_instance_name(choice.instance) if choice.instance else 'nowhere'} by the rule {choice.rule}",
        ]
        lines += [f"     {choice.reason}", *_table(choice.candidates, choice.inputs, wide)]
    if preview.workers > 1:
        lines += ["", f"{preview.agreeing} of {preview.workers} workers would choose this instance"]
    return lines


def render_decision(
    decision: api_types.Decision, *, wide: bool = False, objectives: api_types.Objectives | None = None
) -> list[str]:
    """Returns one request as lines: KV transfer, attempts with candidates, and outcome.

    wide: all inputs, and whole ids of instances.
    objectives: the model's SLO, to name a missed target.
    """
    head = [decision.request_id, f"to {decision.model}", f"about {decision.prompt_tokens:,.0f} prompt tokens"]
    if decision.caller is not None:
        head.append(f"key {decision.caller}")
    if decision.wall:
        head.append(datetime.fromtimestamp(decision.wall, UTC).strftime("%Y-%m-%d %H:%M:%S UTC"))
    lines = ["request " + " · ".join(head), *_route(decision)]
    if decision.handoff is not None:
        lines += _handoff(decision.handoff, wide)
    lines += _attempts(decision, wide)
    lines += ["", *_outcome(decision, objectives)]
    return lines


def _route(decision: api_types.Decision) -> list[str]:
    lines = [] if decision.route is None else [f"route: {decision.route.reason}"]
    if decision.kept_back:
        lines.append(f"not sent to the engine: {', '.join(decision.kept_back)}")
    return lines


def _fallback(fallback: api_types.RouteFallback) -> str:
    failed = "" if fallback.after is None else f" of {fallback.after}"
    return f"fallback: {fallback.model} after {' or '.join(fallback.when)}{failed}"


def _handoff(handoff: api_types.Handoff, wide: bool) -> Iterator[str]:
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
        yield from _table(where.candidates, where.inputs, wide)
    for leg in handoff.legs:
        took = "" if leg.seconds is None else f" after {format_duration(leg.seconds)}"
        yield f"  prefill on {api_types.short_instance_name(leg.instance)} by the rule {leg.rule}: {leg.result}{took}"
        yield f"     {leg.reason}"
        yield from _table(leg.candidates, leg.inputs, wide)


def _attempts(decision: api_types.Decision, wide: bool) -> Iterator[str]:
    """Yields the attempts in order, each failed one with its reason."""
    failures = decision.outcome.failures if decision.outcome is not None else []
    last = {choice.attempt: position for position, choice in enumerate(decision.choices)}
    for position, choice in enumerate(decision.choices):
        where = f"→ {api_types.short_instance_name(choice.instance)}" if choice.instance else "→ nowhere"
        prefix = f"{decision.handoff.words}; " if decision.handoff is not None else ""
        yield ""
        yield f"attempt {choice.attempt} {where} by the rule {choice.rule}"
        yield f"     {choice.reason.removeprefix(prefix)}"
        yield from _table(choice.candidates, choice.inputs, wide)
        if position < last[choice.attempt]:
            yield "     ended before its first byte: the KV transfer failed, which does not count as an attempt"
        elif 0 < choice.attempt <= len(failures):
            yield f"     ended before its first byte: {failures[choice.attempt - 1].why}"


def _table(
    candidates: Sequence[api_types.Candidate], inputs: Mapping[str, api_types.InputValue], wide: bool
) -> Iterator[str]:
    """Yields a row for each candidate: its inputs in columns, then why it was not chosen."""
    input_names = {name for candidate in candidates for name in candidate.inputs if wide or name not in _WIDE_INPUTS}
    names = [name for name in _COLUMN_HEADINGS if name in input_names] + sorted(input_names - _COLUMN_HEADINGS.keys())
    rows = [["", "", *(_COLUMN_HEADINGS.get(name, name) for name in names)]] if names else []
    for candidate in candidates:
        cells = [_cell(name, candidate.inputs.get(name)) for name in names]
        instance_name = candidate.id if wide else api_types.short_instance_name(candidate.id)
        rows.append(["√" if candidate.chosen else "·", instance_name, *cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    remarks = ([""] if names else []) + ["" if candidate.chosen else candidate.why for candidate in candidates]
    for row, remark in zip(rows, remarks, strict=True):
        left = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        yield ("     " + " ".join(left) + "".join(f"  {cell}" for cell in right) + f"  {remark}").rstrip()
    yield from _of_all(candidates, inputs, wide)


def _of_all(
    candidates: Sequence[api_types.Candidate], inputs: Mapping[str, api_types.InputValue], wide: bool
) -> Iterator[str]:
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


def _cell(name: str, number: api_types.InputValue | None) -> str:
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


def _outcome(decision: api_types.Decision, objectives: api_types.Objectives | None) -> Iterable[str]:
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
    lines = ["outcome: " + ", ".join(parts)]
    times = []
    if outcome.queued_seconds:
        times.append(f"{format_duration(outcome.queued_seconds)} in the gateway's queue for an engine")
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
        missed = "" if outcome.within_objective else _missed_targets(decision, outcome, objectives)
        lines.append(f"     SLO {'met' if outcome.within_objective else 'missed'}{missed}")
    return lines


def _missed_targets(
    decision: api_types.Decision, outcome: api_types.RequestOutcome, objectives: api_types.Objectives | None
) -> str:
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


def _tokens(outcome: api_types.RequestOutcome) -> list[str]:
    parts = []
    if outcome.prompt_tokens is not None:
        cached = "" if outcome.cached_tokens is None else f", {outcome.cached_tokens:,} of them cached"
        expected = outcome.predicted_cached_tokens
        expectation = "" if expected is None or not cached else f" ({expected:,} expected)"
        parts.append(f"{formatting.pluralize(outcome.prompt_tokens, 'prompt token')}{cached}{expectation}")
    if outcome.output_tokens is not None:
        parts.append(f"{formatting.pluralize(outcome.output_tokens, 'token')} written")
    return parts
