"""A short summary of one decision: the chosen instance, the others, and the outcome. Pure."""

from collections.abc import Callable, Mapping
from typing import Final

from fairlead_cli import formatting
from fairlead_cli.management import api_types

_KNOWN_INPUTS: Final[Mapping[str, Callable[[float | None], str]]] = {
    "matched_tokens": lambda value: f"{formatting.format_count(value)} tokens cached",
    "backlog_seconds": lambda value: f"backlog {formatting.format_seconds(value)}",
    "predicted_ttft_seconds": lambda value: f"first token predicted in {formatting.format_seconds(value)}",
}


def summarize_decision(decision: api_types.Decision) -> list[str]:
    """Returns one request as lines, from its first choice to its end."""
    tokens = f"about {decision.prompt_tokens:,.0f} prompt tokens"
    lines = [f"request {decision.request_id} to {decision.model.removeprefix('default/')}, {tokens}"]
    for choice in decision.choices:
        lines += _choice(choice, first=choice is decision.choices[0])
    lines.append(describe_outcome(decision.outcome))
    return lines


def _choice(choice: api_types.Choice, *, first: bool) -> list[str]:
    where = f"went to {api_types.short_instance_name(choice.instance)}" if choice.instance else "went nowhere"
    lines = [f"{'' if first else 'then '}{where}, by the rule {choice.rule}: {choice.reason}"]
    for candidate in choice.candidates:
        numbers = ", ".join(_inputs(candidate.inputs))
        mark = "√" if candidate.chosen else "·"
        why = "" if candidate.chosen else candidate.why
        details = "; ".join(part for part in (numbers, why) if part)
        lines.append(f"  {mark} {api_types.short_instance_name(candidate.id)}" + (f"  {details}" if details else ""))
    return lines


def _inputs(inputs: Mapping[str, api_types.InputValue]) -> list[str]:
    return [say(inputs[name].value) for name, say in _KNOWN_INPUTS.items() if name in inputs]


def describe_outcome(outcome: api_types.RequestOutcome | None) -> str:
    """Returns the end of a request in one line."""
    if outcome is None:
        return "it is still running"
    parts = []
    if outcome.client_gone:
        parts.append("the client left")
    if outcome.error:
        parts.append(f"it failed with {outcome.status} ({outcome.error})")
    if outcome.ttft_seconds is not None:
        parts.append(f"first token after {formatting.format_seconds(outcome.ttft_seconds)}")
    if outcome.cached_tokens is not None and outcome.prompt_tokens is not None:
        parts.append(f"{outcome.cached_tokens:,} of {outcome.prompt_tokens:,} prompt tokens came from the cache")
    if outcome.output_tokens is not None:
        parts.append(formatting.pluralize(outcome.output_tokens, "token") + " written")
    if outcome.attempts > 1:
        parts.append(f"{outcome.attempts} engines were tried")
    return "what happened: " + (", ".join(parts) or "it ended")
