"""The status of a ModelRoute, from its spec, its names and the models. Pure."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from fairlead.api.conditions import ConditionType, Reason
from fairlead.api.v1alpha1 import ModelRoute
from fairlead.errors import BadInput
from fairlead.fleet.client_names import GrantedNames
from fairlead.fleet.model import takes_routes
from fairlead.kube.conditions import ConditionValue, conditions_for
from fairlead.kube.resources import Manifest, namespace_of
from fairlead.manifests.loader import read_object
from fairlead.routes.model import Route, RouteRule
from fairlead_operator.status.applied_status import name_fields
from fairlead_operator.status.model_status import describe_refused

_MAX_NAMED: Final = 5


def target_keys(route: Manifest) -> frozenset[str]:
    namespace = namespace_of(route) or "default"
    return frozenset(name if "/" in name else f"{namespace}/{name}" for name in _target_names(route.get("spec")))


def route_status(
    route: Manifest, names: GrantedNames, models: Mapping[str, Manifest], generation: int, now: str
) -> dict[str, Any]:
    """Returns the status of a route.

    models: all models, by key.
    generation: of the spec that it describes.
    now: current time as the API server writes it.
    """
    status = name_fields(route, names, generation)
    try:
        parsed = read_object(route)
        assert isinstance(parsed, ModelRoute)
    except BadInput as error:
        values = [ConditionValue(ConditionType.ACCEPTED, "False", Reason.INVALID_ROUTE, str(error))]
    else:
        found = parsed.to_route()
        status["targets"] = ", ".join(f"{target.model} {target.weight}" for target in found.targets)
        values = [_accepted(names), _resolved(found, models)]
    status["conditions"] = conditions_for(values, route.get("status") or {}, generation, now)
    return status


def _target_names(spec: Any) -> Iterator[str]:
    if not isinstance(spec, dict):
        return
    # An invalid spec can have a value of any type in any field.
    overrides = spec.get("overrides")
    for rule in (spec, *(overrides if isinstance(overrides, list) else ())):
        targets = rule.get("targets") if isinstance(rule, dict) else None
        for target in targets if isinstance(targets, list) else ():
            if isinstance(target, dict) and isinstance(target.get("model"), str):
                yield target["model"]
    fallbacks = spec.get("onFailure")
    for fallback in fallbacks if isinstance(fallbacks, list) else ():
        if isinstance(fallback, dict) and isinstance(fallback.get("to"), str):
            yield fallback["to"]
    shadow = spec.get("shadow")
    if isinstance(shadow, dict) and isinstance(shadow.get("model"), str):
        yield shadow["model"]


def _accepted(names: GrantedNames) -> ConditionValue:
    if not names.refused:
        return ConditionValue(ConditionType.ACCEPTED, "True", Reason.VALID, "gateways serve the route")
    message = "; ".join(map(describe_refused, names.refused))
    return ConditionValue(ConditionType.ACCEPTED, "False", Reason.NAMES_TAKEN, message)


def _resolved(route: Route, models: Mapping[str, Manifest]) -> ConditionValue:
    missing = [key for key in route.models() if key not in models]
    if missing:
        more = f" and {len(missing) - _MAX_NAMED} more" if len(missing) > _MAX_NAMED else ""
        message = f"no model is called {', '.join(missing[:_MAX_NAMED])}{more}: its conversations get 503"
        return ConditionValue(ConditionType.RESOLVED_REFS, "False", Reason.MODEL_NOT_FOUND, message)
    absent = list(dict.fromkeys(item.to for item in route.fallbacks if item.to not in models))
    if absent:
        message = f"no model is called {', '.join(absent[:_MAX_NAMED])}: it answers for no other model"
        return ConditionValue(ConditionType.RESOLVED_REFS, "False", Reason.MODEL_NOT_FOUND, message)
    if route.shadow is not None and route.shadow.model not in models:
        message = f"no model is called {route.shadow.model}: no requests are copied"
        return ConditionValue(ConditionType.RESOLVED_REFS, "False", Reason.MODEL_NOT_FOUND, message)
    refused = list(dict.fromkeys(key for _, key in route.model_paths() if not _takes_routes(models.get(key), route)))
    if refused:
        fate = "they are skipped" if set(refused).isdisjoint(_default_targets(route)) else "the route is not served"
        message = f"spec.allowedRoutes of {', '.join(refused[:_MAX_NAMED])} does not list {route.namespace}: {fate}"
        return ConditionValue(ConditionType.RESOLVED_REFS, "False", Reason.REF_NOT_PERMITTED, message)
    without = [place for place, rule in _places(route) if not rule.models()]
    if without:
        message = f"no target of {', '.join(without)} has a weight above 0: its requests get 503"
        return ConditionValue(ConditionType.RESOLVED_REFS, "False", Reason.NO_WEIGHT, message)
    count = len(route.models())
    message = "the target exists" if count == 1 else f"all {count} targets exist"
    return ConditionValue(ConditionType.RESOLVED_REFS, "True", Reason.RESOLVED, message)


def allowed_namespaces(model: Manifest | None) -> list[str]:
    """Returns `spec.allowedRoutes` of a model; empty if there is none."""
    allowed = ((model or {}).get("spec") or {}).get("allowedRoutes")
    return [one for one in allowed if isinstance(one, str)] if isinstance(allowed, list) else []


def _takes_routes(model: Manifest | None, route: Route) -> bool:
    return model is None or takes_routes(namespace_of(model) or "default", allowed_namespaces(model), route.namespace)


def _default_targets(route: Route) -> list[str]:
    return RouteRule(route.targets).models()


def _places(route: Route) -> Iterator[tuple[str, RouteRule]]:
    """Yields each rule of a route with its place in the spec."""
    yield "spec", RouteRule(route.targets)
    for number, override in enumerate(route.overrides):
        yield f"spec.overrides[{number}]", override
