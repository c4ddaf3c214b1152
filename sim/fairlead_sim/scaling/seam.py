"""The autoscaler behind the words of its seam (docs/reference/seams.md): mappings or objects in, numbers of replicas out.

Nothing is decided here: every number comes from the controller, which sees ``fairlead_autoscaler.scaling.values``.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from fairlead.errors import BadInput
from fairlead.fleet import Role
from fairlead.profile import EngineProfile
from fairlead_autoscaler.scaling.values import (
    GatewaySeen,
    MixAsked,
    MixTold,
    Observation,
    PoolFacts,
    PoolSeen,
    ReplicaSeen,
    ReplicaState,
    ScaledModel,
    ShapeSeen,
)
from fairlead_sim.scaling.loop import Controller
from fairlead_sim.scaling.profile import stepping
from fairlead_sim.seam_words import read

MODEL = "model"
_ROLES = {"both": Role.SERVE, "prefill": Role.PREFILL, "decode": Role.DECODE}
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


def model_of(info: Any) -> ScaledModel:
    """What ``info`` says of the model and its pools. Raises BadInput where a pool's role is none."""
    objectives = read(info, "slo")
    pools = read(info, "pools") or {}
    return ScaledModel(
        name=MODEL,
        ttft_seconds=_number(read(objectives, "ttft")),
        itl_seconds=_number(read(objectives, "itl")),
        pools=tuple([_pool(name, told) for name, told in pools.items()]),
        patience_seconds=_number(read(info, "timeout")),
        interval_seconds=_number(read(info, "interval")) or 5.0,
        ttft_bounds=_bounds(read(info, "ttft_le")),
        itl_bounds=_bounds(read(info, "itl_le")),
    )


def observation_of(obs: Any, model: ScaledModel) -> Observation:
    """One look at ``model``. What is missing or no number is unknown; of a pool whose pods nobody counted nothing is said, so that it
    stays as it is. Raises BadInput for a word where a number or a list belongs, and for a state that is none."""
    told = read(obs, "gateway")
    arrivals, prompt = _number(read(told, "d_arrivals")), _number(read(told, "d_prompt"))
    gateway = None
    if arrivals is not None and prompt is not None:
        held, abandoned = _number(read(told, "held")), _number(read(told, "d_abandoned"))
        gateway = GatewaySeen(arrivals, prompt, held or 0.0, abandoned or 0.0)
    now = _number(read(obs, "t"))
    pools = {name: _pool_seen(pool, model) for name, pool in (read(obs, "pools") or {}).items()}
    return Observation(
        math.nan if now is None else now,
        gateway,
        {name: pool for name, pool in pools.items() if pool is not None},
        shapes=_shapes(read(told, "shapes")),
    )


def _shapes(told: Any) -> tuple[ShapeSeen, ...] | None:
    return None if told is None else tuple([ShapeSeen(*[float(number) for number in shape]) for shape in told])


def _pool(name: str, told: Any) -> PoolFacts:
    role = read(told, "role") or "both"
    if role not in _ROLES:
        raise BadInput(f"no role is called {role!r}", field=f"pools.{name}.role", hint=", ".join(_ROLES))
    cost, most = _number(read(told, "cost")), read(told, "max")
    return PoolFacts(
        name=name,
        role=_ROLES[role],
        cost_per_hour=1.0 if cost is None else cost,
        minimum=int(read(told, "min") or 0),
        maximum=1 if most is None else int(most),
        profile=_profile(name, told),
        startup_p50_seconds=_number(read(told, "startup_p50")),
        startup_p90_seconds=_number(read(told, "startup_p90")),
    )


def _profile(name: str, told: Any) -> EngineProfile | None:
    prior = read(told, "profile")
    if prior is None:
        return None
    usual = EngineProfile(name, prefill_token_seconds=0.0)
    return stepping(
        name,
        _number(read(prior, "step_base")) or 0.0,
        _number(read(prior, "step_per_seq")) or 0.0,
        _number(read(prior, "step_per_kv_token")) or 0.0,
        _number(read(prior, "step_per_prompt_token")) or 0.0,
        step_tokens=int(read(prior, "chunk") or usual.step_tokens),
        sequences=int(read(told, "max_num_seqs") or usual.max_sequences),
        kv_tokens=int(read(told, "kv_tokens") or usual.kv_tokens),
    )


def _pool_seen(told: Any, model: ScaledModel) -> PoolSeen | None:
    """None where it is not known how many replicas are asked, ready, pending or draining."""
    counts = [_number(read(told, field)) for field in ("desired", "ready")]
    counts += [0.0 if read(told, field) is None else _number(read(told, field)) for field in ("pending", "draining")]
    known = [int(count) for count in counts if count is not None and 0.0 <= count < math.inf]
    if len(known) < len(counts):
        return None
    desired, ready, pending, draining = known
    replicas = read(told, "replicas")
    seen = None if replicas is None else [_replica(one, model) for one in _list(replicas, "replicas")]
    ages = [_number(age) for age in _list(read(told, "pending_age") or (), "pending_age")]
    return PoolSeen(
        desired,
        ready,
        pending,
        draining,
        pending_ages_seconds=tuple([age for age in ages if age is not None]),
        replicas=None if seen is None else tuple([one for one in seen if one is not None]),
    )


def _replica(told: Any, model: ScaledModel) -> ReplicaSeen | None:
    """None where nobody says what it is doing."""
    first, state = _number(read(told, "d_first")), read(told, "state")
    if state is None:
        return None
    try:
        known = ReplicaState(state)
    except ValueError:
        raise BadInput(f"no state is called {state!r}", field="state", hint=", ".join(ReplicaState)) from None
    return ReplicaSeen(
        id=str(read(told, "id")),
        state=known,
        age_seconds=_number(read(told, "age")) or 0.0,
        startup_seconds=_number(read(told, "startup_s")),
        ttft_counts=_counts(told, "ttft_hist", model.ttft_bounds, first),
        itl_counts=_counts(told, "itl_hist", model.itl_bounds, None),
        woken=None,  # the seam knows no sleep
        **{ours: _number(read(told, theirs)) for theirs, ours in _COUNTERS.items()},
    )


def _number(value: Any) -> float | None:
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError):
        raise BadInput(f"{value!r} is no number") from None


def _list(value: Any, field: str) -> Iterable[Any]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise BadInput(f"{value!r} is no list", field=field)
    return value


def _counts(told: Any, field: str, bounds: tuple[float, ...], total: float | None) -> tuple[float, ...] | None:
    """With a last bucket for what lies beyond all ``bounds``: who tells none leaves it to the ``total``, where there is one. None
    where there are not as many as ``bounds``: nobody knows where each begins then."""
    told_counts = read(told, field)
    if told_counts is None:
        return None
    counts = [_number(count) or 0.0 for count in _list(told_counts, field)]
    if bounds and len(counts) == len(bounds):
        counts.append(max(0.0, (total or 0.0) - sum(counts)))
    return tuple(counts) if len(counts) == len(bounds) + 1 or not bounds else None


def _bounds(told: Any) -> tuple[float, ...]:
    """Without an infinite one at the end, which ours do not list."""
    return tuple([float(bound) for bound in told or () if math.isfinite(float(bound))])
