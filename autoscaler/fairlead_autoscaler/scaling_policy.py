"""Policy of a model, applied to the core's plan. Pure.

The core knows load and capacity. Here are the rules of `spec.autoscaling`, in this order:

1. `wake`: a gateway queues a request and there is no replica, so one starts whatever else is known.
2. `zero-after`: no pool goes to zero before its model had no requests for `zero.after`.
3. `step-up`, `step-down`: the largest change within a minute.
4. `bounds`: the bounds of this hour, whatever the rules before say.

After these rules, the mode, another owner of the number, a rollout or the freeze can prevent the
write.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from fairlead.api.spec.autoscaling import Autoscaling, ScalingMode
from fairlead.fleet.model import Role
from fairlead.units import parse_duration
from fairlead_autoscaler.core import ModelSpec, PoolObservation, PoolPlan, PoolSpec, ScalingPlan
from fairlead_autoscaler.target import ModelState, PoolState

STEP_SECONDS = 60.0
WAKE_SECONDS = 30.0
"""A wake hint holds for this long. Until then a tick has observed the queued request, or it is no
longer queued."""
_RECENT_WAKE_REASON = f"a request was queued within the last {WAKE_SECONDS:.0f} s, for which this one was woken"


@dataclass(frozen=True, slots=True)
class EnforcedPlan:
    """The plan for one pool after the policy.

    desired, asleep_desired: the numbers as they are now.
    rule: the core's or one of the policy's.
    planned: the core's number; None: it planned nothing.
    unwritten: why nothing is written, in words; None: it is written if it differs.
    bounds: the bounds of this hour; None in old recordings.
    asleep: replicas that should sleep.
    """

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
        return self.replicas + self.asleep

    @property
    def is_growing(self) -> bool:
        return self.instances > self.desired + self.asleep_desired

    @property
    def needs_write(self) -> bool:
        return self.unwritten is None and (self.replicas, self.asleep) != (self.desired, self.asleep_desired)


@dataclass(frozen=True, slots=True)
class PolicyState:
    """The memory of a model's policy.

    recent_sizes: by pool, the desired numbers of the last minute with their times.
    """

    recent_sizes: Mapping[str, tuple[tuple[float, int], ...]] = field(default_factory=dict)
    last_request_at: float | None = None


@dataclass(frozen=True, slots=True)
class Moment:
    """The circumstances of one tick.

    wall: Unix seconds.
    is_woken: a gateway recently queued a request.
    is_frozen: nothing is written.
    """

    now: float
    wall: float
    is_woken: bool = False
    is_frozen: bool = False


def update_policy_state(before: PolicyState, state: ModelState, now: float, *, has_requests: bool) -> PolicyState:
    """Returns the memory after one tick.

    The first tick counts as one with requests, since the time before is unknown.
    """
    sizes = {
        name: (
            *(entry for entry in before.recent_sizes.get(name, ()) if now - entry[0] < STEP_SECONDS),
            (now, pool.desired),
        )
        for name, pool in state.pools.items()
    }
    return PolicyState(sizes, now if has_requests or before.last_request_at is None else before.last_request_at)


def enforce(memory: PolicyState, state: ModelState, plan: ScalingPlan, moment: Moment) -> dict[str, EnforcedPlan]:
    """Returns the plan for each pool after the policy."""
    woken = _pools_to_wake(state, plan) if moment.is_woken else frozenset()
    rulings: dict[str, EnforcedPlan] = {}
    for spec in state.model.pools:
        pool = state.pools.get(spec.name)
        if pool is None:
            continue
        low, high = state.policy.bounds_at(spec.name, spec.minimum, spec.maximum, moment.wall)
        enforcer = _PoolEnforcer(memory, state.policy, spec, pool, (max(low, min_replicas(spec)), high), moment.now)
        ruling = enforcer.enforce(plan.pools.get(spec.name), is_woken=spec.name in woken)
        rulings[spec.name] = replace(ruling, unwritten=_unwritten_reason(state.policy, pool, moment.is_frozen))
    return rulings


@dataclass(frozen=True, slots=True)
class _PoolEnforcer:
    """The application of the policy to the plan of one pool."""

    memory: PolicyState
    policy: Autoscaling
    spec: PoolSpec
    pool: PoolState
    bounds: tuple[int, int]
    now: float

    def enforce(self, plan: PoolPlan | None, *, is_woken: bool) -> EnforcedPlan:
        desired, pool = self.pool.desired, self.pool
        if plan is None:
            ruling = EnforcedPlan(desired, desired, "no-plan", "nothing was planned for this pool")
        else:
            ruling = EnforcedPlan(plan.replicas, desired, plan.rule, plan.reason, plan.replicas)
        asleep = pool.asleep if plan is None else plan.asleep
        total = ruling.replicas + asleep
        if is_woken:
            reason = "a request is queued and there is no replica" if desired == 0 else _RECENT_WAKE_REASON
            ruling = replace(ruling, replicas=1, rule="wake", reason=reason)
        after = parse_duration(self.policy.zero.after)
        last = self.memory.last_request_at
        silent = self.now - last if last is not None else 0.0
        if ruling.replicas == asleep == 0 < desired + pool.asleep and silent < after:
            reason = f"no requests for {silent:.0f} s; zero replicas are allowed after {after:.0f} s"
            # With a sleep tier the last replica sleeps: the load needs none.
            kept = min(1, desired) if self.spec.tier is None else 0
            ruling, total, asleep = replace(ruling, replicas=kept, rule="zero-after", reason=reason), 1, 1 - kept
        ruling = self._limit_step(ruling)
        low, high = self.bounds
        if not low <= ruling.replicas <= high:
            reason = f"{ruling.replicas} is outside {low} to {high}; before that: {ruling.reason}"
            ruling = replace(ruling, replicas=min(max(ruling.replicas, low), high), rule="bounds", reason=reason)
        # Replicas that should serve beyond the plan wake before any starts, and replicas that
        # should not serve sleep on. While a step limits the serving ones, none starts to sleep:
        # until it sleeps it serves, and would exceed the step.
        most = pool.asleep if ruling.rule == "step-up" else max(asleep, pool.asleep)
        sleeping = max(0, min(total - ruling.replicas, most, high - ruling.replicas))
        return replace(ruling, asleep=sleeping, asleep_desired=pool.asleep, bounds=self.bounds)

    def _limit_step(self, ruling: EnforcedPlan) -> EnforcedPlan:
        """Returns the plan with the change within a minute limited by the policy's steps."""
        up, down = self.policy.step_up, self.policy.step_down
        sizes = self._recent_sizes()
        if up is not None:
            most = max(min(sizes) + step_size(up, min(sizes)), ruling.desired)
            if ruling.replicas > most:
                reason = f"{ruling.replicas} would be more than {up} within a minute; {ruling.reason}"
                return replace(ruling, replicas=most, rule="step-up", reason=reason)
        if down is not None:
            least = min(max(sizes) - step_size(down, max(sizes)), ruling.desired)
            if ruling.replicas < least:
                reason = f"{ruling.replicas} would be more than {down} fewer within a minute; {ruling.reason}"
                return replace(ruling, replicas=least, rule="step-down", reason=reason)
        return ruling

    def _recent_sizes(self) -> Sequence[int]:
        entries = self.memory.recent_sizes.get(self.spec.name, ())
        return [size for _, size in entries] or [self.pool.desired]


