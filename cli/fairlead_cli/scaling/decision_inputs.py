"""Inputs of an autoscaler decision as text: labels, units, and the sum that gives the demand.
Pure.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Final

from fairlead.decision import DecisionInput
from fairlead.errors import BadInput
from fairlead.units import format_duration, parse_duration
from fairlead_cli import formatting

LABEL_WIDTH: Final = 22
_OTHER_TARGETS: Final = ("need_at_95_replicas", "need_at_99_9_replicas")
"""Inputs that show the demand at a target which is not the model's."""
_DISPLAY_TOLERANCE: Final = 0.005
"""A difference that two decimals do not show."""


@dataclass(frozen=True, slots=True)
class InputLabel:
    """Label and format of one input.

    neutral_value: at this value the input has no effect and is not shown.

    same_as: name of another input; with equal values this one is not shown.
    """

    label: str
    format: Callable[[float], str]
    neutral_value: float | None = None
    same_as: str | None = None
    unknown: str = formatting.UNKNOWN


def _replicas(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") + (" replica" if value == 1 else " replicas")


def _dollars(value: float) -> str:
    return f"${value:,.2f} an hour, as planned"


def _tokens(value: float) -> str:
    return formatting.pluralize(round(value), "token")


def _exact_share(value: float) -> str:
    """Returns a share in percent with up to two decimals, and never rounded to 100 %."""
    return f"{100.0 * value if value == 1.0 else min(100.0 * value, 99.99):.2f}".rstrip("0").rstrip(".") + " %"


def _misses_left(value: float) -> str:
    if value < 0.0:
        return f"none: {formatting.pluralize(round(-value), 'request')} too many missed"
    return f"{formatting.pluralize(round(value), 'request')} more may miss"


def _miss_factor(value: float) -> str:
    return f"{value:.2f} × as often as predicted, by what was counted"


INPUT_LABELS: Final[Mapping[str, InputLabel]] = MappingProxyType(
    {
        "speed_factor": InputLabel("engine's step", lambda value: f"{value:.2f} × what its profile says"),
        "capacity_requests_per_second": InputLabel(
            "capacity", lambda value: f"{value:.3g} requests/s a replica, at the SLO"
        ),
        "prompt_tokens": InputLabel("prompt", _tokens),
        "output_tokens": InputLabel("answer", _tokens),
        "output_growth": InputLabel(
            "answers grow", lambda value: f"to {value:.2f} × that by when an order is ready", neutral_value=1.0
        ),
        "prompt_growth": InputLabel(
            "prompts grow", lambda value: f"to {value:.2f} × that by when an order is ready", neutral_value=1.0
        ),
        "cached_share": InputLabel("cached", formatting.format_share),
        "kept_token_share": InputLabel(
            "prefilled by decode", lambda value: f"{formatting.format_share(value)} of prompt tokens"
        ),
        "missed_share": InputLabel(
            "attained", lambda value: f"{_exact_share(1.0 - value)} of the period's requests in time"
        ),
        "budget_left_requests": InputLabel("left of the budget", _misses_left),
        "allowed_miss_share": InputLabel("goal", lambda value: f"{_exact_share(value)} of the next requests may miss"),
        "first_token_miss_factor": InputLabel("late first tokens", _miss_factor, neutral_value=1.0),
        "gap_miss_factor": InputLabel("slow answers", _miss_factor, neutral_value=1.0),
        "level_replicas": InputLabel("load now", _replicas),
        "spread_replicas": InputLabel("its spread", lambda value: f"± {_replicas(value)}"),
        "deviation_share": InputLabel(
            "forecasts are off by", lambda value: f"{formatting.format_share(value)}, as a standard deviation"
        ),
        "trend_replicas_per_minute": InputLabel("trend", lambda value: f"{value:+.2f} replicas a minute"),
        "ahead_seconds": InputLabel(
            "looking ahead", lambda value: f"{format_duration(value)}, as long as a start takes"
        ),
        "forecast_replicas": InputLabel("forecast", _replicas),
        "certain_replicas": InputLabel("enough for it", lambda value: f"{_replicas(value)}, if it were exact"),
        "recurring_burst_replicas": InputLabel("bursts come back to", _replicas, neutral_value=0.0),
        "backlog_requests": InputLabel(
            "waiting", lambda value: formatting.pluralize(round(value), "request"), neutral_value=0.0
        ),
        "backlog_replicas": InputLabel("for those that wait", _replicas, neutral_value=0.0),
        "need_replicas": InputLabel("need", _replicas),
        "need_at_95_replicas": InputLabel("at a target of 95 %", _replicas),
        "need_at_99_9_replicas": InputLabel("at a target of 99.9 %", _replicas),
        "window_max_replicas": InputLabel("most of the window", _replicas),
        "mix_replicas": InputLabel("the mix has here", _replicas),
        "needed_here_replicas": InputLabel("needed of this pool", _replicas, same_as="window_max_replicas"),
        "target_replicas": InputLabel("target", _replicas),
        "desired_replicas": InputLabel("desired now", _replicas),
        "ready_replicas": InputLabel("ready", _replicas),
        "pending_replicas": InputLabel("starting", _replicas, neutral_value=0.0),
        "hedged_replicas": InputLabel(
            "started beside",
            lambda value: f"{_replicas(value)} more, of which the last to be ready are cancelled",
            neutral_value=0.0,
        ),
        "ejected_replicas": InputLabel("ready, no answer", _replicas, neutral_value=0.0),
        "replacement_replicas": InputLabel("their replacements", _replicas, neutral_value=0.0),
        "whole_replicas": InputLabel("there, or asleep", _replicas),
        "wake_seconds": InputLabel("waking takes", format_duration),
        "asleep_replicas": InputLabel("asleep", _replicas),
        "asleep_planned_replicas": InputLabel("to be asleep", _replicas),
        "minimum_replicas": InputLabel("at least", _replicas),
        "maximum_replicas": InputLabel("at most", _replicas),
        "together_most_replicas": InputLabel("all pools", lambda value: f"{_replicas(value)} at most"),
        "prefill_need_engines": InputLabel("prefill needs", _replicas),
        "decode_need_engines": InputLabel("decode needs", _replicas),
        "carried_share": InputLabel(
            "so shared, carried", lambda value: f"{formatting.format_share(value)} of the load"
        ),
        "usd_per_hour": InputLabel("this pool costs", _dollars, same_as="model_usd_per_hour"),
        "model_usd_per_hour": InputLabel(
            "the model costs", _dollars, unknown=f"{formatting.UNKNOWN}, since an AcceleratorClass has no costPerHour"
        ),
        "convertible_prompt_tokens": InputLabel(
            "prefills besides", lambda value: f"prompts of up to {_tokens(value)}, where it has slack"
        ),
        "convertible_tokens_per_second": InputLabel(
            "as many as", lambda value: f"{_tokens(value)} a second, all of the pool together"
        ),
    }
)
"""By the name that the autoscaler's core uses. Inputs without a label keep their names."""


def render_inputs(
    inputs: Mapping[str, DecisionInput], usd_per_replica: float | None = None
) -> Iterator[tuple[str, str]]:
    """Yields name and line of each relevant input, in the order of the computation.

    usd_per_replica: the hourly price of a replica that demand counts; None: it has no price.
    """
    for name, value in inputs.items():
        if not _is_silent(name, value, inputs):
            more = ""
            if name == "need_replicas":
                more = _sum(inputs)
            elif name in _OTHER_TARGETS:
                more = _difference(value, inputs.get("need_replicas"), usd_per_replica)
            yield name, render_input(name, value) + more


def render_input(name: str, value: DecisionInput) -> str:
    """Returns the line of one input."""
    label = INPUT_LABELS.get(name) or InputLabel(name, lambda text: f"{text:g}")
    text = label.unknown if value.value is None else label.format(value.value)
    age = f", {format_duration(value.age_seconds)} old" if value.age_seconds else ""
    return f"  {label.label:<{LABEL_WIDTH - 1}} {text}{age}"


def _is_silent(name: str, value: DecisionInput, inputs: Mapping[str, DecisionInput]) -> bool:
    label = INPUT_LABELS.get(name)
    if label is None:
        return False
    if (
        label.neutral_value is not None
        and value.value is not None
        and abs(value.value - label.neutral_value) < _DISPLAY_TOLERANCE
    ):
        return True
    return label.same_as is not None and label.same_as in inputs and inputs[label.same_as].value == value.value


def _sum(inputs: Mapping[str, DecisionInput]) -> str:
    """Returns the sum that gives the needed replicas, as text.

    Empty without its parts, for example while an earlier need holds.
    """
    need, certain, bursts = (
        inputs[name].value if name in inputs else None
        for name in ("need_replicas", "certain_replicas", "recurring_burst_replicas")
    )
    if need is None or certain is None:
        return ""
    more = need - certain
    if abs(more) < _DISPLAY_TOLERANCE:
        return f" = {certain:.2f} forecast"
    cause = "errors of the forecast or bursts" if bursts else "errors of the forecast"
    return f" = {certain:.2f} forecast {'+' if more > 0.0 else '−'} {abs(more):.2f} for {cause}"


def _difference(value: DecisionInput, need: DecisionInput | None, usd_per_replica: float | None) -> str:
    """Returns how many replicas another target needs more or less, and their price, as text."""
    if value.value is None or need is None or need.value is None:
        return ""
    more = value.value - need.value
    if abs(more) < _DISPLAY_TOLERANCE:
        return ", as now"
    word = "more" if more > 0.0 else "less"
    price = "" if usd_per_replica is None else f": ${abs(more) * usd_per_replica:,.2f} an hour {word}"
    return f", {abs(more):.2f} {word}{price}"


def parse_moment(text: str, now: float, flag: str = "--at") -> float:
    """Returns Unix time of ``5m`` (ago), ``14:05[:30]`` (the last such time), ISO 8601, or Unix
    seconds.

    Raises BadInput with ``flag``.
    """
    for reader in (_unix, _ago, _today, _iso):
        moment = reader(text.strip(), now)
        if moment is not None:
            return moment
    raise BadInput(
        f"{flag}: {text!r} is not a time", field=flag, hint="write it like 5m (ago), 14:05 or 2026-11-21T14:05"
    )


def _unix(text: str, now: float) -> float | None:
    found = float(text) if text.replace(".", "", 1).isdecimal() else math.inf
    return found if math.isfinite(found) else None


def _ago(text: str, now: float) -> float | None:
    try:
        return now - parse_duration(text.removeprefix("-"), field="--at")
    except BadInput:
        return None


def _today(text: str, now: float) -> float | None:
    for form in ("%H:%M", "%H:%M:%S"):
        try:
            time = datetime.strptime(text, form).time()
        except ValueError:
            continue
        found = datetime.combine(datetime.fromtimestamp(now).date(), time)
        return (found if found.timestamp() <= now else found - timedelta(days=1)).timestamp()
    return None


def _iso(text: str, now: float) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None
