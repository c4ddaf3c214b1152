"""The autoscaler's core behind its seam: mappings or objects in, replica counts out.

``docs/reference/seams.md`` has the protocol. The adapter decides nothing: every number comes from
the controller, which sees ``fairlead_autoscaler.core.types``.

The model description that an outside tool passes to the autoscaler's seam before the first step.

A missing field has its default. An impossible value is an error that names the field and the
permitted values. ``docs/reference/seams.md`` has the fields.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from fairlead.distribution import ADDRESSES
from fairlead.engine_profile import EngineProfile
from fairlead.errors import BadInput
from fairlead.fleet.model import Role
from fairlead.names import closest_matches
from fairlead_autoscaler.core.settings import DEFAULT_VALUES, ScalingSettings
from fairlead_autoscaler.core.types import (
    GatewayTraffic,
    MixRequest,
    MixResult,
    ModelSpec,
    Observation,
    PoolObservation,
    PoolSpec,
    ReplicaMetrics,
    ReplicaState,
    ShapeCount,
)
from fairlead_sim.adapters.field_parsing import (
    parse_number,
    read_bounded,
    read_count,
    read_field,
    read_id,
    require_list,
    require_mapping,
    require_object,
)
from fairlead_sim.autoscalers import Controller
from fairlead_sim.autoscaling.reference_pools import StepCosts, step_profile

MODEL_NAME = "model"
MAX_REPLICAS = 1_000_000
"""An upper bound that no tool reaches in one pool."""
_ROLES = {"both": Role.SERVE, "prefill": Role.PREFILL, "decode": Role.DECODE}
_INTERVAL_SECONDS = 5.0
_MIN_SECONDS, _DAY_SECONDS = 1e-6, 86_400.0
_MAX_COST = 1e9
_MAX_STEP_SECONDS = 3_600.0
_MAX_TOKENS = 1e12

_REPLICA_STATES = (ReplicaState.PENDING, ReplicaState.READY, ReplicaState.DRAINING)
_COUNTER_FIELDS = {  # field of the seam → field of ReplicaMetrics
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


def parse_model(info: Any) -> ModelSpec:
    """Returns the model and its pools. Raises BadInput for impossible values."""
    objectives = require_object(read_field(info, "slo"), "slo")
    pools = read_field(info, "pools")
    if pools is None:
        raise BadInput("pools is missing", field="pools", hint="name each pool: {name: {min, max, …}}")
    return ModelSpec(
        name=MODEL_NAME,
        ttft_seconds=_parse_limit(objectives, "ttft", "slo"),
        itl_seconds=_parse_limit(objectives, "itl", "slo"),
        pools=tuple([_parse_pool_spec(name, fields) for name, fields in require_mapping(pools, "pools").items()]),
        patience_seconds=_parse_limit(info, "timeout", ""),
        interval_seconds=read_bounded(info, "interval", "", _MIN_SECONDS, _DAY_SECONDS) or _INTERVAL_SECONDS,
        ttft_bounds=_parse_bounds(info, "ttft_le"),
        itl_bounds=_parse_bounds(info, "itl_le"),
    )


def parse_settings(changes: Mapping[str, Any]) -> ScalingSettings:
    """Returns the default settings with ``changes``. Raises BadInput for an unknown name or
    value.
    """
    for name, value in changes.items():
        if name not in DEFAULT_VALUES:
            close = closest_matches(name, list(DEFAULT_VALUES), count=1)
            page = ADDRESSES.documentation_page("reference/autoscaler.html")
            hint = f"did you mean {close[0]}?" if close else f"see the table of settings in the documentation, {page}"
            raise BadInput(f"{name}: there is no such setting", field=name, hint=hint)
        if isinstance(DEFAULT_VALUES[name], bool):
            if not isinstance(value, bool):
                raise BadInput(f"{name}: {value!r} is neither True nor False", field=name)
        elif not 0.0 <= parse_number(value, name) < math.inf:
            raise BadInput(f"{name}: {value!r} is not a finite number of 0 or more", field=name)
    return ScalingSettings().with_values(changes)


def _parse_limit(source: Any, name: str, owner: str) -> float | None:
    seconds = read_bounded(source, name, owner, _MIN_SECONDS, math.inf)
    return None if seconds is None or seconds > _DAY_SECONDS else seconds


def _parse_pool_spec(name: Any, fields: Any) -> PoolSpec:
    owner = f"pools.{name}"
    role = read_field(require_object(fields, owner), "role")
    if role is not None and (not isinstance(role, str) or role not in _ROLES):
        raise BadInput(f"{owner}.role: no role is called {role!r}", field=f"{owner}.role", hint=", ".join(_ROLES))
    cost, maximum = read_bounded(fields, "cost", owner, 0.0, _MAX_COST), _parse_count(fields, "max", owner, 0)
    minimum = _parse_count(fields, "min", owner, 0) or 0
    maximum = max(1, minimum) if maximum is None else maximum
    if minimum > maximum:
        field = f"{owner}.max"
        raise BadInput(f"{field}: {maximum} is less than min, {minimum}", field=field, hint="raise max or lower min")
    return PoolSpec(
        name=name,
        role=_ROLES[role or "both"],
        cost_per_hour=1.0 if cost is None else cost,
        minimum=minimum,
        maximum=maximum,
        profile=_parse_profile(owner, name, fields),
        startup_p50_seconds=read_bounded(fields, "startup_p50", owner, 0.0, _DAY_SECONDS),
        startup_p90_seconds=read_bounded(fields, "startup_p90", owner, 0.0, _DAY_SECONDS),
    )


def _parse_profile(owner: str, name: str, fields: Any) -> EngineProfile | None:
    prior, field = read_field(fields, "profile"), f"{owner}.profile"
    if prior is None:
        return None
    require_object(prior, field)
    defaults = EngineProfile(name, prefill_token_seconds=0.0)
    coefficients = [
        read_bounded(prior, coefficient, field, 0.0, _MAX_STEP_SECONDS) or 0.0
        for coefficient in ("step_base", "step_per_seq", "step_per_kv_token", "step_per_prompt_token")
    ]
    if not any(coefficients):
        raise BadInput(f"{field}: all step times are 0", field=field, hint="omit the profile if it is unknown")
    return step_profile(
        name,
        StepCosts(*coefficients),
        step_tokens=_parse_count(prior, "chunk", field, 1, _MAX_TOKENS) or defaults.step_tokens,
        sequences=_parse_count(fields, "max_num_seqs", owner, 1, _MAX_TOKENS) or defaults.max_sequences,
        kv_tokens=_parse_count(fields, "kv_tokens", owner, 1, _MAX_TOKENS) or defaults.kv_tokens,
    )


def _parse_count(source: Any, name: str, owner: str, minimum: int, maximum: float = MAX_REPLICAS) -> int | None:
    count = read_bounded(source, name, owner, minimum, maximum)
    if count is None:
        return None
    if not count.is_integer():
        raise BadInput(f"{owner}.{name}: {count:g} is not a whole number", field=f"{owner}.{name}")
    return int(count)


def _parse_bounds(info: Any, name: str) -> tuple[float, ...]:
    """Returns histogram bounds without a final infinity. Raises BadInput if they do not rise."""
    edges = read_field(info, name)
    values = (
        ()
        if edges is None
        else [parse_number(edge, f"{name}[{at}]") for at, edge in enumerate(require_list(edges, name))]
    )
    bounds = tuple(values[:-1] if values and values[-1] == math.inf else values)
    if any(not before < bound < math.inf for before, bound in zip((0.0, *bounds), bounds, strict=False)):
        raise BadInput(
            f"{name}: {values} are not rising bucket bounds",
            field=name,
            hint="seconds above 0, each more than the one before",
        )
    return bounds


class AutoscalerAdapter:
    """An autoscaling controller with the interface of the autoscaler seam.

    solver: returns a solver of accelerator mixes. A mix request is solved at the next step.
    """

    def __init__(
        self, controller: Controller, model: ModelSpec, solver: Callable[[], Callable[[MixRequest], MixResult]]
    ) -> None:
        self._controller = controller
        self._model = model
        self._solver = solver
        self._mix_requests: Mapping[str, MixRequest] = {}

    def step(self, obs: Any) -> dict[str, int]:
        """Returns the desired replicas by pool; a missing pool stays as it is.

        Raises BadInput for a malformed observation.
        """
        observation = parse_observation(obs, self._model)
        if self._mix_requests:
            solve = self._solver()
            observation = replace(
                observation, mixes={role: solve(mix_request) for role, mix_request in self._mix_requests.items()}
            )
        plan = self._controller.step(observation)
        self._mix_requests = plan.asks
        return {name: pool.replicas for name, pool in plan.pools.items()}


def parse_observation(obs: Any, model: ModelSpec) -> Observation:
    """Returns one observation of ``model``.

    Missing fields and impossible counts are unknown. A pool without known replica counts is left
    out, so that it stays as it is.

    Raises BadInput, with the field's name, for a value of a wrong type, an unknown state or a
    duplicate replica id.
    """
    gateway_fields = require_object(read_field(obs, "gateway"), "gateway")
    arrivals, prompt = (
        read_count(gateway_fields, "d_arrivals", "gateway"),
        read_count(gateway_fields, "d_prompt", "gateway"),
    )
    held, abandoned = (
        read_count(gateway_fields, "held", "gateway"),
        read_count(gateway_fields, "d_abandoned", "gateway"),
    )
    gateway = None
    if arrivals is not None and prompt is not None:
        gateway = GatewayTraffic(arrivals, prompt, held or 0.0, abandoned or 0.0)
    now, pools = read_field(obs, "t"), require_mapping(read_field(obs, "pools") or {}, "pools")
    pool_observations = {
        pool.name: _parse_pool(pools.get(pool.name), f"pools.{pool.name}", model) for pool in model.pools
    }
    return Observation(
        math.nan if now is None else parse_number(now, "t"),
        gateway,
        {name: pool for name, pool in pool_observations.items() if pool is not None},
        shapes=_parse_shapes(read_field(gateway_fields, "shapes"), "gateway.shapes"),
    )


def _parse_shapes(shapes: Any, field: str) -> tuple[ShapeCount, ...] | None:
    if shapes is None:
        return None
    parsed = []
    for at, shape in enumerate(require_list(shapes, field)):
        numbers = [parse_number(value, f"{field}[{at}]") for value in require_list(shape, f"{field}[{at}]")]
        if len(numbers) != 3:
            raise BadInput(
                f"{field}[{at}]: {len(numbers)} numbers instead of 3",
                field=field,
                hint="[prompt tokens, output tokens, requests]",
            )
        parsed.append(ShapeCount(*numbers))
    return tuple(parsed)


def _parse_pool(fields: Any, owner: str, model: ModelSpec) -> PoolObservation | None:
    """Returns the observation of one pool.

    Returns None if the desired, ready, pending or draining count is unknown.
    """
    require_object(fields, owner)
    counts = [read_count(fields, name, owner) for name in ("desired", "ready")]
    counts += [
        0.0 if read_field(fields, name) is None else read_count(fields, name, owner) for name in ("pending", "draining")
    ]
    field, pending = f"{owner}.pending_age", read_field(fields, "pending_age")
    ages = () if pending is None else [parse_number(age, field) for age in require_list(pending, field)]
    replicas = _parse_replicas(read_field(fields, "replicas"), f"{owner}.replicas", model)
    known = [int(count) for count in counts if count is not None and count <= MAX_REPLICAS and count.is_integer()]
    if len(known) < len(counts):
        return None
    desired, ready, pending, draining = known
    return PoolObservation(desired, ready, pending, draining, pending_ages_seconds=tuple(ages), replicas=replicas)


def _parse_replicas(replicas: Any, field: str, model: ModelSpec) -> tuple[ReplicaMetrics, ...] | None:
    if replicas is None:
        return None
    parsed: dict[str, ReplicaMetrics] = {}
    for at, fields in enumerate(require_list(replicas, field)):
        replica = _parse_replica(fields, f"{field}[{at}]", model)
        if replica is None:
            continue
        if replica.id in parsed:
            raise BadInput(f"{field}[{at}].id: another replica has the id {replica.id!r}", field=f"{field}[{at}].id")
        parsed[replica.id] = replica
    return tuple(parsed.values())


def _parse_replica(fields: Any, owner: str, model: ModelSpec) -> ReplicaMetrics | None:
    """Returns the metrics of one replica; None if it has no state."""
    state = read_field(require_object(fields, owner), "state")
    if state is None:
        return None
    if state not in _REPLICA_STATES:
        field = f"{owner}.state"
        raise BadInput(f"{field}: no state is called {state!r}", field=field, hint=", ".join(_REPLICA_STATES))
    first = read_count(fields, "d_first", owner)
    return ReplicaMetrics(
        id=read_id(fields, owner),
        state=ReplicaState(state),
        age_seconds=read_count(fields, "age", owner) or 0.0,
        startup_seconds=read_count(fields, "startup_s", owner),
        ttft_counts=_parse_histogram(fields, "ttft_hist", owner, model.ttft_bounds, first),
        itl_counts=_parse_histogram(fields, "itl_hist", owner, model.itl_bounds, None),
        woken=None,  # the seam has no sleep
        **{ours: read_count(fields, theirs, owner) for theirs, ours in _COUNTER_FIELDS.items()},
    )


def _parse_histogram(
    fields: Any, name: str, owner: str, bounds: tuple[float, ...], total: float | None
) -> tuple[float, ...] | None:
    """Returns the counts of a histogram; the last bucket is beyond all ``bounds``.

    Returns None if the field is missing or has a wrong number of counts.

    total: fills the last bucket if the tool does not send it.
    """
    told_counts, field = read_field(fields, name), f"{owner}.{name}"
    if told_counts is None:
        return None
    counts = [0.0 if count is None else parse_number(count, field) for count in require_list(told_counts, field)]
    if bounds and len(counts) == len(bounds):
        counts.append(max(0.0, (total or 0.0) - sum(counts)))
    return tuple(counts) if len(counts) == len(bounds) + 1 or not bounds else None
