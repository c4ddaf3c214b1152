"""Fields of a manifest that only a cluster honours. They are rejected when serving without them
would be wrong, else reported.
"""

from collections.abc import Iterator
from typing import Any

from fairlead.api.spec.engine import EngineType
from fairlead.api.spec.pools import PoolRole
from fairlead.api.v1alpha1 import ModelDeployment
from fairlead.errors import BadInput

_MODEL = ("revision", "credentials", "cache")
_ENGINE = ("image", "command", "imagePullSecrets", "port", "healthPath")
_POOL = ("parallelism", "template")
_CA = "caSecretKeyRef"
_CHANGES_ANSWERS = ("spec.model.revision", "spec.pools[].parallelism", "spec.engine.env[].valueFrom")
"""A real engine without these would answer differently, or not start."""


def reject_unsupported(deployment: ModelDeployment, *, real: bool) -> None:
    """Raises BadInput with a field that local mode cannot honour, and what to do instead."""
    spec, name = deployment.spec, deployment.metadata.name
    for index, pool in enumerate(spec.pools):
        if pool.selector is not None:
            message = f"{name}: local mode has no pods that a selector could find"
            raise BadInput(message, field=f"spec.pools[{index}].selector", hint="give endpoints: [{url: ...}] instead")
    if not real or spec.is_external:
        return
    engine_type = spec.engine.type
    if engine_type not in (EngineType.VLLM, EngineType.SIM):
        message = f"{name}: local mode runs no engine of type {engine_type.value}"
        hint = "leave --real out to simulate it, or start it yourself and write `type: External` with its endpoints"
        raise BadInput(message, field="spec.engine.type", hint=hint)
    for index, pool in enumerate(spec.pools):
        if pool.role is not PoolRole.SERVE and engine_type is EngineType.VLLM:
            message = f"{name}: local mode splits prefill from decode for simulated engines only"
            raise BadInput(message, field=f"spec.pools[{index}].role", hint="leave --real out, or use the role Serve")
    for path in ignored_fields(deployment):
        if _without_index(path) in _CHANGES_ANSWERS and engine_type is EngineType.VLLM:
            message = f"{name}: a real engine of local mode cannot honour {path}"
            raise BadInput(message, field=path, hint="remove it, or leave --real out")


def ignored_fields(deployment: ModelDeployment) -> tuple[str, ...]:
    """Returns the given fields that have no effect in local mode, in the order of the manifest."""
    return tuple(_find_ignored(deployment.spec.model_dump(by_alias=True, exclude_defaults=True)))


def _find_ignored(spec: dict[str, Any]) -> Iterator[str]:
    yield from (f"spec.model.{name}" for name in _MODEL if name in spec["model"])
    engine = spec.get("engine", {})
    yield from (f"spec.engine.{name}" for name in _ENGINE if name in engine)
    yield from (
        f"spec.engine.env[{n}].valueFrom" for n, variable in enumerate(engine.get("env", ())) if "valueFrom" in variable
    )
    for index, pool in enumerate(spec["pools"]):
        yield from (f"spec.pools[{index}].{name}" for name in _POOL if name in pool)
        endpoints = enumerate(pool.get("endpoints", ()))
        yield from (f"spec.pools[{index}].endpoints[{n}].{_CA}" for n, endpoint in endpoints if _CA in endpoint)
    if "offload" in spec.get("kvCache", {}):
        yield "spec.kvCache.offload"
    if "claimNames" in spec.get("adapters", {}):
        yield "spec.adapters.claimNames"
    if "rollout" in spec:
        yield "spec.rollout"


def _without_index(path: str) -> str:
    """Returns ``spec.pools[].parallelism`` for ``spec.pools[3].parallelism``."""
    return "".join(char for char in path if not char.isdigit())
