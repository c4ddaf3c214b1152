"""The state of a running stack as ``fairlead status`` tells it: models, pools, instances, and one line of advice. Pure values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from fairlead_cli import formatting
from fairlead_cli.management import api_types
from fairlead_cli.management.client import GatewaySnapshot

READY_STATE = "Ready"
ASLEEP_STATE = "Sleeping"


@dataclass(frozen=True, slots=True)
class StackAdvice:
    """What to do next, and whether something is wrong."""

    is_problem: bool
    text: str


@dataclass(frozen=True, slots=True)
class PoolScaling:
    """A pool that the autoscaler sizes: how many engines it wants of it, and how many ``asleep`` beside them, between which bounds,
    and why. ``unwritten`` is why that is not done; None: it is."""

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
    """One model with all that is known of it; ``wanted`` is how many engines it should have, where that is known. ``sized`` are its
    pools that the autoscaler sizes."""

    model: api_types.Model
    stats: api_types.ModelStats
    decisions: tuple[api_types.Decision, ...]
    wanted_instances: int | None
    advice: StackAdvice
    scaled_pools: tuple[PoolScaling, ...] = ()

    @property
    def ready(self) -> int:
        """Instances that get requests."""
        return sum(one.state == READY_STATE for one in self.model.instances)

    @property
    def asleep(self) -> int:
        """Instances that sleep."""
        return sum(one.state == ASLEEP_STATE for one in self.model.instances)

    @property
    def expected(self) -> int:
        """Instances that should get requests."""
        return max(len(self.model.instances), self.wanted_instances or 0) - self.asleep

    def pools(self) -> dict[str, list[api_types.Instance]]:
        """Instances by pool, in their order."""
        found: dict[str, list[api_types.Instance]] = {}
        for one in self.model.instances:
            found.setdefault(one.pool, []).append(one)
        return found


@dataclass(frozen=True, slots=True)
class StackReport:
    """The gateway and its models."""

    url: str | None
    manage: str
    stats: api_types.GatewayStats
    models: tuple[StackModelReport, ...]

    @property
    def has_problem(self) -> bool:
        """Is anything wrong?"""
        return not self.stats.ready or any(model.advice.is_problem for model in self.models)


def build_report(
    snapshot: GatewaySnapshot,
    *,
    url: str | None,
    manage: str,
    expected_instances: Mapping[str, int],
    only: str | None = None,
    program: str = "fairlead",
    scaling_by_model: Mapping[str, Sequence[PoolScaling]] = MappingProxyType({}),
) -> StackReport:
    """What the gateway and the autoscaler (``sized``, by model) said, put together by model; ``only`` is a model's key, ``program``
    what to type for this one."""
    models = []
    for model in snapshot.fleet.models:
        if only is not None and model.key != only:
            continue
        stats = snapshot.stats.models.get(model.key, api_types.ModelStats())
        decisions = tuple(one for one in snapshot.decisions.decisions if one.model == model.key)
        expected = expected_instances.get(model.key)
        pools = tuple(scaling_by_model.get(model.key, ()))
        advice = advise(model, stats, decisions, expected, program, pools)
        models.append(StackModelReport(model, stats, decisions, expected, advice, pools))
    return StackReport(url, manage, snapshot.stats, tuple(models))


def advise(
    model: api_types.Model,
    stats: api_types.ModelStats,
    decisions: Sequence[api_types.Decision],
    wanted_instances: int | None,
    program: str = "fairlead",
    scaled_pools: Sequence[PoolScaling] = (),
) -> StackAdvice:
    """The one thing to look at, the most urgent first."""
    states = [one.state for one in model.instances]
    ready, starting = states.count(READY_STATE), states.count("Starting")
    missing = max(0, (wanted_instances or 0) - len(states))
    window = stats.window
    if not ready:
        if starting:
            return StackAdvice(
                True, f"{formatting.pluralize(starting, 'engine')} starting; requests wait until one is ready"
            )
        if scaled_pools and states and all(state == ASLEEP_STATE for state in states):
            return StackAdvice(False, "it sleeps: the next request waits for an engine, which wakes then")
        if scaled_pools and not states and not any(pool.wanted for pool in scaled_pools):
            return StackAdvice(False, "it has no engine: the next request waits while one starts")
        return StackAdvice(True, "no engine is running: the output of `fairlead up` says why")
    if missing:
        there = f"{missing} of {wanted_instances} engines ended and will be started again"
        return StackAdvice(True, f"{there}; the output of `fairlead up` says why")
    if window.errors:
        failed = next((one for one in decisions if one.outcome and one.outcome.status >= 500), None)
        example = f", the last one {failed.request_id}" if failed else ""
        asked = formatting.pluralize(window.requests, "request")
        return StackAdvice(True, f"{window.errors} of {asked} failed in the last minute{example}")
    target = model.objectives.target
    if window.within_objective is not None and window.within_objective < target:
        reached = (
            f"{formatting.format_share(window.within_objective)} of requests meet the objective, "
            f"{formatting.format_share(target)} should"
        )
        return StackAdvice(True, f"{reached}: {_remedy(model, ready, program, scaled_pools)}, or relax spec.objectives")
    if starting:
        return StackAdvice(False, f"{formatting.pluralize(starting, 'engine')} starting")
    if not stats.totals.requests and not stats.in_flight:
        return StackAdvice(False, f"nothing was asked yet: {program} chat {model.name}")
    return StackAdvice(False, "nothing to do")


def _remedy(model: api_types.Model, ready: int, program: str, sized: Sequence[PoolScaling]) -> str:
    """What may bring back an objective that is missed."""
    if not sized:
        return "add replicas"
    held = next((pool for pool in sized if pool.unwritten is not None), None)
    if held is not None:
        return f"the autoscaler wants {held.wanted} of {held.pool}, which is not done since {held.unwritten}"
    if all(pool.wanted >= pool.most for pool in sized):
        return "raise replicas.max"
    if sum(pool.wanted for pool in sized) > ready:
        return "the autoscaler is at it"
    return f"the autoscaler takes what there is to be enough (`{program} explain scale {model.name}` says why)"
