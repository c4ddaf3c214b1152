"""One look: what was seen, cleaned, judged and timed; and what it teaches.

The clock of the core only goes on. A look whose clock stood still or went back brings nothing; one that jumped far ahead (the
process slept, the API server was away) is taken for an interval without signals, since nobody knows what its counters cover."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from fairlead.fleet.model import Role
from fairlead_autoscaler.core.performance import engine_speed, startup_time
from fairlead_autoscaler.core.settings import ScalingSettings
from fairlead_autoscaler.core.signals import consistency, validation
from fairlead_autoscaler.core.signals.consistency import TrustedSignals
from fairlead_autoscaler.core.state import CoreState, PoolMemory, TickClock
from fairlead_autoscaler.core.types import (
    GatewayTraffic,
    MixResult,
    ModelSpec,
    Observation,
    PoolObservation,
    has_pool_choice,
)
from fairlead_autoscaler.core.workload import idle_gaps, request_lengths
from fairlead_autoscaler.core.workload.arrivals import ArrivalBin, ArrivalHistory, record_tick
from fairlead_autoscaler.core.workload.length_shift import detect_shift
from fairlead_autoscaler.core.workload.mean_request import mean_request
from fairlead_autoscaler.core.workload.shape_histogram import ShapeHistogram

_COUNT_FIELDS = ("desired", "ready", "pending", "draining", "asleep_desired", "asleep", "waking")


@dataclass(frozen=True, slots=True)
class Tick:
    """One look, cleaned and judged. ``seconds`` since the last one (0 for the first, and where clocks did not go on). ``mixes`` are
    the answers of a solver that came with it, by role."""

    model: ModelSpec
    settings: ScalingSettings
    now: float
    seconds: float
    wall: float | None
    pools: Mapping[str, PoolObservation]
    signals: TrustedSignals
    missing_seconds: float | None
    warming_up: bool
    has_arrivals: bool
    mix_results: Mapping[str, MixResult]

    @property
    def forbids_scale_down(self) -> bool:
        """May nothing be lowered?"""
        return self.missing_seconds is not None or self.signals.inconsistency is not None or self.warming_up


def take_sample(
    state: CoreState, observation: Observation, model: ModelSpec, settings: ScalingSettings
) -> tuple[CoreState, Tick]:
    """``observation`` as it is to be taken, and the state with what it teaches. Pools that it does not name are left out."""
    pools = {
        pool.name: _valid_pool(observation.pools[pool.name]) for pool in model.pools if pool.name in observation.pools
    }
    clock, seconds, gap = _advance_clock(state.clock, observation.now, model, settings)
    counted = {
        pool.name: validation.pool_totals(pools[pool.name], pool, model.itl_seconds)
        if not gap and seconds > 0.0
        else None
        for pool in model.pools
        if pool.name in pools
    }
    gateway = validation.validated_traffic(observation.gateway) if not gap and seconds > 0.0 else None
    trusted, believed = consistency.check_consistency(state.trust, clock.now, gateway, counted, settings)
    clock, tick = _collect_arrivals(clock, believed.gateway, seconds, model, state.load)
    if seconds > 0.0 and (believed.inconsistency is not None or clock.blind_since is not None):
        clock = replace(clock, calm_at=max(clock.calm_at, clock.now + settings.doubt_seconds))
    arrived = believed.gateway is not None and (believed.gateway.arrivals > 0.0 or believed.gateway.held > 0.0)
    blind = None if clock.blind_since is None else clock.now - clock.blind_since
    look = Tick(
        model,
        settings,
        clock.now,
        seconds,
        validation.valid_number(observation.wall),
        pools,
        believed,
        blind,
        clock.now < clock.calm_at,
        arrived,
        observation.mixes,
    )
    state = replace(state, clock=clock, trust=trusted, silence=_update_idle_gaps(state.silence, look))
    if observation.shapes is not None and blind is None and has_pool_choice(model):
        shapes = state.shapes or ShapeHistogram.empty(clock.now)
        state = replace(state, shapes=shapes.with_requests(clock.now, observation.shapes))
    return _learn(state, look, tick), look


def _valid_pool(seen: PoolObservation) -> PoolObservation:
    """What the API server says, with counts that can be."""
    told = {name: getattr(seen, name) for name in _COUNT_FIELDS}
    counts = {name: validation.valid_count(value) for name, value in told.items()}
    if counts == told:
        return seen
    desired, ready, pending, draining, asleep_desired, asleep, waking = counts.values()
    return replace(
        seen,
        desired=desired,
        ready=ready,
        pending=pending,
        draining=draining,
        asleep_desired=asleep_desired,
        asleep=asleep,
        waking=waking,
    )


def _advance_clock(
    clock: TickClock, time: float, model: ModelSpec, settings: ScalingSettings
) -> tuple[TickClock, float, bool]:
    """The clock after a look at ``told``, the seconds since the last, and whether there is a gap between them."""
    if validation.valid_number(time) is None:
        return clock, 0.0, False
    if clock.told is None:
        return replace(clock, told=time, calm_at=clock.now + settings.restart_seconds), 0.0, True
    seconds = time - clock.told
    if seconds <= 0.0:
        return replace(clock, told=time), 0.0, False
    if seconds > settings.gap_intervals * model.interval_seconds:
        now = clock.now + model.interval_seconds
        later = max(clock.calm_at, now + settings.restart_seconds)
        return replace(clock, told=time, now=now, calm_at=later), model.interval_seconds, True
    return replace(clock, told=time, now=clock.now + seconds), seconds, False


def _collect_arrivals(
    clock: TickClock, traffic: GatewayTraffic | None, seconds: float, model: ModelSpec, load: ArrivalHistory
) -> tuple[TickClock, ArrivalBin | None]:
    """What arrived as a tick of at least half an interval (looks between are added up), and since when nobody knows."""
    if traffic is None:
        since = clock.now if clock.blind_since is None else clock.blind_since
        return replace(clock, blind_since=since, open_seconds=0.0, open_requests=0.0, open_prompt=0.0), None
    share = _share_of_tick(clock, traffic.arrivals, seconds, model, load)
    clock = replace(
        clock,
        blind_since=None,
        open_seconds=clock.open_seconds + seconds,
        open_requests=clock.open_requests + share * traffic.arrivals,
        open_prompt=clock.open_prompt + share * traffic.prompt_tokens,
    )
    if clock.open_seconds < model.interval_seconds / 2:
        return clock, None
    tick = ArrivalBin(clock.now, clock.open_seconds, clock.open_requests, clock.open_prompt, 0.0)
    return replace(clock, open_seconds=0.0, open_requests=0.0, open_prompt=0.0), tick


def _share_of_tick(clock: TickClock, arrivals: float, seconds: float, model: ModelSpec, load: ArrivalHistory) -> float:
    """The share of what was counted that is taken to have come within the tick. The first counters after a time that nobody saw may
    be of all that time (five minutes in one tick would be sixty times the load): they count as what came before, or, where that
    is more, as what they make spread over all of it. The next ones tell. Right after the start nothing came before."""
    if clock.blind_since is None or arrivals <= 0.0:
        return 1.0
    unseen = clock.now - clock.blind_since
    known = load.bins or load.recent
    if not known and unseen < 1.5 * model.interval_seconds:
        return 1.0
    covered = sum(each.seconds for each in known)
    usual = sum(each.requests for each in known) / covered * seconds if known else 0.0
    return max(seconds / (unseen + model.interval_seconds), min(1.0, usual / arrivals))


def _update_idle_gaps(before: idle_gaps.IdleGaps, tick: Tick) -> idle_gaps.IdleGaps:
    busy = tick.has_arrivals or any(
        totals is not None and (totals.unread_replicas or totals.running + totals.waiting > 0.0)
        for totals in tick.signals.pools.values()
    )
    if busy or before.last_arrival is None or tick.signals.gateway is None:
        return idle_gaps.record_arrival(before, tick.now) if busy or before.last_arrival is None else before
    return before


def _learn(state: CoreState, look: Tick, tick: ArrivalBin | None) -> CoreState:
    """``state`` with what this look teaches about pools, lengths and load."""
    settings = look.settings
    pools = dict(state.pools)
    generated = finished = began = queued = prompt = cached = 0.0
    for facts in look.model.pools:
        if facts.name not in look.pools:
            continue
        before = pools.get(facts.name, PoolMemory())
        totals = look.signals.pools.get(facts.name)
        speed = before.speed
        if totals is not None:
            if facts.role is not Role.PREFILL:
                speed = engine_speed.update_engine_speed(speed, totals.gap_samples, facts, look.seconds, settings)
            answers = totals.completions
            generated, finished = generated + answers.generated_tokens, finished + answers.finished
            began += answers.started
            queued += totals.waiting if facts.role is Role.DECODE else 0.0
            prompt, cached = prompt + totals.prompt_tokens, cached + totals.cached_tokens
        seen = look.pools[facts.name]
        starts, wakes = (
            startup_time.update_startup_times(before.starts, seen),
            startup_time.update_wake_times(before.wakes, seen),
        )
        pools[facts.name] = replace(before, seen_at=look.now, speed=speed, starts=starts, wakes=wakes)
    lengths, load = (state.lengths, state.load) if tick is None else detect_shift(state.lengths, state.load, settings)
    if finished or generated:
        output = lengths.output.plus(generated, finished, look.seconds, settings)
        began_now = lengths.began.plus(began - (queued - lengths.queued), 0.0, look.seconds, settings)
        lengths = replace(lengths, output=output, began=began_now, queued=queued)
    if prompt:
        lengths = replace(lengths, cached=lengths.cached.plus(min(cached, prompt), prompt, look.seconds, settings))
    if look.signals.gateway is not None:
        lengths = request_lengths.update_decode_prefill_share(lengths, look.signals.gateway, look.seconds, settings)
    if tick is not None:
        known = lengths.prompt, lengths.prompt_variance
        if tick.requests:
            lengths = request_lengths.update_prompt_lengths(lengths, tick.prompt, tick.requests, tick.seconds, settings)
        load = record_tick(load, replace(tick, output=mean_request(lengths, Role.SERVE).output_tokens), settings)
        if load.past[-1:] != state.load.past[-1:]:
            lengths = replace(lengths, settled=known)
    return replace(state, pools=pools, lengths=lengths, load=load)
