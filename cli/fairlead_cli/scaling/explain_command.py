"""``fairlead explain scaling``: scaling of a model.

The terms go from the load to the plan and add up to it. In a group of several pools, demand is
counted in replicas of the first one and then divided. There the terms end at the demand.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Final

import msgspec
from cyclopts import Parameter

from fairlead.decision import DecisionInput
from fairlead.units import format_duration
from fairlead_autoscaler.core import ModelSpec, PoolObservation, PoolPlan, PoolSpec
from fairlead_autoscaler.history.recorder import TickRecord, decode_record
from fairlead_autoscaler.kubernetes.slo_attainment import SLOAttainment
from fairlead_autoscaler.kubernetes.slo_attainment import add_observation as attained
from fairlead_autoscaler.scaling_policy import EnforcedPlan, describe_replicas
from fairlead_cli import formatting
from fairlead_cli.exit_codes import run_query
from fairlead_cli.moments import parse_moment
from fairlead_cli.output import OutputFlag, format_document, is_document
from fairlead_cli.scaling.autoscaler_client import AutoscalerEndpoint, AutoscalerSource, open_autoscaler, query
from fairlead_cli.target import ModelFlag, qualified_name

LABEL_WIDTH: Final = 22
_OTHER_TARGETS: Final = ("need_at_95_replicas", "need_at_99_9_replicas")
"""Inputs that show the demand at a target which is not the model's."""
_DISPLAY_TOLERANCE: Final = 0.005
"""A difference that two decimals do not show."""

_AUTOSCALER = AutoscalerSource()

_BOUNDS: Final = ("minimum_replicas", "maximum_replicas")
_JUDGED: Final = {"ttft": "first token", "itl": "answer"}

_MIN_SHOWN: Final = 0.005
"""A term that two decimals do not show."""


@dataclass(frozen=True, slots=True)
class InputLabel:
    """Label and format of one input.

    neutral_value: at this value the input has no effect and is not shown.

    suffix: text after a value.

    same_as: name of another input; with equal values this one is not shown.
    """

    label: str
    format: Callable[[float], str]
    neutral_value: float | None = None
    same_as: str | None = None
    suffix: str = ""
    unknown: str = formatting.UNKNOWN


