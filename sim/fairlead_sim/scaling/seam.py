"""The autoscaler behind the words of its seam (docs/reference/seams.md): mappings or objects in, numbers of replicas out.

Nothing is decided here: every number comes from the controller, which sees ``fairlead_autoscaler.scaling.values``.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from fairlead.errors import BadInput
from fairlead_autoscaler.scaling.values import (
    GatewaySeen,
    MixAsked,
    MixTold,
    Observation,
    PoolSeen,
    ReplicaSeen,
    ReplicaState,
    ScaledModel,
    ShapeSeen,
)
from fairlead_sim.scaling.loop import Controller
from fairlead_sim.scaling.seam_info import MOST_REPLICAS
from fairlead_sim.seam_words import amount, name_of, named, number, read, record, several

_STATES = (ReplicaState.PENDING, ReplicaState.READY, ReplicaState.DRAINING)
_COUNTERS = {  # the seam's word for each of ours
    "running": "running",
    "waiting": "waiting",
    "kv": "kv_share",
    "d_prompt": "prompt_tokens",
    "d_gen": "generated_tokens",
    "d_gen_time": "itl_seconds",
    "d_finished": "finished",
    "d_first": "first_tokens",
    "d_ttft_sum": "ttft_seconds",
}


class SeamAutoscaler:
    """A controller, called as the seam says. ``solver`` makes what answers its questions, each at the next step."""

    def __init__(
        self, controller: Controller, model: ScaledModel, solver: Callable[[], Callable[[MixAsked], MixTold]]
    ) -> None:
        self._controller = controller
        self._model = model
        self._solver = solver
        self._asks: Mapping[str, MixAsked] = {}

    def step(self, obs: Any) -> dict[str, int]:
        """How many replicas each pool should have; one that is missing stays as it is."""
        seen = observation_of(obs, self._model)
        if self._asks:
            solve = self._solver()
            seen = replace(seen, mixes={role: solve(asked) for role, asked in self._asks.items()})
        plan = self._controller.step(seen)
        self._asks = plan.asks
        return {name: pool.replicas for name, pool in plan.pools.items()}


def observation_of(obs: Any, model: ScaledModel) -> Observation:
    """One look at ``model``. What is missing, or a number that nobody can have counted, is unknown; of a pool whose pods nobody
    counted nothing is said, so that it stays as it is. Raises BadInput, which names the field, for a word where a number, a list or
    an object belongs, for a state that is none, and for replicas that cannot be told apart."""
    told = record(read(obs, "gateway"), "gateway")
    arrivals, prompt = amount(told, "d_arrivals", "gateway"), amount(told, "d_prompt", "gateway")
    held, abandoned = amount(told, "held", "gateway"), amount(told, "d_abandoned", "gateway")
    gateway = None
    if arrivals is not None and prompt is not None:
        gateway = GatewaySeen(arrivals, prompt, held or 0.0, abandoned or 0.0)
    now, pools = read(obs, "t"), named(read(obs, "pools") or {}, "pools")
    found = {pool.name: _pool_seen(pools.get(pool.name), f"pools.{pool.name}", model) for pool in model.pools}
    return Observation(
        math.nan if now is None else number(now, "t"),
        gateway,
        {name: pool for name, pool in found.items() if pool is not None},
        shapes=_shapes(read(told, "shapes"), "gateway.shapes"),
    )


def _shapes(told: Any, field: str) -> tuple[ShapeSeen, ...] | None:
    if told is None:
        return None
    found = []
    for at, shape in enumerate(several(told, field)):
        numbers = [number(one, f"{field}[{at}]") for one in several(shape, f"{field}[{at}]")]
        if len(numbers) != 3:
            raise BadInput(
                f"{field}[{at}]: {len(numbers)} numbers", field=field, hint="[prompt tokens, output tokens, requests]"
            )
        found.append(ShapeSeen(*numbers))
    return tuple(found)


def _pool_seen(told: Any, of: str, model: ScaledModel) -> PoolSeen | None:
    """None where it is not known how many replicas are asked, ready, pending or draining."""
    record(told, of)
    counts = [amount(told, name, of) for name in ("desired", "ready")]
    counts += [0.0 if read(told, name) is None else amount(told, name, of) for name in ("pending", "draining")]
    field, pending = f"{of}.pending_age", read(told, "pending_age")
    ages = () if pending is None else [number(age, field) for age in several(pending, field)]
    replicas = _replicas(read(told, "replicas"), f"{of}.replicas", model)
    known = [int(count) for count in counts if count is not None and count <= MOST_REPLICAS and count.is_integer()]
    if len(known) < len(counts):
        return None
    desired, ready, pending, draining = known
    return PoolSeen(desired, ready, pending, draining, pending_ages_seconds=tuple(ages), replicas=replicas)


def _replicas(told: Any, field: str, model: ScaledModel) -> tuple[ReplicaSeen, ...] | None:
    if told is None:
        return None
    found: dict[str, ReplicaSeen] = {}
    for at, one in enumerate(several(told, field)):
        seen = _replica(one, f"{field}[{at}]", model)
        if seen is None:
            continue
        if seen.id in found:
            raise BadInput(f"{field}[{at}].id: {seen.id!r} is there twice", field=f"{field}[{at}].id")
        found[seen.id] = seen
    return tuple(found.values())


def _replica(told: Any, of: str, model: ScaledModel) -> ReplicaSeen | None:
    """None where nobody says what it is doing."""
    state = read(record(told, of), "state")
    if state is None:
        return None
    if state not in _STATES:
        field = f"{of}.state"
        raise BadInput(f"{field}: no state is called {state!r}", field=field, hint=", ".join(_STATES))
    first = amount(told, "d_first", of)
    return ReplicaSeen(
        id=name_of(told, of),
        state=ReplicaState(state),
        age_seconds=amount(told, "age", of) or 0.0,
        startup_seconds=amount(told, "startup_s", of),
        ttft_counts=_counts(told, "ttft_hist", of, model.ttft_bounds, first),
        itl_counts=_counts(told, "itl_hist", of, model.itl_bounds, None),
        woken=None,  # the seam knows no sleep
        **{ours: amount(told, theirs, of) for theirs, ours in _COUNTERS.items()},
    )


def _counts(told: Any, name: str, of: str, bounds: tuple[float, ...], total: float | None) -> tuple[float, ...] | None:
    """With a last bucket for what lies beyond all ``bounds``: who tells none leaves it to the ``total``, where there is one. None
    where there are not as many as ``bounds``: nobody knows where each begins then."""
    told_counts, field = read(told, name), f"{of}.{name}"
    if told_counts is None:
        return None
    counts = [0.0 if count is None else number(count, field) for count in several(told_counts, field)]
    if bounds and len(counts) == len(bounds):
        counts.append(max(0.0, (total or 0.0) - sum(counts)))
    return tuple(counts) if len(counts) == len(bounds) + 1 or not bounds else None
