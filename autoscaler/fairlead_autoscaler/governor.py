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
from fairlead.fleet import Role
from fairlead.units import seconds
from fairlead_autoscaler.scaling import Plan, PoolFacts, PoolPlan, PoolSeen, ScaledModel
from fairlead_autoscaler.world import ModelState, PoolState

STEP_SECONDS = 60.0
WAKE_SECONDS = 30.0
"""A wake hint holds this long: by then a look at the gateways has seen who is held, or they are not held any more."""
_HELD_LATELY = f"a request was held within the last {WAKE_SECONDS:.0f} s, for which this one was woken"


@dataclass(frozen=True, slots=True)
class Ruling:
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
    def grows(self) -> bool:
        """There are to be more than there are, awake or asleep."""
        return self.instances > self.desired + self.asleep_desired

    @property
    def writes(self) -> bool:
        """There is something to write."""
        return self.unwritten is None and (self.replicas, self.asleep) != (self.desired, self.asleep_desired)


@dataclass(frozen=True, slots=True)
class Watch:
    """What is remembered of a model: by pool the numbers asked for within the last minute, and when something was last asked of
    it."""

    sizes: Mapping[str, tuple[tuple[float, int], ...]] = field(default_factory=dict)
    asked_at: float | None = None


def watched(watch: Watch, state: ModelState, now: float, *, asked: bool) -> Watch:
    """``watch`` with this moment; ``asked``: requests arrived or are held. The first look counts as one, since what was before is
    not known."""
    sizes = {
        name: (*(one for one in watch.sizes.get(name, ()) if now - one[0] < STEP_SECONDS), (now, pool.desired))
        for name, pool in state.pools.items()
    }
    return Watch(sizes, now if asked or watch.asked_at is None else watch.asked_at)


def governed(
    watch: Watch, state: ModelState, plan: Plan, now: float, wall: float, *, woken: bool, frozen: bool
) -> dict[str, Ruling]:
    """What to do about each pool. ``woken``: a gateway lately asked for a replica. ``wall`` is Unix time."""
    wakes = _to_wake(state, plan) if woken else frozenset()
    found: dict[str, Ruling] = {}
    for facts in state.model.pools:
        pool = state.pools.get(facts.name)
        if pool is None:
            continue
        low, high = state.policy.bounds(facts.name, facts.minimum, facts.maximum, wall)
        bounds = max(low, least(facts)), high
        ruling = _ruled(watch, state.policy, facts, pool, plan.pools.get(facts.name), bounds, now, facts.name in wakes)
        found[facts.name] = replace(ruling, unwritten=_unwritten(state.policy, pool, frozen), bounds=bounds)
    return found


def _ruled(
    watch: Watch,
    policy: Autoscaling,
    facts: PoolFacts,
    pool: PoolState,
    planned: PoolPlan | None,
    bounds: tuple[int, int],
    now: float,
    wakes: bool,
) -> Ruling:
    desired = pool.desired
    if planned is None:
        ruling = Ruling(desired, desired, "no-plan", "nothing was planned for this pool")
    else:
        ruling = Ruling(planned.replicas, desired, planned.rule, planned.reason, planned.replicas)
    asleep = pool.asleep if planned is None else planned.asleep
    total = ruling.replicas + asleep
    if wakes:
        held = "a request is held and there is no replica" if desired == 0 else _HELD_LATELY
        ruling = replace(ruling, replicas=1, rule="wake", reason=held)
    after = seconds(policy.zero.after)
    silent = now - watch.asked_at if watch.asked_at is not None else 0.0
    if ruling.replicas == asleep == 0 < desired + pool.asleep and silent < after:
        reason = f"nothing was asked for {silent:.0f} s, and only after {after:.0f} s there may be none"
        kept = min(1, desired) if facts.tier is None else 0  # where it may, it sleeps: the load needs nobody
        ruling, total, asleep = replace(ruling, replicas=kept, rule="zero-after", reason=reason), 1, 1 - kept
    ruling = _stepped(ruling, policy, [size for _, size in watch.sizes.get(facts.name, ())] or [desired])
    low, high = bounds
    if not low <= ruling.replicas <= high:
        reason = f"{ruling.replicas} lies outside {low} to {high}; before that: {ruling.reason}"
        ruling = replace(ruling, replicas=min(max(ruling.replicas, low), high), rule="bounds", reason=reason)
    # Who is to serve beyond the plan is woken before anybody starts, and who is not to serve sleeps on. Where a step holds back those
    # that are to serve, nobody starts to sleep beside them: until he sleeps he serves, and would pass the step by.
    most = pool.asleep if ruling.rule == "step-up" else max(asleep, pool.asleep)
    beside = min(total - ruling.replicas, most, high - ruling.replicas)
    return replace(ruling, asleep=max(0, beside), asleep_desired=pool.asleep)