def _replicas(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") + (" replica" if value == 1 else " replicas")


def _planned_dollars(value: float) -> str:
    return f"${value:,.2f} an hour, as planned"


def _tokens(value: float) -> str:
    return formatting.pluralize(round(value), "token")


def _exact_share(value: float) -> str:
    return f"{100.0 * value if value == 1.0 else min(100.0 * value, 99.99):.2f}".rstrip("0").rstrip(".") + " %"


def _misses_left(value: float) -> str:
    if value < 0.0:
        return f"none: {formatting.pluralize(round(-value), 'request')} too many missed"
    return f"{formatting.pluralize(round(value), 'request')} more may miss"


def _miss_factor(value: float) -> str:
    return f"{value:.2f} × as often as predicted, by what was counted"


INPUT_LABELS: Final[Mapping[str, InputLabel]] = {
    "speed_factor": InputLabel("engine's step", "{:.2f} × what its profile says".format),
    "capacity_requests_per_second": InputLabel("capacity", "{:.3g} requests/s a replica, at the SLO".format),
    "prompt_tokens": InputLabel("prompt", _tokens),
    "output_tokens": InputLabel("answer", _tokens),
    "output_growth": InputLabel("answers grow", "to {:.2f} × that by when an order is ready".format, neutral_value=1.0),
    "prompt_growth": InputLabel("prompts grow", "to {:.2f} × that by when an order is ready".format, neutral_value=1.0),
    "cached_share": InputLabel("cached", formatting.format_share),
    "kept_token_share": InputLabel("prefilled by decode", formatting.format_share, suffix=" of prompt tokens"),
    "missed_share": InputLabel(
        "attained", lambda value: f"{_exact_share(1.0 - value)} of the period's requests in time"
    ),
    "budget_left_requests": InputLabel("left of the budget", _misses_left),
    "allowed_miss_share": InputLabel("goal", _exact_share, suffix=" of the next requests may miss"),
    "first_token_miss_factor": InputLabel("late first tokens", _miss_factor, neutral_value=1.0),
    "gap_miss_factor": InputLabel("slow answers", _miss_factor, neutral_value=1.0),
    "level_replicas": InputLabel("load now", _replicas),
    "spread_replicas": InputLabel("its spread", lambda value: f"± {_replicas(value)}"),
    "deviation_share": InputLabel("forecasts are off by", formatting.format_share, suffix=", as a standard deviation"),
    "trend_replicas_per_minute": InputLabel("trend", "{:+.2f} replicas a minute".format),
    "ahead_seconds": InputLabel("looking ahead", format_duration, suffix=", as long as a start takes"),
    "forecast_replicas": InputLabel("forecast", _replicas),
    "certain_replicas": InputLabel("enough for it", _replicas, suffix=", if it were exact"),
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
        _replicas,
        suffix=" more, of which the last to be ready are cancelled",
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
    "together_most_replicas": InputLabel("all pools", _replicas, suffix=" at most"),
    "prefill_need_engines": InputLabel("prefill needs", _replicas),
    "decode_need_engines": InputLabel("decode needs", _replicas),
    "carried_share": InputLabel("so shared, carried", formatting.format_share, suffix=" of the load"),
    "usd_per_hour": InputLabel("this pool costs", _planned_dollars, same_as="model_usd_per_hour"),
    "model_usd_per_hour": InputLabel(
        "the model costs",
        _planned_dollars,
        unknown=f"{formatting.UNKNOWN}, since an AcceleratorClass has no costPerHour",
    ),
    "convertible_prompt_tokens": InputLabel(
        "prefills besides", lambda value: f"prompts of up to {_tokens(value)}, where it has slack"
    ),
    "convertible_tokens_per_second": InputLabel("as many as", _tokens, suffix=" a second, all of the pool together"),
}
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
    text = label.unknown if value.value is None else label.format(value.value) + label.suffix
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


def explain_scaling(
    model: ModelFlag = None,
    *,
    at: Annotated[
        str | None, Parameter(help="The time to explain: 5m (ago), 14:05, an ISO date and time, or Unix seconds.")
    ] = None,
    source: Annotated[AutoscalerSource, Parameter(name="*")] = _AUTOSCALER,
    output: OutputFlag = "table",
) -> int:
    """Explain why a model has as many replicas as it has.

    Shows the autoscaler's observation, the inputs of its decision line by line, the rule, and
    whether the decision was written.

    Exits 0 with an answer, 1 when nothing is known of the model, 2 on wrong usage, 3 when no
    autoscaler can be reached.
    """
    name = qualified_name(model, source.cluster.namespace)

    def fetch() -> tuple[str, bytes]:
        with open_autoscaler(source.autoscaler, source.cluster) as endpoint:
            when = None if at is None else parse_moment(at, time.time())
            return endpoint.source, query(endpoint, "/autoscaling/look", _query(endpoint, name, when))

    def show(answer: tuple[str, bytes]) -> str:
        origin, content = answer
        if is_document(output):
            return format_document(content, output)
        return "\n".join([*render_look(decode_record(content)), f"read from the autoscaler of {origin}"])

    return run_query(fetch, show)


def _query(endpoint: AutoscalerEndpoint, model: str | None, moment: float | None) -> dict[str, str]:
    """Returns the query with the full model name. Raises LookupError when the name is ambiguous or
    unknown.
    """
    known = list(msgspec.json.decode(query(endpoint, "/autoscaling", {}))["models"])
    found = [key for key in known if model in (None, key, key.partition("/")[2])]
    if len(found) != 1:
        raise LookupError(f"{_selection_problem(model, known, found)} (read from the autoscaler of {endpoint.source})")
    return {"model": found[0]} | ({} if moment is None else {"at": repr(moment)})


def _selection_problem(model: str | None, known: Sequence[str], found: Sequence[str]) -> str:
    """Returns why a name does not select one model, and what to do.

    found: those of the known models that the name fits.
    """
    if found:
        return f"MODEL: name one model with its namespace, of: {', '.join(found)}"
    if known:
        subject = "no model" if model is None else f"the model {model}"
        return f"MODEL: {subject} is not autoscaled; these are: {', '.join(known)}"
    return "no model is autoscaled: set `autoscaling: {mode: Auto}`, or Advise, and a pool's maxReplicas above its minReplicas"


def render_look(look: TickRecord) -> list[str]:
    """Returns one recorded tick as lines: SLO, arrivals, attainment, and each pool's decision."""
    when = datetime.fromtimestamp(look.wall).strftime("%Y-%m-%d %H:%M:%S")
    lines = [f"{look.model.name} at {when}, mode {look.mode}", *_objectives(look), *_arrivals(look), *_attained(look)]
    lines += [f"  note: {note}" for note in look.notes]
    for pool, seen in look.observation.pools.items():
        lines += ["", *_pool(look, pool, seen)]
    return lines


def _objectives(look: TickRecord) -> Iterator[str]:
    model, parts = look.model, []
    if model.ttft_seconds:
        per_prompt = model.ttft_per_kilo_token_seconds
        longer = f" plus {format_duration(per_prompt)} per 1,000 prompt tokens" if per_prompt else ""
        parts.append(f"TTFT {format_duration(model.ttft_seconds)}{longer}")
    if model.itl_seconds:
        parts.append(f"TPOT {format_duration(model.itl_seconds)}")
    if parts:
        share, period = formatting.format_share(model.target), format_duration(model.period_seconds)
        yield f"  {share} of the requests within {' and '.join(parts)}, over {period}"
    else:
        yield "  it has no SLO: sized by what the memory and the batch of an engine hold"


def _arrivals(look: TickRecord) -> Iterator[str]:
    if look.model.replicas_most is not None:
        yield f"  all pools together: {formatting.pluralize(look.model.replicas_most, 'replica')} at most"
    observed = look.observation.gateway
    if observed is None:
        yield "  the arrivals are not known: no gateway reported them"
        return
    requests = formatting.pluralize(round(observed.arrivals), "request")
    yield (
        f"  since the last observation {requests} of {observed.prompt_tokens:,.0f} prompt tokens; "
        f"{observed.held:,.0f} queued now, {observed.abandoned:,.0f} gave up"
    )


def _attained(look: TickRecord) -> Iterator[str]:
    judged = [
        f"{part.within:,.0f} of {formatting.pluralize(round(part.judged), _JUDGED[part.objective])} in time"
        for part in attained(SLOAttainment(), look.observation).samples
    ]
    if judged:
        yield f"  of those that were judged since then: {', '.join(judged)}"


def _pool(look: TickRecord, pool: str, observed: PoolObservation) -> Iterator[str]:
    plan, ruling = look.plan.pools.get(pool), look.rulings.get(pool)
    ages = ", ".join(format_duration(age) for age in observed.pending_ages_seconds)
    starting = f"{observed.pending} starting" + (f" (for {ages})" if ages else "")
    if observed.waking:
        starting += f", {observed.waking} of them waking"
    desired, asleep = f"{observed.desired} desired", ""
    if observed.asleep or observed.asleep_desired:
        desired, asleep = f"{desired} and {observed.asleep_desired} asleep", f", {observed.asleep} asleep"
    ready = f"{observed.ready} ready" + (f" ({observed.ejected} of them ejected)" if observed.ejected else "")
    yield f"pool {pool}: {desired}; {ready}, {starting}, {observed.draining} leaving{asleep}"
    if observed.replicas is None:
        yield "  nothing is known of its engines"
    if plan is not None:
        bounds = None if ruling is None else ruling.bounds
        for name, text in render_inputs(plan.inputs, usd_per_demand_replica(look.model, pool)):
            yield text if bounds is None or name not in _BOUNDS else _bound(name, plan.inputs[name], bounds)
        yield f"  planned: {describe_replicas(plan.replicas, plan.asleep)}, by the rule {plan.rule}: {plan.reason}"
        yield from render_terms(look.model, pool, plan)
    if ruling is not None:
        yield from _ruling(ruling, plan)
    saved = look.drain_saved_seconds.get(pool)
    if saved:
        yield f"  its removed replicas ended {format_duration(saved)} earlier in all, since their streams moved (estimate)"


def _bound(name: str, value: DecisionInput, bounds: tuple[int, int]) -> str:
    """Returns the line of a bound: its value at this hour, and the widest one if that differs.

    Why: the input of the core is the widest bound of all hours.
    """
    current = bounds[_BOUNDS.index(name)]
    suffix = "" if value.value in (None, current) else f"; {value.value:g} at other hours"
    return render_input(name, DecisionInput(float(current))) + suffix


def _ruling(ruling: EnforcedPlan, plan: PoolPlan | None) -> Iterator[str]:
    decided, current = (
        describe_replicas(ruling.replicas, ruling.asleep),
        describe_replicas(ruling.desired, ruling.asleep_desired),
    )
    if plan is None or (ruling.rule, decided) != (plan.rule, describe_replicas(plan.replicas, plan.asleep)):
        yield f"  decided: {decided}, by the rule {ruling.rule}: {ruling.reason}"
    if decided == current:
        yield f"  nothing changes: {current} it is"
    elif ruling.unwritten is not None:
        yield f"  not written ({current} stays): {ruling.unwritten}"
    else:
        yield f"  written: {current} -> {decided}"


@dataclass(frozen=True, slots=True)
class DecisionTerm:
    """Replicas that one step of a decision adds; negative: that it takes away."""

    label: str
    replicas: float


def usd_per_demand_replica(model: ModelSpec, pool: str) -> float | None:
    """Returns the hourly price of a replica that the demand of `pool` counts.

    None without a price, and where several pools divide the demand: their prices differ.
    """
    group = _group(model, pool)
    return group[0].usd_per_hour if len(group) == 1 else None


def decision_terms(plan: PoolPlan, *, shares_demand: bool = False) -> list[DecisionTerm]:
    """Returns the terms of a plan; empty where its load is not known.

    shares_demand: several pools divide the demand, so the terms end at it.
    """
    values = {name: shown.value for name, shown in plan.inputs.items()}
    names = ("level_replicas", "certain_replicas", "need_replicas", "window_max_replicas", "target_replicas")
    level, certain, need, held, target = (values.get(name) for name in names)
    if level is None or certain is None or need is None or held is None or target is None:
        return []
    waiting = min(values.get("backlog_replicas") or 0.0, max(0.0, held - need))
    is_asleep = values.get("whole_replicas") is not None
    terms = [
        DecisionTerm("load now", level),
        DecisionTerm("forecast", certain - level),
        DecisionTerm("errors of the forecast", need - certain),
        DecisionTerm("waiting requests", waiting),
        DecisionTerm("window, less asleep" if is_asleep else "window", held - need - waiting),
    ]
    if shares_demand:
        return terms
    hedged, replacing = values.get("hedged_replicas") or 0.0, values.get("replacement_replicas") or 0.0
    return [
        *terms,
        DecisionTerm("rounding", target - held),
        DecisionTerm("rules and bounds", plan.replicas - hedged - replacing - target),
        DecisionTerm("replacements", replacing),
        DecisionTerm("hedged starts", hedged),
        DecisionTerm("asleep", float(plan.asleep)),
    ]


def render_terms(model: ModelSpec, pool: str, plan: PoolPlan) -> Iterator[str]:
    """Yields a line for each term that is not zero, with its price where that is known."""
    group = _group(model, pool)
    terms = decision_terms(plan, shares_demand=len(group) > 1)
    price = usd_per_demand_replica(model, pool)
    if terms:
        yield "  of which" if len(group) < 2 else f"  demand, in replicas of pool {group[0].name}"
    for number, term in enumerate(terms):
        if number and abs(term.replicas) < _MIN_SHOWN:
            continue
        sign = "+" if number else ""
        money = "" if price is None else f"  {_dollars(term.replicas * price)}"
        yield f"    {term.label:<{LABEL_WIDTH}} {term.replicas:{sign}8.2f}{money}"


def _group(model: ModelSpec, pool: str) -> tuple[PoolSpec, ...]:
    roles = {spec.role for spec in model.pools if spec.name == pool}
    return tuple(spec for spec in model.pools if spec.role in roles)


def _dollars(value: float) -> str:
    return f"{'−' if value < 0.0 else ''}${abs(value):,.2f} an hour"
