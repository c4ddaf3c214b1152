"""The core's numbers in words: what people call them, which of them say nothing just now, and how the need is made of them. Pure."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from fairlead.decision import Input
from fairlead.units import duration
from fairlead_autoscaler.scaling import ScalingSettings
from fairlead_cli.local import words

WIDTH: Final = 22
_ADDS_UP: Final = 0.02
"""Replicas that the sum may be off, for its parts that are not told."""
_OFF: Final = 0.005
"""What two decimals do not show."""


@dataclass(frozen=True, slots=True)
class Number:
    """``label`` and ``written`` are for people. At ``idle`` it changes nothing, and beside another of the value of ``beside`` it only
    says that again: then it is not told."""

    label: str
    written: Callable[[float], str]
    idle: float | None = None
    beside: str | None = None
    unknown: str = words.UNKNOWN


def _replicas(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") + (" replica" if value == 1 else " replicas")


def _dollars(value: float) -> str:
    return f"${value:,.2f} an hour, as planned"


def _tokens(value: float) -> str:
    return words.plural(round(value), "token")


def _margin(value: float) -> str:
    if abs(value - 1.0) < _OFF:
        return "1.00 ×; less where objectives are kept with room to spare, more where they are missed"
    return f"{value:.2f} ×, as objectives were {'missed' if value > 1.0 else 'kept with room to spare'}"


INPUTS: Final[Mapping[str, Number]] = MappingProxyType(
    {
        "speed_factor": Number("engine's step", lambda value: f"{value:.2f} × what its profile says"),
        "capacity_requests_per_second": Number(
            "capacity", lambda value: f"{value:.3g} requests/s a replica, at the objectives"
        ),
        "prompt_tokens": Number("prompt", _tokens),
        "output_tokens": Number("answer", _tokens),
        "output_growth": Number(
            "answers grow", lambda value: f"to {value:.2f} × that by when an order is ready", idle=1.0
        ),
        "prompt_growth": Number(
            "prompts grow", lambda value: f"to {value:.2f} × that by when an order is ready", idle=1.0
        ),
        "cached_share": Number("cached", words.share),
        "kept_token_share": Number("prefilled by decode", lambda value: f"{words.share(value)} of prompt tokens"),
        "level_replicas": Number("load now", _replicas),
        "spread_replicas": Number("its spread", lambda value: f"± {_replicas(value)}"),
        "swing_share": Number(
            "swings above it", lambda value: f"by {words.share(value)} within such a time, as it did lately", idle=0.0
        ),
        "trend_replicas_per_minute": Number("trend", lambda value: f"{value:+.2f} replicas a minute"),
        "ahead_seconds": Number("looking ahead", lambda value: f"{duration(value)}, as long as a start takes"),
        "forecast_replicas": Number("forecast", _replicas),
        "recurring_burst_replicas": Number("bursts come back to", _replicas, idle=0.0),
        "crowd_gain": Number(
            "sharing", lambda value: f"{value:.2f} × the capacity each, as so many share the load", idle=1.0
        ),
        "margin": Number("margin", _margin),
        "spared_replicas": Number(
            "left out of it", lambda value: f"{_replicas(value)}, as hardly any request missed", idle=0.0
        ),
        "backlog_requests": Number("waiting", lambda value: words.plural(round(value), "request"), idle=0.0),
        "backlog_replicas": Number("for those that wait", _replicas, idle=0.0),
        "need_replicas": Number("need", _replicas),
        "window_max_replicas": Number("most of the window", _replicas),
        "mix_replicas": Number("the mix has here", _replicas),
        "needed_here_replicas": Number("needed of this pool", _replicas, beside="window_max_replicas"),
        "target_replicas": Number("target", _replicas),
        "desired_replicas": Number("asked for now", _replicas),
        "ready_replicas": Number("ready", _replicas),
        "pending_replicas": Number("starting", _replicas, idle=0.0),
        "hedged_replicas": Number(
            "started beside",
            lambda value: f"{_replicas(value)} more, of which the last to be ready are cancelled",
            idle=0.0,
        ),
        "whole_replicas": Number("there, or asleep", _replicas),
        "wake_seconds": Number("waking takes", duration),
        "asleep_replicas": Number("asleep", _replicas),
        "asleep_planned_replicas": Number("to be asleep", _replicas),
        "minimum_replicas": Number("at least", _replicas),
        "maximum_replicas": Number("at most", _replicas),
        "together_most_replicas": Number("all pools", lambda value: f"{_replicas(value)} at most"),
        "prefill_need_engines": Number("prefill needs", _replicas),
        "decode_need_engines": Number("decode needs", _replicas),
        "carried_share": Number("so shared, carried", lambda value: f"{words.share(value)} of the load"),
        "usd_per_hour": Number("this pool costs", _dollars, beside="model_usd_per_hour"),
        "model_usd_per_hour": Number(
            "the model costs", _dollars, unknown=f"{words.UNKNOWN}, for want of an accelerator's costPerHour"
        ),
        "convertible_prompt_tokens": Number(
            "prefills besides", lambda value: f"prompts of up to {_tokens(value)}, where it has slack"
        ),
        "convertible_tokens_per_second": Number(
            "as many as", lambda value: f"{_tokens(value)} a second, all of the pool together"
        ),
    }
)
"""By the name that the core gives them. Others keep their names."""


def lines(inputs: Mapping[str, Input], settings: ScalingSettings) -> Iterator[tuple[str, str]]:
    """Each number that says something, by its name with its line, in the order in which they lead to the plan."""
    for name, one in inputs.items():
        if not _idle(name, one, inputs):
            more = _sum(inputs, settings) if name == "need_replicas" else ""
            yield name, line(name, one) + more


def line(name: str, one: Input) -> str:
    """One number."""
    known = INPUTS.get(name) or Number(name, lambda value: f"{value:g}")
    value = known.unknown if one.value is None else known.written(one.value)
    age = f", {duration(one.age_seconds)} old" if one.age_seconds else ""
    return f"  {known.label:<{WIDTH - 1}} {value}{age}"


def _idle(name: str, one: Input, inputs: Mapping[str, Input]) -> bool:
    known = INPUTS.get(name)
    if known is None:
        return False
    if known.idle is not None and one.value is not None and abs(one.value - known.idle) < _OFF:
        return True
    return known.beside is not None and known.beside in inputs and inputs[known.beside].value == one.value


def _sum(inputs: Mapping[str, Input], settings: ScalingSettings) -> str:
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
    factors = [f" × {margin:.2f} margin"] * (abs(margin - 1.0) >= _OFF) + [f" ÷ {gain:.2f} sharing"] * (
        abs(gain - 1.0) >= _OFF
    )
    text = (f"({text})" if factors else text) + "".join(factors)
    shared = upper * margin / gain
    least, spared = min(shared, level * margin / gain), values.get("spared_replicas") or 0.0
    if spared >= _OFF:
        text, shared = (
            (f"{text} − {spared:.2f}", shared - spared) if shared - spared >= least else (f"{level:.2f} now", least)
        )
    return f" = {text}" if math.isclose(shared, need, rel_tol=0.005, abs_tol=_ADDS_UP) else ""
