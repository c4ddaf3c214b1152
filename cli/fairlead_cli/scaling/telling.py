"""One look of the autoscaler as text: what was seen, the numbers in the order in which they lead to the plan, what was done. Pure."""

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Final

from fairlead.decision import Input
from fairlead.units import duration
from fairlead_autoscaler.governor import Ruling, in_words
from fairlead_autoscaler.recording import Look
from fairlead_autoscaler.scaling import PoolPlan, PoolSeen
from fairlead_cli.local import words

WIDTH: Final = 22
_BOUNDS: Final = ("minimum_replicas", "maximum_replicas")


def _replicas(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") + (" replica" if value == 1 else " replicas")


def _dollars(value: float) -> str:
    return f"${value:,.2f} an hour, as planned"


def _tokens(value: float) -> str:
    return words.plural(round(value), "token")


INPUTS: Final[Mapping[str, tuple[str, Callable[[float], str]]]] = MappingProxyType(
    {
        "speed_factor": ("engine's step", lambda value: f"{value:.2f} × what its profile says"),
        "capacity_requests_per_second": (
            "capacity",
            lambda value: f"{value:.3g} requests/s a replica, at the objectives",
        ),
        "prompt_tokens": ("prompt", _tokens),
        "output_tokens": ("answer", _tokens),
        "output_growth": ("answers grow", lambda value: f"to {value:.2f} × that by when an order is ready"),
        "prompt_growth": ("prompts grow", lambda value: f"to {value:.2f} × that by when an order is ready"),
        "cached_share": ("cached", words.share),
        "kept_token_share": ("prefilled by decode", lambda value: f"{words.share(value)} of prompt tokens"),
        "level_replicas": ("load now", _replicas),
        "spread_replicas": ("its spread", lambda value: f"± {_replicas(value)}"),
        "swing_share": (
            "swings above it",
            lambda value: f"by {words.share(value)} within such a time, as it did lately",
        ),
        "trend_replicas_per_minute": ("trend", lambda value: f"{value:+.2f} replicas a minute"),
        "ahead_seconds": ("looking ahead", lambda value: f"{duration(value)}, as long as a start takes"),
        "forecast_replicas": ("forecast", _replicas),
        "recurring_burst_replicas": ("bursts come back to", _replicas),
        "crowd_gain": ("sharing", lambda value: f"{value:.2f} × the capacity each, as so many share the load"),
        "margin": ("margin", lambda value: f"{value:.2f} ×, as the objectives were kept"),
        "spared_replicas": ("left out of it", lambda value: f"{_replicas(value)}, as hardly any request missed"),
        "backlog_requests": ("waiting", lambda value: words.plural(round(value), "request")),
        "backlog_replicas": ("for those that wait", _replicas),
        "need_replicas": ("need", _replicas),
        "window_max_replicas": ("most of the window", _replicas),
        "mix_replicas": ("the mix has here", _replicas),
        "needed_here_replicas": ("needed of this pool", _replicas),
        "target_replicas": ("target", _replicas),
        "desired_replicas": ("asked for now", _replicas),
        "ready_replicas": ("ready", _replicas),
        "pending_replicas": ("starting", _replicas),
        "hedged_replicas": (
            "started beside",
            lambda value: f"{_replicas(value)} more, of which the last to be ready are cancelled",
        ),
        "whole_replicas": ("there, or asleep", _replicas),
        "wake_seconds": ("waking takes", duration),
        "asleep_replicas": ("asleep", _replicas),
        "asleep_planned_replicas": ("to be asleep", _replicas),
        "minimum_replicas": ("at least", _replicas),
        "maximum_replicas": ("at most", _replicas),
        "together_most_replicas": ("all pools", lambda value: f"{_replicas(value)} at most"),
        "prefill_need_engines": ("prefill needs", _replicas),
        "decode_need_engines": ("decode needs", _replicas),
        "carried_share": ("so shared, carried", lambda value: f"{words.share(value)} of the load"),
        "usd_per_hour": ("this pool costs", _dollars),
        "model_usd_per_hour": ("the model costs", _dollars),
        "convertible_prompt_tokens": (
            "prefills besides",
            lambda value: f"prompts of up to {_tokens(value)}, where it has slack",
        ),
        "convertible_tokens_per_second": (
            "as many as",
            lambda value: f"{_tokens(value)} a second, all of the pool together",
        ),
    }
)
"""The core's numbers: what people call them, and how they are written. Others keep their names."""


def told(look: Look) -> list[str]:
    """The whole look."""
    when = datetime.fromtimestamp(look.wall).strftime("%Y-%m-%d %H:%M:%S")
    lines = [f"{look.model.name} at {when}, mode {look.mode}", *_objectives(look), *_arrivals(look)]
    lines += [f"  note: {note}" for note in look.notes]
    for pool, seen in look.observation.pools.items():
        lines += ["", *_pool(pool, seen, look.plan.pools.get(pool), look.rulings.get(pool))]
    return lines


def _objectives(look: Look) -> Iterator[str]:
    model = look.model
    parts = [
        f"{name} {duration(value)}"
        for name, value in (("TTFT", model.ttft_seconds), ("ITL", model.itl_seconds))
        if value
    ]
    if parts:
        yield f"  {words.share(model.target)} of the requests within {' and '.join(parts)}"
    else:
        yield "  it has no objectives: sized by what the memory and the batch of an engine hold"


def _arrivals(look: Look) -> Iterator[str]:
    if look.model.replicas_most is not None:
        yield f"  all pools together: {_replicas(look.model.replicas_most)} at most"
    seen = look.observation.gateway
    if seen is None:
        yield "  what arrives is not known: no gateway could tell"
        return
    yield (
        f"  since the last look {words.plural(round(seen.arrivals), 'request')} of {seen.prompt_tokens:,.0f} prompt tokens; "
        f"{seen.held:,.0f} held now, {seen.abandoned:,.0f} gave up"
    )


def _pool(pool: str, seen: PoolSeen, plan: PoolPlan | None, ruling: Ruling | None) -> Iterator[str]:
    ages = ", ".join(duration(age) for age in seen.pending_ages_seconds)
    starting = f"{seen.pending} starting" + (f" (for {ages})" if ages else "")
    if seen.waking:
        starting += f", {seen.waking} of them waking"
    asked, asleep = f"{seen.desired} asked for", ""
    if seen.asleep or seen.asleep_desired:
        asked, asleep = f"{asked} and {seen.asleep_desired} asleep", f", {seen.asleep} asleep"
    yield f"pool {pool}: {asked}; {seen.ready} ready, {starting}, {seen.draining} leaving{asleep}"
    if seen.replicas is None:
        yield "  nothing is known of its engines"
    if plan is not None:
        bounds = None if ruling is None else ruling.bounds
        for name, one in plan.inputs.items():
            yield _input(name, one) if bounds is None or name not in _BOUNDS else _bound(name, one, bounds)
        yield f"  planned: {in_words(plan.replicas, plan.asleep)}, by the rule {plan.rule}: {plan.reason}"
    if ruling is not None:
        yield from _ruling(ruling, plan)


def _input(name: str, one: Input) -> str:
    label, written = INPUTS.get(name, (name, lambda value: f"{value:g}"))
    value = words.UNKNOWN if one.value is None else written(one.value)
    age = f", {duration(one.age_seconds)} old" if one.age_seconds else ""
    return f"  {label:<{WIDTH - 1}} {value}{age}"


def _bound(name: str, one: Input, bounds: tuple[int, int]) -> str:
    """A bound as it holds at this hour; the core was given the widest of all hours."""
    now = bounds[_BOUNDS.index(name)]
    other = "" if one.value in (None, now) else f"; {one.value:g} at other hours"
    return _input(name, Input(float(now))) + other


def _ruling(ruling: Ruling, plan: PoolPlan | None) -> Iterator[str]:
    wanted, now = in_words(ruling.replicas, ruling.asleep), in_words(ruling.desired, ruling.asleep_desired)
    if plan is None or (ruling.rule, wanted) != (plan.rule, in_words(plan.replicas, plan.asleep)):
        yield f"  decided: {wanted}, by the rule {ruling.rule}: {ruling.reason}"
    if wanted == now:
        yield f"  nothing changes: {now} it is"
    elif ruling.unwritten is not None:
        yield f"  not written ({now} stays): {ruling.unwritten}"
    else:
        yield f"  written: {now} -> {wanted}"
