"""The status of a ModelAdapter, from its spec, its names and its base. Pure."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from fairlead.adapters.resolution import resolve_adapter
from fairlead.api.conditions import ConditionType, Reason
from fairlead.api.v1alpha1 import ModelAdapter, ModelDeploymentSpec
from fairlead.errors import BadInput
from fairlead.fleet.client_names import GrantedNames
from fairlead.kube.conditions import ConditionValue, conditions_for
from fairlead.kube.resources import Manifest, key_of, name_of, namespace_of
from fairlead.manifests.loader import read_object
from fairlead_operator.status.applied_status import name_fields
from fairlead_operator.status.model_status import name_taken_condition


def base_key(adapter: Manifest) -> str | None:
    """Returns the key of an adapter's base, of whatever release its spec is; None without one."""
    spec = adapter.get("spec")
    base = spec.get("base") if isinstance(spec, dict) else None
    return f"{namespace_of(adapter) or 'default'}/{base}" if isinstance(base, str) else None


def adapter_status(
    adapter: Manifest, names: GrantedNames, models: Mapping[str, Manifest], generation: int, now: str
) -> dict[str, Any]:
    """Returns the status of an adapter.

    models: the ModelDeployments, by key.
    generation: of the spec that it describes.
    now: current time as the API server writes it.
    """
    status = name_fields(adapter, names, generation)
    ready, source = _ready(adapter, models.get(base_key(adapter) or ""))
    if source is not None:
        status["engineSource"] = source
    taken = name_taken_condition(names.refused, name_of(adapter))
    values = [ready] if taken is None else [ready, taken]
    status["conditions"] = conditions_for(values, adapter.get("status") or {}, generation, now)
    return status


def _ready(adapter: Manifest, base: Manifest | None) -> tuple[ConditionValue, str | None]:
    """Returns the condition Ready, and what engines load; None if they cannot."""
    try:
        parsed = read_object(adapter)
        assert isinstance(parsed, ModelAdapter)
    except BadInput as error:
        return ConditionValue(ConditionType.READY, "False", Reason.INVALID_ADAPTER, str(error)), None
    spec: ModelDeploymentSpec | None = None
    if base is not None:
        try:
            spec = ModelDeploymentSpec.model_validate(base.get("spec") or {})
        except ValidationError:
            message = f"the spec of {key_of(base)} cannot be read; see its condition Stalled"
            return ConditionValue(ConditionType.READY, "Unknown", Reason.BASE_INVALID, message), None
    found = resolve_adapter(parsed.spec, parsed.metadata.name, spec)
    value = "False" if found.source is None else "True"
    return ConditionValue(ConditionType.READY, value, found.reason, found.message), found.source
