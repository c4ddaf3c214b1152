"""One recorded tick of the autoscaler as text: observation, inputs in the order of the computation,
decision. Pure.
"""

from collections.abc import Iterator
from datetime import datetime
from typing import Final

from fairlead.decision import DecisionInput
from fairlead.units import format_duration
from fairlead_autoscaler.core import PoolObservation, PoolPlan
from fairlead_autoscaler.enforcer import EnforcedPlan, describe_replicas
from fairlead_autoscaler.history.recorder import TickRecord
from fairlead_autoscaler.kubernetes.slo_attainment import SLOAttainment
from fairlead_autoscaler.kubernetes.slo_attainment import add_observation as attained
from fairlead_cli import formatting
from fairlead_cli.scaling.decision_inputs import render_input, render_inputs
from fairlead_cli.scaling.decision_terms import render_terms, usd_per_demand_replica

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
