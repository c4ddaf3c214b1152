"""The state of a running stack: models, pools, instances, and a line of advice. Pure values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from fairlead_cli import formatting
from fairlead_cli.advice import Advice
from fairlead_cli.management import api_types
from fairlead_cli.management.client import GatewaySnapshot

READY_STATE = "Ready"
ASLEEP_STATE = "Sleeping"


@dataclass(frozen=True, slots=True)
class PoolScaling:
    """A pool that the autoscaler scales: the wanted engines, the bounds and the reason.

    asleep: sleeping engines besides the wanted ones.

    unwritten: why the decision is not applied; None when it is.
    """

    pool: str
    wanted: int
    least: int
    most: int
    rule: str
    reason: str
    unwritten: str | None = None
    asleep: int = 0


@dataclass(frozen=True, slots=True)
class StackModelReport:
    """The state of one model. ``expected_instances``: how many it should have; None is unknown."""

    model: api_types.Model
    stats: api_types.ModelStats
    decisions: tuple[api_types.Decision, ...]
    expected_instances: int | None
    advice: Advice
    scaled_pools: tuple[PoolScaling, ...] = ()

    @property
    def ready(self) -> int:
        """Number of instances that receive requests."""
        return sum(instance.state == READY_STATE for instance in self.model.instances)

    @property
    def asleep(self) -> int:
        """Number of instances that sleep."""
        return sum(instance.state == ASLEEP_STATE for instance in self.model.instances)

    @property
    def expected(self) -> int:
        """Number of instances that should receive requests."""
        return max(len(self.model.instances), self.expected_instances or 0) - self.asleep

    def pools(self) -> dict[str, list[api_types.Instance]]:
        """Returns the instances by pool, in their order."""
        pools: dict[str, list[api_types.Instance]] = {}
        for instance in self.model.instances:
            pools.setdefault(instance.pool, []).append(instance)
        return pools


@dataclass(frozen=True, slots=True)
class StackReport:
    """The gateway and its models."""

    url: str | None
    manage: str
    stats: api_types.GatewayStats
    models: tuple[StackModelReport, ...]

    @property
    def has_problem(self) -> bool:
        """Whether anything is wrong."""
        return not self.stats.ready or any(model.advice.is_problem for model in self.models)


def build_report(
    snapshot: GatewaySnapshot,
    *,
    url: str | None,
    manage: str,
    expected_instances: Mapping[str, int],
    only_key: str | None = None,
    program: str = "fairlead",
    scaling_by_model: Mapping[str, Sequence[PoolScaling]] = MappingProxyType({}),
) -> StackReport:
    """Returns the report of a stack from the answers of its gateway and autoscaler.

    only_key: key of the only model to report; None for all.

    scaling_by_model: the autoscaler's decision for each pool.

    program: name of this command in hints.
    """
    models = []
    for model in snapshot.fleet.models:
        if only_key is not None and model.key != only_key:
            continue
        stats = snapshot.stats.models.get(model.key, api_types.ModelStats())
        decisions = tuple(decision for decision in snapshot.decisions.decisions if decision.model == model.key)
        expected = expected_instances.get(model.key)
        pools = tuple(scaling_by_model.get(model.key, ()))
        advice = advise(model, stats, decisions, expected, program, pools)
        models.append(StackModelReport(model, stats, decisions, expected, advice, pools))
    return StackReport(url, manage, snapshot.stats, tuple(models))


def advise(
    model: api_types.Model,
    stats: api_types.ModelStats,
    decisions: Sequence[api_types.Decision],
    expected_instances: int | None,
    program: str = "fairlead",
    scaled_pools: Sequence[PoolScaling] = (),
) -> Advice:
    """Returns the next thing to do, the most urgent first."""
    states = [instance.state for instance in model.instances]
    ready, starting = states.count(READY_STATE), states.count("Starting")
    missing = max(0, (expected_instances or 0) - len(states))
    window = stats.window
    if not ready:
        if starting:
            return Advice(
                True, f"{formatting.pluralize(starting, 'engine')} starting; requests wait until one is ready"
            )
        if scaled_pools and states and all(state == ASLEEP_STATE for state in states):
            return Advice(False, "it sleeps: the next request waits for an engine, which wakes then")
        if scaled_pools and not states and not any(pool.wanted for pool in scaled_pools):
            return Advice(False, "it has no engine: the next request waits while one starts")
        return Advice(True, "no engine is running: the output of `fairlead up` says why")
    if missing:
        loss = f"{missing} of {expected_instances} engines ended and will be started again"
        return Advice(True, f"{loss}; the output of `fairlead up` says why")
    if window.errors:
        failed = next((decision for decision in decisions if _has_failed(decision)), None)
        which = failed.request_id if failed else "ID (an answer's header x-fairlead-decision)"
        requests = formatting.pluralize(window.requests, "request")
        return Advice(
            True, f"{window.errors} of {requests} failed in the last minute: {program} explain request {which}"
        )
    target = model.objectives.target
    if window.within_objective is not None and window.within_objective < target:
        attainment = (
            f"{formatting.format_share(window.within_objective)} of requests meet the SLO, "
            f"{formatting.format_share(target)} should"
        )
        return Advice(True, f"{attainment}: {_remedy(model, ready, program, scaled_pools)}, or relax spec.slo")
    if starting:
        return Advice(False, f"{formatting.pluralize(starting, 'engine')} starting")
    if not stats.totals.requests and not stats.in_flight:
        return Advice(False, f"nothing was asked yet: {program} chat {model.name}")
    return Advice(False, "nothing to do")


def _has_failed(decision: api_types.Decision) -> bool:
    """Whether the request failed by no fault of its client."""
    outcome = decision.outcome
    return outcome is not None and not outcome.client_gone and (outcome.status >= 500 or outcome.is_broken)


def _remedy(model: api_types.Model, ready: int, program: str, scaled_pools: Sequence[PoolScaling]) -> str:
    """Returns what may bring a model back to its SLO."""
    if not scaled_pools:
        return f"raise minReplicas in the manifest of `{program} up FILE`"
    blocked = next((pool for pool in scaled_pools if pool.unwritten is not None), None)
    if blocked is not None:
        return f"the autoscaler wants {blocked.wanted} of {blocked.pool}, which is not applied: {blocked.unwritten}"
    if all(pool.wanted >= pool.most for pool in scaled_pools):
        return "raise maxReplicas"
    if sum(pool.wanted for pool in scaled_pools) > ready:
        return "the autoscaler is adding engines"
    return f"the autoscaler considers the present engines enough (`{program} explain scaling {model.name}` says why)"
