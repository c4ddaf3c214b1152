"""One look of the autoscaler as text: what was seen, the numbers in the order in which they lead to the plan, what was done. Pure."""

from collections.abc import Iterator
from datetime import datetime
from typing import Final

from fairlead.decision import DecisionInput
from fairlead.units import format_duration
from fairlead_autoscaler.core import PoolObservation, PoolPlan, ScalingSettings
from fairlead_autoscaler.enforcer import EnforcedPlan, describe_replicas
from fairlead_autoscaler.history.recorder import TickRecord
from fairlead_autoscaler.kubernetes.slo_attainment import SLOAttainment
from fairlead_autoscaler.kubernetes.slo_attainment import add_observation as attained
from fairlead_cli import formatting
from fairlead_cli.scaling.decision_inputs import render_input, render_inputs

_BOUNDS: Final = ("minimum_replicas", "maximum_replicas")
_JUDGED: Final = {"ttft": "first token", "itl": "answer"}


def render_look(look: TickRecord) -> list[str]:
    """The whole look."""
    when = datetime.fromtimestamp(look.wall).strftime("%Y-%m-%d %H:%M:%S")
    said = [f"{look.model.name} at {when}, mode {look.mode}", *_objectives(look), *_arrivals(look), *_attained(look)]
    said += [f"  note: {note}" for note in look.notes]
    for pool, seen in look.observation.pools.items():
        said += ["", *_pool(pool, seen, look.plan.pools.get(pool), look.rulings.get(pool), look.settings)]
    return said


def _objectives(look: TickRecord) -> Iterator[str]:
    model = look.model
    parts = [
        f"{name} {format_duration(value)}"
        for name, value in (("TTFT", model.ttft_seconds), ("ITL", model.itl_seconds))
        if value
    ]
    if parts:
        yield f"  {formatting.format_share(model.target)} of the requests within {' and '.join(parts)}"
    else:
        yield "  it has no objectives: sized by what the memory and the batch of an engine hold"


def _arrivals(look: TickRecord) -> Iterator[str]:
    if look.model.replicas_most is not None:
        yield f"  all pools together: {formatting.pluralize(look.model.replicas_most, 'replica')} at most"
    seen = look.observation.gateway
    if seen is None:
        yield "  what arrives is not known: no gateway could tell"
        return
    yield (
        f"  since the last look {formatting.pluralize(round(seen.arrivals), 'request')} of {seen.prompt_tokens:,.0f} prompt tokens; "
        f"{seen.held:,.0f} held now, {seen.abandoned:,.0f} gave up"
    )


def _attained(look: TickRecord) -> Iterator[str]:
    judged = [
        f"{part.within:,.0f} of {formatting.pluralize(round(part.judged), _JUDGED[part.objective])} in time"
        for part in attained(SLOAttainment(), look.observation).samples
    ]
    if judged:
        yield f"  of those that were judged since then: {', '.join(judged)}"


def _pool(
    pool: str, seen: PoolObservation, plan: PoolPlan | None, ruling: EnforcedPlan | None, settings: ScalingSettings
) -> Iterator[str]:
    ages = ", ".join(format_duration(age) for age in seen.pending_ages_seconds)
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
        for name, said in render_inputs(plan.inputs, settings):
            yield said if bounds is None or name not in _BOUNDS else _bound(name, plan.inputs[name], bounds)
        yield f"  planned: {describe_replicas(plan.replicas, plan.asleep)}, by the rule {plan.rule}: {plan.reason}"
    if ruling is not None:
        yield from _ruling(ruling, plan)


def _bound(name: str, one: DecisionInput, bounds: tuple[int, int]) -> str:
    """A bound as it holds at this hour; the core was given the widest of all hours."""
    now = bounds[_BOUNDS.index(name)]
    other = "" if one.value in (None, now) else f"; {one.value:g} at other hours"
    return render_input(name, DecisionInput(float(now))) + other


def _ruling(ruling: EnforcedPlan, plan: PoolPlan | None) -> Iterator[str]:
    wanted, now = (
        describe_replicas(ruling.replicas, ruling.asleep),
        describe_replicas(ruling.desired, ruling.asleep_desired),
    )
    if plan is None or (ruling.rule, wanted) != (plan.rule, describe_replicas(plan.replicas, plan.asleep)):
        yield f"  decided: {wanted}, by the rule {ruling.rule}: {ruling.reason}"
    if wanted == now:
        yield f"  nothing changes: {now} it is"
    elif ruling.unwritten is not None:
        yield f"  not written ({now} stays): {ruling.unwritten}"
    else:
        yield f"  written: {now} -> {wanted}"
