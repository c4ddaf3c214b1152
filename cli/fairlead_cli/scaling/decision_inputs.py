"""Inputs of an autoscaler decision as text: labels, units, and the sum that gives the demand.
Pure.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from fairlead.decision import DecisionInput
from fairlead.units import format_duration
from fairlead_autoscaler.core import ScalingSettings
from fairlead_cli import formatting

LABEL_WIDTH: Final = 22
_SUM_TOLERANCE: Final = 0.02
"""Replicas by which the sum may differ, because some of its parts are not reported."""
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


def _margin(value: float) -> str:
    if abs(value - 1.0) < _DISPLAY_TOLERANCE:
        return "1.00 ×; less where the SLO is met with room to spare, more where it is missed"
    return f"{value:.2f} ×, as the SLO was {'missed' if value > 1.0 else 'met with room to spare'}"


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
        "level_replicas": InputLabel("load now", _replicas),
        "spread_replicas": InputLabel("its spread", lambda value: f"± {_replicas(value)}"),
        "swing_share": InputLabel(
            "swings above it",
            lambda value: f"by {formatting.format_share(value)} within such a time, as it did lately",
            neutral_value=0.0,
        ),
        "trend_replicas_per_minute": InputLabel("trend", lambda value: f"{value:+.2f} replicas a minute"),
        "ahead_seconds": InputLabel(
            "looking ahead", lambda value: f"{format_duration(value)}, as long as a start takes"
        ),
        "forecast_replicas": InputLabel("forecast", _replicas),
        "recurring_burst_replicas": InputLabel("bursts come back to", _replicas, neutral_value=0.0),
        "crowd_gain": InputLabel(
            "sharing", lambda value: f"{value:.2f} × the capacity each, as so many share the load", neutral_value=1.0
        ),
        "margin": InputLabel("margin", _margin),
        "spared_replicas": InputLabel(
            "left out of it", lambda value: f"{_replicas(value)}, as hardly any request missed", neutral_value=0.0
        ),
        "backlog_requests": InputLabel(
            "waiting", lambda value: formatting.pluralize(round(value), "request"), neutral_value=0.0
        ),
        "backlog_replicas": InputLabel("for those that wait", _replicas, neutral_value=0.0),
        "need_replicas": InputLabel("need", _replicas),
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
            "the model costs", _dollars, unknown=f"{formatting.UNKNOWN}, for want of an accelerator's costPerHour"
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


def render_inputs(inputs: Mapping[str, DecisionInput], settings: ScalingSettings) -> Iterator[tuple[str, str]]:
    """Yields name and line of each relevant input, in the order of the computation."""
    for name, value in inputs.items():
        if not _is_silent(name, value, inputs):
            more = _sum(inputs, settings) if name == "need_replicas" else ""
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


def _sum(inputs: Mapping[str, DecisionInput], settings: ScalingSettings) -> str:
    """Returns the sum that gives the needed replicas, as text.

    Empty when the inputs do not add up to it, for example while an earlier level holds.
    """
    values = {name: input_value.value for name, input_value in inputs.items()}
    need, level, forecast = (values.get(name) for name in ("need_replicas", "level_replicas", "forecast_replicas"))
    if not need or level is None or forecast is None:
        return ""
    spread = settings.load.spread_sigmas * (values.get("spread_replicas") or 0.0)
    swing = (values.get("swing_share") or 0.0) * level
    ahead, bursts = max(level, forecast), values.get("recurring_burst_replicas") or 0.0
    upper, text = (
        ahead + max(spread, swing),
        f"{ahead:.2f} + {max(spread, swing):.2f} {'spread' if spread >= swing else 'swing'}",
    )
    if bursts > upper:
        upper, text = bursts, f"{bursts:.2f} of bursts"
    margin, gain = values.get("margin") or 1.0, values.get("crowd_gain") or 1.0
    factors = [f" × {margin:.2f} margin"] * (abs(margin - 1.0) >= _DISPLAY_TOLERANCE) + [f" ÷ {gain:.2f} sharing"] * (
        abs(gain - 1.0) >= _DISPLAY_TOLERANCE
    )
    text = (f"({text})" if factors else text) + "".join(factors)
    shared = upper * margin / gain
    lower, spared = min(shared, level * margin / gain), values.get("spared_replicas") or 0.0
    if spared >= _DISPLAY_TOLERANCE:
        text, shared = (
            (f"{text} − {spared:.2f}", shared - spared) if shared - spared >= lower else (f"{level:.2f} now", lower)
        )
    return f" = {text}" if math.isclose(shared, need, rel_tol=0.005, abs_tol=_SUM_TOLERANCE) else ""