def _stepped(ruling: Ruling, policy: Autoscaling, sizes: list[int]) -> Ruling:
    if policy.step_up is not None:
        most = min(sizes) + amount(policy.step_up, min(sizes))
        if ruling.replicas > max(most, ruling.desired):
            reason = f"{ruling.replicas} would be more than {policy.step_up} within a minute; {ruling.reason}"
            return replace(ruling, replicas=max(most, ruling.desired), rule="step-up", reason=reason)
    if policy.step_down is not None:
        least = max(sizes) - amount(policy.step_down, max(sizes))
        if ruling.replicas < min(least, ruling.desired):
            reason = f"{ruling.replicas} would be {policy.step_down} fewer within a minute, or more; {ruling.reason}"
            return replace(ruling, replicas=min(least, ruling.desired), rule="step-down", reason=reason)
    return ruling


def in_words(replicas: int, asleep: int) -> str:
    """A number of replicas for people: ``3``, or ``3 and 2 asleep``."""
    return f"{replicas} and {asleep} asleep" if asleep else f"{replicas}"


def least(facts: PoolFacts) -> int:
    """The fewest that a pool may ever have: of prefill and decode one, since a prompt cannot wait at a gateway for both."""
    return 0 if facts.role is Role.SERVE else min(1, facts.maximum)


def amount(step: int | str, size: int) -> int:
    """``2`` → 2; ``"50%"`` of 5 → 2, and one at least."""
    if isinstance(step, int):
        return step
    return max(1, size * int(step.removesuffix("%")) // 100)


def _to_wake(state: ModelState, plan: Plan) -> frozenset[str]:
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


def _unwritten(policy: Autoscaling, pool: PoolState, frozen: bool) -> str | None:
    if policy.mode is not ScalingMode.AUTO:
        return f"the mode is {policy.mode.value}"
    if frozen:
        return "all scaling is frozen"
    if pool.held_by is not None:
        return f"{pool.held_by} sets the number"
    return pool.paused


def widest(model: ScaledModel, policy: Autoscaling) -> ScaledModel:
    """The model with bounds as wide as they ever become: the core plans within these, and ``governed`` keeps to those of the hour, so
    that nothing learned is lost when an hour changes."""
    return replace(model, pools=tuple(widest_pool(facts, policy) for facts in model.pools))


def widest_pool(facts: PoolFacts, policy: Autoscaling) -> PoolFacts:
    """One pool of it."""
    own = [one for one in policy.schedules if one.pool in (None, facts.name)]
    lows = [one.min for one in own if one.min is not None] + [one.max for one in own if one.max is not None]
    highs = [one.max for one in own if one.max is not None] + [one.min for one in own if one.min is not None]
    lowest = max(min([facts.minimum, *lows]), least(facts))
    return replace(facts, minimum=lowest, maximum=max([facts.maximum, *highs]))


def asked(seen: Mapping[str, PoolSeen], arrivals: float | None, held: float | None) -> bool:
    """Whether anything was asked of a model; what is not known counts as if there had been."""
    if arrivals is None or held is None:
        return True
    running = any(one.running or one.waiting for pool in seen.values() for one in pool.replicas or ())
    return arrivals > 0 or held > 0 or running
