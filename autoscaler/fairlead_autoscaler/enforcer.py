"""What the owner of a model said about its scaling, laid over what the core plans. Pure.

The core knows load and capacity; here are the wishes of people: bounds by the hour, how much may change within a minute, when a pool
may have no replica at all, whether anything is to be written. In this order, each with its own rule and reason:

1. ``wake``: a gateway said that a request is held and there is no replica; one is started whatever else is known.
2. ``zero-after``: no pool goes to zero before nothing was asked of its model for as long as ``zero.after`` says.
3. ``step-up``, ``step-down``: no more than so many within a minute.
4. ``bounds``: never outside the bounds of this hour, whatever was said before.

Then what keeps even that from being written: the mode, somebody else who sets the number, a rollout, the freeze.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from fairlead.api import Autoscaling, ScalingMode
from fairlead.fleet.model import Role
from fairlead.units import parse_duration
from fairlead_autoscaler.core import ModelSpec, PoolObservation, PoolPlan, PoolSpec, ScalingPlan
from fairlead_autoscaler.target import ModelState, PoolState

STEP_SECONDS = 60.0
WAKE_SECONDS = 30.0
"""A wake hint holds this long: by then a look at the gateways has seen who is held, or they are not held any more."""
_RECENT_WAKE_REASON = f"a request was held within the last {WAKE_SECONDS:.0f} s, for which this one was woken"


@dataclass(frozen=True, slots=True)
class EnforcedPlan:
    """What becomes of one pool: ``replicas`` from ``desired``, by the core's rule or one of ours. ``unwritten`` is why it is not
    written, in words; None: it is to be written, if it differs. ``bounds`` are the least and the most of this hour; None in
    recordings of before they were kept. ``asleep`` are to sleep beside those that serve, and ``asleep_desired`` are now."""

    replicas: int
    desired: int
    rule: str
    reason: str
    planned: int | None = None
    unwritten: str | None = None
    bounds: tuple[int, int] | None = None
    asleep: int = 0
    asleep_desired: int = 0

    @property
    def instances(self) -> int:
        """All that there are to be, awake or asleep."""
        return self.replicas + self.asleep

    @property
    def is_growing(self) -> bool:
        """There are to be more than there are, awake or asleep."""
        return self.instances > self.desired + self.asleep_desired

    @property
    def needs_write(self) -> bool:
        """There is something to write."""
        return self.unwritten is None and (self.replicas, self.asleep) != (self.desired, self.asleep_desired)


@dataclass(frozen=True, slots=True)
class PolicyState:
    """What is remembered of a model: by pool the numbers asked for within the last minute, and when something was last asked of
    it."""

    recent_sizes: Mapping[str, tuple[tuple[float, int], ...]] = field(default_factory=dict)
    last_request_at: float | None = None


def update_policy_state(before: PolicyState, state: ModelState, now: float, *, has_requests: bool) -> PolicyState:
    """``watch`` with this moment; ``asked``: requests arrived or are held. The first look counts as one, since what was before is
    not known."""
    sizes = {
        name: (*(one for one in before.recent_sizes.get(name, ()) if now - one[0] < STEP_SECONDS), (now, pool.desired))
        for name, pool in state.pools.items()
    }
    return PolicyState(sizes, now if has_requests or before.last_request_at is None else before.last_request_at)


def enforce(
    memory: PolicyState,
    state: ModelState,
    plan: ScalingPlan,
    now: float,
    wall: float,
    *,
    is_woken: bool,
    is_frozen: bool,
) -> dict[str, EnforcedPlan]:
    """What to do about each pool. ``woken``: a gateway lately asked for a replica. ``wall`` is Unix time."""
    wakes = _pools_to_wake(state, plan) if is_woken else frozenset()
    found: dict[str, EnforcedPlan] = {}
    for facts in state.model.pools:
        pool = state.pools.get(facts.name)
        if pool is None:
            continue
        low, high = state.policy.bounds_at(facts.name, facts.minimum, facts.maximum, wall)
        bounds = max(low, min_replicas(facts)), high
        ruling = _enforce_pool(
            memory, state.policy, facts, pool, plan.pools.get(facts.name), bounds, now, facts.name in wakes
        )
        found[facts.name] = replace(ruling, unwritten=_unwritten_reason(state.policy, pool, is_frozen), bounds=bounds)
    return found


def _enforce_pool(
    watch: PolicyState,
    policy: Autoscaling,
    facts: PoolSpec,
    pool: PoolState,
    planned: PoolPlan | None,
    bounds: tuple[int, int],
    now: float,
    wakes: bool,
) -> EnforcedPlan:
    desired = pool.desired
    if planned is None:
        ruling = EnforcedPlan(desired, desired, "no-plan", "nothing was planned for this pool")
    else:
        ruling = EnforcedPlan(planned.replicas, desired, planned.rule, planned.reason, planned.replicas)
    asleep = pool.asleep if planned is None else planned.asleep
    total = ruling.replicas + asleep
    if wakes:
        held = "a request is held and there is no replica" if desired == 0 else _RECENT_WAKE_REASON
        ruling = replace(ruling, replicas=1, rule="wake", reason=held)
    after = parse_duration(policy.zero.after)
    silent = now - watch.last_request_at if watch.last_request_at is not None else 0.0
    if ruling.replicas == asleep == 0 < desired + pool.asleep and silent < after:
        reason = f"nothing was asked for {silent:.0f} s, and only after {after:.0f} s there may be none"
        kept = min(1, desired) if facts.tier is None else 0  # where it may, it sleeps: the load needs nobody
        ruling, total, asleep = replace(ruling, replicas=kept, rule="zero-after", reason=reason), 1, 1 - kept
    ruling = _limit_step(ruling, policy, [size for _, size in watch.recent_sizes.get(facts.name, ())] or [desired])
    low, high = bounds
    if not low <= ruling.replicas <= high:
        reason = f"{ruling.replicas} lies outside {low} to {high}; before that: {ruling.reason}"
        ruling = replace(ruling, replicas=min(max(ruling.replicas, low), high), rule="bounds", reason=reason)
    # Who is to serve beyond the plan is woken before anybody starts, and who is not to serve sleeps on. Where a step holds back those
    # that are to serve, nobody starts to sleep beside them: until he sleeps he serves, and would pass the step by.
    most = pool.asleep if ruling.rule == "step-up" else max(asleep, pool.asleep)
    beside = min(total - ruling.replicas, most, high - ruling.replicas)
    return replace(ruling, asleep=max(0, beside), asleep_desired=pool.asleep)


def _limit_step(ruling: EnforcedPlan, policy: Autoscaling, sizes: list[int]) -> EnforcedPlan:
    if policy.step_up is not None:
        most = min(sizes) + step_size(policy.step_up, min(sizes))
        if ruling.replicas > max(most, ruling.desired):
            reason = f"{ruling.replicas} would be more than {policy.step_up} within a minute; {ruling.reason}"
            return replace(ruling, replicas=max(most, ruling.desired), rule="step-up", reason=reason)
    if policy.step_down is not None:
        least = max(sizes) - step_size(policy.step_down, max(sizes))
        if ruling.replicas < min(least, ruling.desired):
            reason = f"{ruling.replicas} would be {policy.step_down} fewer within a minute, or more; {ruling.reason}"
            return replace(ruling, replicas=min(least, ruling.desired), rule="step-down", reason=reason)
    return ruling


def describe_replicas(replicas: int, asleep: int) -> str:
    """A number of replicas for people: ``3``, or ``3 and 2 asleep``."""
    return f"{replicas} and {asleep} asleep" if asleep else f"{replicas}"


def min_replicas(facts: PoolSpec) -> int:
    """The fewest that a pool may ever have: of prefill and decode one, since a prompt cannot wait at a gateway for both."""
    return 0 if facts.role is Role.SERVE else min(1, facts.maximum)


def step_size(step: int | str, size: int) -> int:
    """``2`` → 2; ``"50%"`` of 5 → 2, and one at least."""
    if isinstance(step, int):
        return step
    return max(1, size * int(step.removesuffix("%")) // 100)


def _pools_to_wake(state: ModelState, plan: ScalingPlan) -> frozenset[str]:
    """Of each role the first pool, where all of them have, and would have, nothing."""
    first: dict[str, str] = {}
    alive: set[str] = set()
    for facts in state.model.pools:
        pool, planned = state.pools.get(facts.name), plan.pools.get(facts.name)
        if pool is None:
            continue
        wanted = pool.desired if planned is None else planned.replicas
        if wanted > 0:
            alive.add(facts.role)
        elif facts.maximum > 0:
            first.setdefault(facts.role, facts.name)
    return frozenset(name for role, name in first.items() if role not in alive)


def _unwritten_reason(policy: Autoscaling, pool: PoolState, frozen: bool) -> str | None:
    if policy.mode is not ScalingMode.AUTO:
        return f"the mode is {policy.mode.value}"
    if frozen:
        return "all scaling is frozen"
    if pool.replicas_owner is not None:
        return f"{pool.replicas_owner} sets the number"
    return pool.pause_reason


def with_widest_bounds(model: ModelSpec, policy: Autoscaling) -> ModelSpec:
    """The model with bounds as wide as they ever become: the core plans within these, and ``governed`` keeps to those of the hour, so
    that nothing learned is lost when an hour changes."""
    return replace(model, pools=tuple(widest_pool_bounds(facts, policy) for facts in model.pools))


def widest_pool_bounds(facts: PoolSpec, policy: Autoscaling) -> PoolSpec:
    """One pool of it."""
    own = [one for one in policy.schedules if one.pool in (None, facts.name)]
    lows = [one.min for one in own if one.min is not None] + [one.max for one in own if one.max is not None]
    highs = [one.max for one in own if one.max is not None] + [one.min for one in own if one.min is not None]
    lowest = max(min([facts.minimum, *lows]), min_replicas(facts))
    return replace(facts, minimum=lowest, maximum=max([facts.maximum, *highs]))


def has_requests(pools: Mapping[str, PoolObservation], arrivals: float | None, held: float | None) -> bool:
    """Whether anything was asked of a model; what is not known counts as if there had been."""
    if arrivals is None or held is None:
        return True
    running = any(one.running or one.waiting for pool in pools.values() for one in pool.replicas or ())
    return arrivals > 0 or held > 0 or running
