"""The parts of a wait for an answer: queue, gateway, other requests at the engine, the engine."""

from dataclasses import dataclass

from fairlead import management_api as api


@dataclass(frozen=True, slots=True)
class WaitPart:
    """A part of the wait for the first token of a stream, or for the whole of another answer.

    share: of the wait, from 0 to 1.
    """

    text: str
    seconds: float
    share: float


def waited_seconds(outcome: api.OutcomeOut) -> float:
    """Returns the seconds until the first token of a stream, or the end of any other answer."""
    return outcome.duration_seconds if outcome.ttft_seconds is None else outcome.ttft_seconds


def wait_parts(decision: api.DecisionOut) -> list[WaitPart]:
    """Returns the parts of the wait, the longest first; none while the request runs.

    The gateway measures its queue, its own work and the rest. Of the rest, what other requests took
    at the engine is the backlog that the gateway expected when it chose the engine: an estimate.
    """
    outcome = decision.outcome
    if outcome is None:
        return []
    whole = waited_seconds(outcome)
    if whole <= 0.0:
        return []
    measured = {
        "the gateway's queue for an engine": outcome.queued_seconds,
        "prefill at another engine": 0.0 if decision.handoff is None else decision.handoff.waited_seconds,
        "the gateway's own work": max(0.0, outcome.overhead_seconds or 0.0),
    }
    rest = max(0.0, whole - sum(measured.values()))
    before = min(rest, _expected_backlog(decision))
    last = "the engine" if not outcome.failures else f"the engine, and {len(outcome.failures)} that failed before it"
    measured["requests before it at the engine (about)"] = before
    measured[last] = rest - before
    parts = [WaitPart(text, seconds, min(1.0, seconds / whole)) for text, seconds in measured.items() if seconds > 0.0]
    return sorted(parts, key=lambda part: -part.seconds)


def _expected_backlog(decision: api.DecisionOut) -> float:
    """Returns the backlog in seconds that the chosen engine had; 0 if it is not known."""
    if not decision.choices:
        return 0.0
    chosen = next((candidate for candidate in decision.choices[-1].candidates if candidate.chosen), None)
    number = None if chosen is None else chosen.inputs.get("backlog_seconds")
    return 0.0 if number is None or number.value is None else max(0.0, number.value)
