"""The model description that an outside tool passes to the autoscaler's seam before the first step.

A missing field has its default. An impossible value is an error that names the field and the
permitted values. ``docs/reference/seams.md`` has the fields.
"""

import math
from collections.abc import Mapping
from typing import Any

from fairlead.distribution import ADDRESSES
from fairlead.engine_profile import EngineProfile
from fairlead.errors import BadInput
from fairlead.fleet.model import Role
from fairlead.names import closest_matches
from fairlead_autoscaler.core.settings import DEFAULT_VALUES, ScalingSettings
from fairlead_autoscaler.core.types import ModelSpec, PoolSpec
from fairlead_sim.adapters.field_parsing import (
    parse_number,
    read_bounded,
    read_field,
    require_list,
    require_mapping,
    require_object,
)
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
    """Returns a limit in seconds; None for no limit, or one of more than a day."""
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