def describe_replicas(replicas: int, asleep: int) -> str:
    return f"{replicas} and {asleep} asleep" if asleep else f"{replicas}"


def min_replicas(spec: PoolSpec) -> int:
    """Returns the fewest replicas that a pool may ever have.

    A pool of a separate role needs one, since a request cannot wait at a gateway for both roles.
    """
    return 0 if spec.role is Role.SERVE else min(1, spec.maximum)


def step_size(step: int | str, size: int) -> int:
    """Returns the replicas of a step: `2` gives 2; `"50%"` of 5 gives 2, and one at least."""
    if isinstance(step, int):
        return step
    return max(1, size * int(step.removesuffix("%")) // 100)


def _pools_to_wake(state: ModelState, plan: ScalingPlan) -> frozenset[str]:
    """Returns, for each role of which no pool should have a replica, the first pool that may have
    one.
    """
    first: dict[str, str] = {}
    serving: set[str] = set()
    for spec in state.model.pools:
        pool, planned = state.pools.get(spec.name), plan.pools.get(spec.name)
        if pool is None:
            continue
        wanted = pool.desired if planned is None else planned.replicas
        if wanted > 0:
            serving.add(spec.role)
        elif spec.maximum > 0:
            first.setdefault(spec.role, spec.name)
    return frozenset(name for role, name in first.items() if role not in serving)


def _unwritten_reason(policy: Autoscaling, pool: PoolState, is_frozen: bool) -> str | None:
    if policy.mode is not ScalingMode.AUTO:
        return f"the mode is {policy.mode.value}"
    if is_frozen:
        return "all scaling is frozen"
    if pool.replicas_owner is not None:
        return f"{pool.replicas_owner} sets the number"
    return pool.pause_reason


def with_widest_bounds(model: ModelSpec, policy: Autoscaling) -> ModelSpec:
    """Returns the model with the widest bounds of all hours.

    The core plans within these, and `enforce` keeps to the bounds of the hour. So the core forgets
    nothing when an hour changes its bounds.
    """
    return replace(model, pools=tuple(widest_pool_bounds(spec, policy) for spec in model.pools))


def widest_pool_bounds(spec: PoolSpec, policy: Autoscaling) -> PoolSpec:
    """Returns the pool with the widest bounds of all hours."""
    schedules = [schedule for schedule in policy.schedules if schedule.pool in (None, spec.name)]
    given = [bound for schedule in schedules for bound in (schedule.min_replicas, schedule.max_replicas)]
    bounds = [bound for bound in given if bound is not None]
    lowest = max(min([spec.minimum, *bounds]), min_replicas(spec))
    return replace(spec, minimum=lowest, maximum=max([spec.maximum, *bounds]))


def has_requests(pools: Mapping[str, PoolObservation], arrivals: float | None, held: float | None) -> bool:
    """Whether a model has requests; True if arrivals or queued requests are unknown."""
    if arrivals is None or held is None:
        return True
    is_busy = any(replica.running or replica.waiting for pool in pools.values() for replica in pool.replicas or ())
    return arrivals > 0 or held > 0 or is_busy
