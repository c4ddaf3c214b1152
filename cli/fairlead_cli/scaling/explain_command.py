"""``fairlead explain scaling``: scaling of a model.

The terms go from the load to the plan and add up to it. In a group of several pools, demand is
counted in replicas of the first one and then divided. There the terms end at the demand.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Final

import msgspec
from cyclopts import Parameter

from fairlead.decision import DecisionInput
from fairlead.errors import BadInput
from fairlead.units import format_duration
from fairlead_autoscaler.core import ModelSpec, PoolObservation, PoolPlan, PoolSpec
from fairlead_autoscaler.enforcer import EnforcedPlan, describe_replicas
from fairlead_autoscaler.history.recorder import TickRecord, decode_record
from fairlead_autoscaler.kubernetes.slo_attainment import SLOAttainment
from fairlead_autoscaler.kubernetes.slo_attainment import add_observation as attained
from fairlead_cli import formatting
from fairlead_cli.exit_codes import run_query
from fairlead_cli.output import OutputFlag, format_document, is_document
from fairlead_cli.scaling.autoscaler_client import AutoscalerEndpoint, AutoscalerSource, open_autoscaler, query
from fairlead_cli.scaling.decision_inputs import LABEL_WIDTH, parse_moment, render_input, render_inputs
from fairlead_cli.target import ModelFlag, qualified_name

_AUTOSCALER = AutoscalerSource()


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

    return run_query("explain scaling", fetch, show, misuse=(BadInput,))


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


_BOUNDS: Final = ("minimum_replicas", "maximum_replicas")
_JUDGED: Final = {"ttft": "first token", "itl": "answer"}


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


_MIN_SHOWN: Final = 0.005
"""A term that two decimals do not show."""


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
    """Returns the pools that share the demand of `pool`, those of its role."""
    roles = {spec.role for spec in model.pools if spec.name == pool}
    return tuple(spec for spec in model.pools if spec.role in roles)


def _dollars(value: float) -> str:
    return f"{'−' if value < 0.0 else ''}${abs(value):,.2f} an hour"
