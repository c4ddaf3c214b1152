"""The core's numbers in words: what people call them, which of them say nothing just now, and how the need is made of them. Pure."""

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
"""Replicas that the sum may be off, for its parts that are not told."""
_DISPLAY_TOLERANCE: Final = 0.005
"""What two decimals do not show."""


@dataclass(frozen=True, slots=True)
class InputLabel:
    """``label`` and ``written`` are for people. At ``idle`` it changes nothing, and beside another of the value of ``beside`` it only
    says that again: then it is not told."""

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
        return "1.00 ×; less where objectives are kept with room to spare, more where they are missed"
    return f"{value:.2f} ×, as objectives were {'missed' if value > 1.0 else 'kept with room to spare'}"


INPUT_LABELS: Final[Mapping[str, InputLabel]] = MappingProxyType(
    {
        "speed_factor": InputLabel("engine's step", lambda value: f"{value:.2f} × what its profile says"),
        "capacity_requests_per_second": InputLabel(
            "capacity", lambda value: f"{value:.3g} requests/s a replica, at the objectives"
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
        "desired_replicas": InputLabel("asked for now", _replicas),
        "ready_replicas": InputLabel("ready", _replicas),
        "pending_replicas": InputLabel("starting", _replicas, neutral_value=0.0),
        "hedged_replicas": InputLabel(
            "started beside",
            lambda value: f"{_replicas(value)} more, of which the last to be ready are cancelled",
            neutral_value=0.0,
        ),
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
"""By the name that the core gives them. Others keep their names."""


def render_inputs(inputs: Mapping[str, DecisionInput], settings: ScalingSettings) -> Iterator[tuple[str, str]]:
    """Each number that says something, by its name with its line, in the order in which they lead to the plan."""
    for name, one in inputs.items():
        if not _is_silent(name, one, inputs):
            more = _sum(inputs, settings) if name == "need_replicas" else ""
            yield name, render_input(name, one) + more


def render_input(name: str, one: DecisionInput) -> str:
    """One number."""
    known = INPUT_LABELS.get(name) or InputLabel(name, lambda value: f"{value:g}")
    value = known.unknown if one.value is None else known.format(one.value)
    age = f", {format_duration(one.age_seconds)} old" if one.age_seconds else ""
    return f"  {known.label:<{LABEL_WIDTH - 1}} {value}{age}"


def _is_silent(name: str, one: DecisionInput, inputs: Mapping[str, DecisionInput]) -> bool:
    known = INPUT_LABELS.get(name)
    if known is None:
        return False
    if (
        known.neutral_value is not None
        and one.value is not None
        and abs(one.value - known.neutral_value) < _DISPLAY_TOLERANCE
    ):
        return True
    return known.same_as is not None and known.same_as in inputs and inputs[known.same_as].value == one.value


def _sum(inputs: Mapping[str, DecisionInput], settings: ScalingSettings) -> str:
    """How the need is made of the numbers before it; nothing where they do not add up to it, as where a level of before holds."""
    values = {name: one.value for name, one in inputs.items()}
    need, level, forecast = (values.get(name) for name in ("need_replicas", "level_replicas", "forecast_replicas"))
    if not need or level is None or forecast is None:
        return ""
    spread = settings.spread_sigmas * (values.get("spread_replicas") or 0.0)
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
    least, spared = min(shared, level * margin / gain), values.get("spared_replicas") or 0.0
    if spared >= _DISPLAY_TOLERANCE:
        text, shared = (
            (f"{text} − {spared:.2f}", shared - spared) if shared - spared >= least else (f"{level:.2f} now", least)
        )
    return f" = {text}" if math.isclose(shared, need, rel_tol=0.005, abs_tol=_SUM_TOLERANCE) else ""
