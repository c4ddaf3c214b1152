"""The models that a tenant may use, as a fleet of their own.

A request of a tenant is resolved in this fleet. So a model that it may not use is unknown to it in
every respect: by its name, in hints about similar names, in the list of models, and where two
models have the same bare name. Of a model that it may not use, it may be allowed adapters.
"""

from collections import Counter
from collections.abc import Collection, Container, Iterable, Mapping
from dataclasses import replace
from typing import Final

from fairlead.fleet.model import Fleet, Model
from fairlead.routes.fallback_graph import can_reach
from fairlead.routes.model import Route, visible_route
from fairlead.routes.resolution import RouteTable
from fairlead_gateway.caller_key import Caller
from fairlead_gateway.worker.openai.model_names import HiddenKeys, ModelEntry, client_names

_MAX_CACHED: Final = 1_024


def route_table(fleet: Fleet) -> RouteTable | None:
    """Returns the routes of a fleet by the names for clients; None without any."""
    if not fleet.routes:
        return None
    taken = frozenset([key for key, model in fleet.models.items() if not model.adapters_only])
    return RouteTable(fleet.routes.values(), taken)


class VisibleModels:
    """Models that requests may name.

    fleet: with these models only.
    names: its `client_names`.
    routes: its routes; None without any.
    """

    __slots__ = ("_outside", "fleet", "names", "routes")

    def __init__(self, fleet: Fleet) -> None:
        self.fleet: Final[Fleet] = fleet
        self.names: Final[dict[str, ModelEntry]] = client_names(fleet)
        self.routes: Final[RouteTable | None] = route_table(fleet)
        self._outside: HiddenKeys | None = None

    def outside_cluster(self) -> HiddenKeys:
        """Returns the models that run outside the cluster, and the routes that lead there alone."""
        if self._outside is None:
            fleet = self.fleet
            models = frozenset([key for key, model in fleet.models.items() if model.leaves_cluster])
            routes = [
                key
                for key, route in fleet.routes.items()
                if models and route.models() and not can_reach(route, lambda model: model not in models)
            ]
            self._outside = HiddenKeys(models, frozenset(routes))
        return self._outside


class ModelVisibility:
    """The models that each tenant may use. Tenants with the same models share one view."""

    def __init__(self) -> None:
        self._every = VisibleModels(Fleet())
        self._views: dict[frozenset[str], VisibleModels] = {}

    def update_fleet(self, fleet: Fleet) -> None:
        """Replaces the fleet."""
        self._every = VisibleModels(fleet)
        self._views = {}

    def of(self, caller: Caller | None) -> VisibleModels:
        """Returns the models that a caller may use."""
        if caller is None or caller.models is None:
            return self._every
        view = self._views.get(caller.models)
        if view is None:
            if len(self._views) >= _MAX_CACHED:
                self._views.clear()
            fleet = self._every.fleet
            may_use = caller.tenant.may_use
            visible = {key: visible_route(route, may_use) for key, route in fleet.routes.items()}
            routes = {key: route for key, route in visible.items() if route is not None}
            models = {key: model for key, model in fleet.models.items() if may_use(key)}
            models.update(_adapter_models(fleet.models, models, caller.models))
            models = _with_bare_names(models, routes.values())
            view = VisibleModels(replace(fleet, models=models, instances={}, routes=routes))
            self._views[caller.models] = view
        return view


def _adapter_models(models: Mapping[str, Model], usable: Container[str], allowed: Collection[str]) -> dict[str, Model]:
    """Returns the models of which a tenant may use some adapters, and not the model itself.

    usable: the models that it may use.
    allowed: what its document lists.
    """
    found = {}
    for key, model in models.items():
        if model.adapters and key not in usable:
            adapters = tuple([one for one in model.adapters if f"{model.namespace}/{one.name}" in allowed])
            if adapters:
                found[key] = replace(model, adapters=adapters, adapters_only=True)
    return found


def _with_bare_names(models: Mapping[str, Model], routes: Iterable[Route]) -> dict[str, Model]:
    """Returns models and adapters, each with its bare name unless another or a route has it.

    Why: in a cluster, the oldest model of a name owns it. Else a tenant could tell by its own model
    that others have one of that name.
    """
    named = [model for model in models.values() if not model.adapters_only]
    names = Counter(model.name for model in named)
    names.update(name for model in named for name in model.served_names)
    names.update(name for route in routes for name in route.names)
    adapters = [adapter for model in models.values() for adapter in model.adapters]
    names.update(name for adapter in adapters for name in {adapter.name, *adapter.bare_names})
    return {
        key: _with_adapter_names(
            replace(model, shadowed=False) if model.shadowed and names[model.name] == 1 else model, names
        )
        for key, model in models.items()
    }


def _with_adapter_names(model: Model, names: Mapping[str, int]) -> Model:
    """Returns a model whose adapters have their bare names, too, if nothing else has them."""
    hidden = [one for one in model.adapters if one.name not in one.bare_names and names[one.name] == 1]
    if not hidden:
        return model
    shown = {one.name: replace(one, client_names=(one.name, *one.bare_names)) for one in hidden}
    return replace(model, adapters=tuple(shown.get(one.name, one) for one in model.adapters))
