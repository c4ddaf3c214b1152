"""What an outside tool tells the autoscaler's seam of a model before the first step (docs/reference/seams.md).

It is told once, by somebody who can mend it: what is missing has its usual value, and what cannot be is an error that names the
field and what may be there instead.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from fairlead.errors import BadInput
from fairlead.fleet import Role
from fairlead.names import nearest
from fairlead.profile import EngineProfile
from fairlead_autoscaler.scaling.settings import ScalingSettings
from fairlead_autoscaler.scaling.values import PoolFacts, ScaledModel
from fairlead_sim.scaling.profile import stepping
from fairlead_sim.seam_words import named, number, read, record, several, within

MODEL = "model"
MOST_REPLICAS = 1_000_000
"""No tool has more of one pool."""
_ROLES = {"both": Role.SERVE, "prefill": Role.PREFILL, "decode": Role.DECODE}
_INTERVAL_SECONDS = 5.0
_LEAST_SECONDS, _DAY_SECONDS = 1e-6, 86_400.0
_MOST_COST = 1e9
_STEP_SECONDS = 3_600.0
_MOST_TOKENS = 1e12


def model_of(info: Any) -> ScaledModel:
    """What ``info`` says of the model and its pools. Raises BadInput for what cannot be."""
    objectives = record(read(info, "slo"), "slo")
    pools = read(info, "pools")
    if pools is None:
        raise BadInput("pools is missing", field="pools", hint="name each pool: {name: {min, max, …}}")
    return ScaledModel(
        name=MODEL,
        ttft_seconds=_limit(objectives, "ttft", "slo"),
        itl_seconds=_limit(objectives, "itl", "slo"),
        pools=tuple([_pool(name, told) for name, told in named(pools, "pools").items()]),
        patience_seconds=_limit(info, "timeout", ""),
        interval_seconds=within(info, "interval", "", _LEAST_SECONDS, _DAY_SECONDS) or _INTERVAL_SECONDS,
        ttft_bounds=_bounds(info, "ttft_le"),
        itl_bounds=_bounds(info, "itl_le"),
    )


def settings_of(given: Mapping[str, Any]) -> ScalingSettings:
    """The core's settings with ``given`` changed. Raises BadInput for what is no setting, or no value of it."""
    usual = {item.name: item.default for item in dataclasses.fields(ScalingSettings)}
    for name, value in given.items():
        if name not in usual:
            close = nearest(name, list(usual), count=1)
            hint = f"did you mean {close[0]}?" if close else "they are the fields of ScalingSettings"
            raise BadInput(f"{name}: no setting is called so", field=name, hint=hint)
        if isinstance(usual[name], bool):
            if not isinstance(value, bool):
                raise BadInput(f"{name}: {value!r} where True or False belongs", field=name)
        elif not 0.0 <= number(value, name) < math.inf or (isinstance(usual[name], int) and not isinstance(value, int)):
            kind = "whole number" if isinstance(usual[name], int) else "number"
            raise BadInput(f"{name}: {value!r} where a finite {kind} from 0 on belongs", field=name)
    return ScalingSettings(**given)


def _limit(source: Any, name: str, of: str) -> float | None:
    """Seconds that something may take; None where that is not limited."""
    found = within(source, name, of, _LEAST_SECONDS, math.inf)
    return None if found is None or found > _DAY_SECONDS else found


def _pool(name: Any, told: Any) -> PoolFacts:
    of = f"pools.{name}"
    role = read(record(told, of), "role")
    if role is not None and (not isinstance(role, str) or role not in _ROLES):
        raise BadInput(f"{of}.role: no role is called {role!r}", field=f"{of}.role", hint=", ".join(_ROLES))
    cost, most = within(told, "cost", of, 0.0, _MOST_COST), _count(told, "max", of, 0)
    least = _count(told, "min", of, 0) or 0
    most = max(1, least) if most is None else most
    if least > most:
        field = f"{of}.max"
        raise BadInput(f"{field}: {most} is less than min, {least}", field=field, hint="min at most, max at least")
    return PoolFacts(
        name=name,
        role=_ROLES[role or "both"],
        cost_per_hour=1.0 if cost is None else cost,
        minimum=least,
        maximum=most,
        profile=_profile(of, name, told),
        startup_p50_seconds=within(told, "startup_p50", of, 0.0, _DAY_SECONDS),
        startup_p90_seconds=within(told, "startup_p90", of, 0.0, _DAY_SECONDS),
    )


def _profile(of: str, name: str, told: Any) -> EngineProfile | None:
    prior, field = read(told, "profile"), f"{of}.profile"
    if prior is None:
        return None
    record(prior, field)
    usual = EngineProfile(name, prefill_token_seconds=0.0)
    found = [
        within(prior, coefficient, field, 0.0, _STEP_SECONDS) or 0.0
        for coefficient in ("step_base", "step_per_seq", "step_per_kv_token", "step_per_prompt_token")
    ]
    if not any(found):
        raise BadInput(f"{field}: its steps take no time", field=field, hint="leave out a profile that nobody knows")
    return stepping(
        name,
        *found,
        step_tokens=_count(prior, "chunk", field, 1, _MOST_TOKENS) or usual.step_tokens,
        sequences=_count(told, "max_num_seqs", of, 1, _MOST_TOKENS) or usual.max_sequences,
        kv_tokens=_count(told, "kv_tokens", of, 1, _MOST_TOKENS) or usual.kv_tokens,
    )


def _count(source: Any, name: str, of: str, least: int, most: float = MOST_REPLICAS) -> int | None:
    found = within(source, name, of, least, most)
    if found is None:
        return None
    if not found.is_integer():
        raise BadInput(f"{of}.{name}: {found:g} is no whole number", field=f"{of}.{name}")
    return int(found)


def _bounds(info: Any, name: str) -> tuple[float, ...]:
    """Without an infinite one at the end, which ours do not list. Raises BadInput where they do not rise."""
    edges = read(info, name)
    told = () if edges is None else [number(edge, f"{name}[{at}]") for at, edge in enumerate(several(edges, name))]
    bounds = tuple(told[:-1] if told and told[-1] == math.inf else told)
    if any(not before < bound < math.inf for before, bound in zip((0.0, *bounds), bounds, strict=False)):
        raise BadInput(
            f"{name}: {told} are no upper edges", field=name, hint="seconds above 0, each more than the one before"
        )
    return bounds
