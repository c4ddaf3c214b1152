"""Learning: updates the state with one tick's engine speeds, lengths, load and idle gaps."""

from dataclasses import replace

from fairlead.fleet.model import Role
from fairlead_autoscaler.core.performance.measured_slowdown import update_engine_speed
from fairlead_autoscaler.core.performance.running_answers import update_running_answers
from fairlead_autoscaler.core.performance.startup_time import update_startup_times, update_wake_times
from fairlead_autoscaler.core.signals.tick import Tick
from fairlead_autoscaler.core.state import CoreState, PoolMemory
from fairlead_autoscaler.core.types import Observation, has_pool_choice
from fairlead_autoscaler.core.workload.arrivals import ArrivalBin, record_tick
from fairlead_autoscaler.core.workload.idle_gaps import IdleGaps, record_arrival
from fairlead_autoscaler.core.workload.length_shift import detect_shift
from fairlead_autoscaler.core.workload.mean_request import mean_request
from fairlead_autoscaler.core.workload.request_lengths import (
    RequestLengths,
    update_decode_prefill_share,
    update_prompt_lengths,
)
from fairlead_autoscaler.core.workload.shape_histogram import ShapeHistogram


def learn(state: CoreState, tick: Tick, observation: Observation) -> CoreState:
    """Returns the state with what a tick shows of idle gaps, pools, shapes, lengths and load."""
    state = replace(state, silence=_learn_idle_gaps(state.silence, tick), pools=_learn_pools(state, tick))
    if observation.shapes is not None and tick.missing_seconds is None and has_pool_choice(tick.model):
        shapes = state.shapes or ShapeHistogram.empty(tick.now)
        state = replace(state, shapes=shapes.with_requests(tick.now, observation.shapes))
    return _learn_traffic(state, tick)


def _learn_idle_gaps(before: IdleGaps, tick: Tick) -> IdleGaps:
    """Records that the model is busy: how long it is idle in between is learned from that.

    It is busy while requests arrive, wait or run, and while a replica's metrics cannot be read.
    """
    is_busy = tick.has_arrivals or any(
        totals is not None and (totals.unread_replicas or totals.running + totals.waiting > 0.0)
        for totals in tick.signals.pools.values()
    )
    return record_arrival(before, tick.now) if is_busy or before.last_arrival is None else before


def _learn_pools(state: CoreState, tick: Tick) -> dict[str, PoolMemory]:
    """Returns the pools' memories with the tick's engine speeds, startup times and wake times."""
    before = state.pools
    after = dict(before)
    for spec in tick.model.pools:
        if (pool := tick.pools.get(spec.name)) is None:
            continue
        memory = before.get(spec.name, PoolMemory())
        speed, answers = memory.speed, memory.answers
        totals = tick.signals.pools.get(spec.name)
        if totals is not None and spec.role is not Role.PREFILL:
            speed = update_engine_speed(speed, totals.gap_samples, spec, tick.seconds)
            request = mean_request(state.lengths, Role.SERVE)
            answers = update_running_answers(
                answers, totals.resident_tokens, totals.resident_sequences, request, tick.seconds
            )
        after[spec.name] = replace(
            memory,
            seen_at=tick.now,
            speed=speed,
            answers=answers,
            starts=update_startup_times(memory.starts, pool),
            wakes=update_wake_times(memory.wakes, pool),
        )
    return after


def _learn_traffic(state: CoreState, tick: Tick) -> CoreState:
    """Returns the state with the request lengths and the arrivals of the tick."""
    settings, arrivals = tick.settings, tick.arrivals
    lengths, load = state.lengths, state.load
    if arrivals is not None:
        lengths, load = detect_shift(lengths, load)
    lengths = _learn_answers(lengths, tick)
    if tick.signals.gateway is not None:
        lengths = update_decode_prefill_share(lengths, tick.signals.gateway, tick.seconds)
    if arrivals is not None:
        settled = lengths.prompt, lengths.prompt_variance
        tokens, requests = arrivals.prompt_tokens, arrivals.requests
        if requests:
            lengths = update_prompt_lengths(lengths, tokens, requests, arrivals.seconds)
        output = mean_request(lengths, Role.SERVE).output_tokens
        load = record_tick(load, ArrivalBin(arrivals.at, arrivals.seconds, requests, tokens, output), settings)
        if load.past[-1:] != state.load.past[-1:]:
            lengths = replace(lengths, settled=settled)
    return replace(state, lengths=lengths, load=load)


def _learn_answers(lengths: RequestLengths, tick: Tick) -> RequestLengths:
    """Returns the lengths with the outputs, starts and cached tokens of all pools."""
    generated = finished = began = queued = prompt = cached = 0.0
    for spec in tick.model.pools:
        totals = tick.signals.pools.get(spec.name) if spec.name in tick.pools else None
        if totals is None:
            continue
        answers = totals.completions
        generated, finished = generated + answers.generated_tokens, finished + answers.finished
        began += answers.started
        queued += totals.waiting if spec.role is Role.DECODE else 0.0
        prompt, cached = prompt + totals.prompt_tokens, cached + totals.cached_tokens
    if finished or generated:
        output = lengths.output.plus(generated, finished, tick.seconds)
        started = lengths.began.plus(began - (queued - lengths.queued), 0.0, tick.seconds)
        lengths = replace(lengths, output=output, began=started, queued=queued)
    if prompt:
        lengths = replace(lengths, cached=lengths.cached.plus(min(cached, prompt), prompt, tick.seconds))
    return lengths
