"""Styles and text fragments that the live view and ``status`` share."""

from datetime import datetime

from rich.text import Text

from fairlead_cli import formatting
from fairlead_cli.management import api_types

PHASE_STYLES = {
    "Ready": "green",
    "Starting": "yellow",
    "Draining": "yellow",
    "Sleeping": "dim",
    "Waiting": "red",
    "Stopped": "dim",
}


RULE_STYLES = {"affinity": "green", "slo-spill": "yellow", "load": "cyan", "none": "red"}


PHASE_MARKS = {"Ready": "●", "Starting": "◌", "Draining": "◐", "Sleeping": "☾", "Waiting": "×", "Stopped": "○"}


def last_minute_text(window: api_types.PeriodStats) -> Text:
    """Returns rate, hit rate, latencies and SLO of a model's last minute."""
    line = Text(formatting.format_rate(window.requests_per_second), no_wrap=True, overflow="ellipsis")
    line.append(f"  hit rate {formatting.format_share(window.cached_token_share)}")
    line.append(
        f"  TTFT {formatting.format_seconds(window.ttft_seconds.p50)} (p90 {formatting.format_seconds(window.ttft_seconds.p90)})"
    )
    line.append(f"  ITL {formatting.format_seconds(window.itl_seconds.p50)}")
    line.append(f"  in SLO {formatting.format_share(window.within_objective)}")
    if window.errors:
        line.append(f"  {formatting.pluralize(window.errors, 'error')}", "bold red")
    return line


def format_result(outcome: api_types.RequestOutcome | None) -> str:
    """Returns the end of a request in a word or two."""
    if outcome is None:
        return "running"
    if outcome.client_gone:
        return "client left"
    if outcome.error or outcome.status >= 400:
        return f"{outcome.status} {outcome.error or ''}".strip()
    return f"TTFT {formatting.format_seconds(outcome.ttft_seconds)}" if outcome.ttft_seconds is not None else "done"


def format_clock(wall: float) -> str:
    """Returns the time of day."""
    return datetime.fromtimestamp(wall).strftime("%H:%M:%S")
